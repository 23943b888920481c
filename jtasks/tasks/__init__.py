"""The shipped tasks, one per file; no task imports another."""
