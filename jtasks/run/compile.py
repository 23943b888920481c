"""A jitted function, compiled ahead of its first use for each shape of batch."""

import contextlib
import ctypes
from collections.abc import Callable
from typing import Any

from jtasks.distributed import processes


class Compiled:
    """A jitted function of (state, batch), compiled once for each shape of batch; the state's shapes are constant.

    After compiling, the processes of a run wait for each other: unlike machines compile at different speeds, and a
    program's collectives connect only if all processes start the program within half a minute.
    """

    def __init__(
        self, function: Any, compiling: Callable[[], contextlib.AbstractContextManager[Any]] = contextlib.nullcontext
    ):
        self.function, self.compiling = function, compiling
        self.programs: dict[Any, Any] = {}

    def __call__(self, state: Any, batch: Any) -> Any:
        """Call the program compiled for batches like this one."""
        return self.program(state, batch)(state, batch)

    def program(self, state: Any, batch: Any) -> Any:
        """Return the program for batches like this one, compiled inside `compiling()` at first use."""
        shape = tuple((name, x.shape) for name, x in batch.items())
        if shape not in self.programs:
            with self.compiling():
                self.programs[shape] = self.function.lower(state, batch).compile()
                _return_memory()
                processes.barrier()
        return self.programs[shape]


def _return_memory() -> None:
    """Return the memory that the compiler freed to the system: glibc would keep hundreds of megabytes."""
    with contextlib.suppress(OSError, AttributeError, TypeError):  # another system, another C library
        ctypes.CDLL(None).malloc_trim(0)
