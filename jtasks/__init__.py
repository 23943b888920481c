"""A functional JAX/Flax library for machine-learning tasks; see README.md."""

import importlib

TYPE_CHECKING = False  # type checkers take it for typing's, whose import would take longer than this one
if TYPE_CHECKING:
    from jtasks.run.inference import Run, load
    from jtasks.run.loop import train
    from jtasks.run.signals import Stopped

__version__ = "0.1.0"
__all__ = ["Run", "Stopped", "load", "train"]

_HOMES = {"Run": "inference", "Stopped": "signals", "load": "inference", "train": "loop"}


def __getattr__(name: str) -> object:
    """Import a function or a class when it is asked for, so that `import jtasks` stays instant."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"jtasks.run.{_HOMES[name]}"), name)
