"""The engine: one loop and one step for every task, and the modes that read what it leaves."""

from jtasks.run.job import fill
from jtasks.run.loop import train

__all__ = ["fill", "train"]
