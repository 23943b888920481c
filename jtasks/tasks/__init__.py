"""The shipped tasks, one a file; no task imports another."""
