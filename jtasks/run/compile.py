"""A jitted function, compiled ahead of its first use for each shape of batch."""

import concurrent.futures
import contextlib
import ctypes
import os
from collections.abc import Callable
from typing import Any

import jax
import jaxlib

from jtasks.distributed import processes

# For programs that run once. On a CPU the initial parameters take less than half the time to compile, no longer to
# compute, and have the same bits.
_QUICK = {
    "xla_backend_optimization_level": 1,
    "xla_llvm_disable_expensive_passes": True,
    "xla_cpu_parallel_codegen_split_count": 1,
}
if jaxlib.version.__version_info__ < (0, 11, 1):  # later versions have one way to compile, and refuse the option
    _QUICK["xla_cpu_use_fusion_emitters"] = False


def quick_options(mesh: jax.sharding.Mesh) -> dict[str, Any]:
    """Return `compiler_options` of `jax.jit` for a program that runs once: {} unless the mesh is of CPUs.

    Options that the environment gives the compiler, as tests do, stay as they are.
    """
    on_cpu = mesh.devices.flat[0].platform == "cpu"
    return _QUICK if on_cpu and not {"XLA_FLAGS", "JAX_DISABLE_MOST_OPTIMIZATIONS"} & os.environ.keys() else {}


class Compiled:
    """A jitted function of (state, batch), compiled once for each shape of batch; the state's shapes are constant.

    Types are part of a shape: examples of lists may give a batch of whole numbers, and the next of others.

    After compiling, the processes of a run wait for each other: unlike machines compile at different speeds, and a
    program's collectives connect only if all processes start the program within half a minute.
    """

    def __init__(
        self, function: Any, compiling: Callable[[], contextlib.AbstractContextManager[Any]] = contextlib.nullcontext
    ):
        self.function, self.compiling = function, compiling
        self.programs: dict[Any, Any] = {}
        self.started: dict[Any, concurrent.futures.Future[Any]] = {}

    def __call__(self, state: Any, batch: Any) -> Any:
        """Call the program compiled for batches like this one."""
        return self.program(state, batch)(state, batch)

    def shapes(self, state: Any, batch: Any) -> Any:
        """Return the shapes of the results. JAX keeps the trace, so that `start` and `program` need no other."""
        return self.function.eval_shape(state, batch)

    def start(self, state: Any, batch: Any) -> None:
        """Trace the function here, and compile it in another thread; `program` waits for that thread.

        Does nothing in a run of several processes, whose compilers may wait for each other and so need one order.

        Args:
          state: arrays or `jax.ShapeDtypeStruct` with shardings.
          batch: the same.
        """
        shape = _shape(batch)
        if processes.alone() and shape not in self.programs and shape not in self.started:
            lowered = self.function.lower(state, batch)
            compiler = concurrent.futures.ThreadPoolExecutor(1, "compiler")
            self.started[shape] = compiler.submit(lowered.compile)
            compiler.shutdown(wait=False)

    def program(self, state: Any, batch: Any) -> Any:
        """Return the program for batches like this one, compiled inside `compiling()` at first use."""
        shape = _shape(batch)
        if shape not in self.programs:
            with self.compiling():
                started = self.started.pop(shape, None)
                self.programs[shape] = started.result() if started else self.function.lower(state, batch).compile()
                _return_memory()
                processes.barrier()
        return self.programs[shape]


def _shape(batch: Any) -> Any:
    return tuple((name, x.shape, x.dtype) for name, x in batch.items())


def _return_memory() -> None:
    """Return the memory that the compiler freed to the system: glibc would keep hundreds of megabytes."""
    with contextlib.suppress(OSError, AttributeError, TypeError):  # another system, another C library
        ctypes.CDLL(None).malloc_trim(0)
