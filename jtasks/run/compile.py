"""A jitted function, compiled ahead of its first use for each shape of batch."""

import contextlib
import ctypes
from collections.abc import Callable
from typing import Any

from jtasks.distributed import processes


class Compiled:
    """A jitted function of (state, batch), compiled once for each shape that batches have; the state keeps its own.

    The processes of a run then wait for each other: machines that are not alike compile at different speeds, and a
    program's collectives find each other only if all come within half a minute.
    """

    def __init__(
        self, function: Any, compiling: Callable[[], contextlib.AbstractContextManager[Any]] = contextlib.nullcontext
    ):
        self.function, self.compiling = function, compiling
        self.programs: dict[Any, Any] = {}

    def __call__(self, state: Any, batch: Any) -> Any:
        """What the function returns."""
        return self.program(state, batch)(state, batch)

    def program(self, state: Any, batch: Any) -> Any:
        """The program for batches like this one; `compiling()` is entered while it is made."""
        shape = tuple((name, x.shape) for name, x in batch.items())
        if shape not in self.programs:
            with self.compiling():
                self.programs[shape] = self.function.lower(state, batch).compile()
                _return_memory()
                processes.barrier()
        return self.programs[shape]


def _return_memory() -> None:
    """Give what the compiler has freed back to the system, where glibc would keep it: hundreds of megabytes."""
    with contextlib.suppress(OSError, AttributeError, TypeError):  # another system, another C library
        ctypes.CDLL(None).malloc_trim(0)
