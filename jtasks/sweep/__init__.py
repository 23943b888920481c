"""Sweeps: one config trained with several values of some fields, a run a folder, and a table of the results.

`points` reads the values from flags or a file, `runs` trains each point by a command of its own, `table` collects the
records of the runs in sweep.csv, and `picture` draws them in sweep.svg.
"""
