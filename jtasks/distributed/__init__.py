"""Meshes, processes, and clusters."""
