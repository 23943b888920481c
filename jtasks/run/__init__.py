"""The engine: one loop and one step for every task, and the modes that read what a run leaves."""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from jtasks.run.job import fill
    from jtasks.run.loop import train

__all__ = ["fill", "train"]

_HOMES = {"fill": "jtasks.run.job", "train": "jtasks.run.loop"}


def __getattr__(name: str) -> Any:
    """Import `fill` or `train` when it is asked for: the command reads its flags before JAX is imported."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name]), name)
