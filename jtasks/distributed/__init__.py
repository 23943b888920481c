"""Meshes, processes, and the clusters that they run on."""
