"""What the command sets for its process before anything is computed: memory, libraries' messages, compiled programs."""

import contextlib
import gc
import os
import signal
import sys
from typing import Any

STOPPING = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)  # signals that ask a run to stop

# What libtpu asks the cloud for. Where it gets no answer, it writes two long lines to stderr.
NO_CLOUD = {"TPU_ACCELERATOR_TYPE": "v5litepod-4", "TPU_WORKER_HOSTNAMES": "localhost"}


def use_huge_pages() -> None:
    """Restart this process with huge pages, a setting that glibc reads from the environment only at the start.

    XLA's CPU backend allocates new scratch memory for each step, and the kernel can take longer to clear pages of
    4 KiB than XLA to compute: benchmarks/README.md has the figures.

    Signals wait meanwhile: while Python starts, it answers Ctrl-C with a traceback.
    """
    tunables = os.environ.get("GLIBC_TUNABLES", "")
    if sys.platform == "linux" and "glibc.malloc.hugetlb" not in tunables:
        os.environ["GLIBC_TUNABLES"] = ":".join(filter(None, [tunables, "glibc.malloc.hugetlb=1"]))
        signal.pthread_sigmask(signal.SIG_BLOCK, STOPPING)
        os.execv(sys.executable, sys.orig_argv)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, STOPPING)


def collect_rarely() -> None:
    """Search for unreachable objects once in 10,000 new ones, not in 700.

    Imports and traces make a million objects that stay: searching them took a fifth of the time to the first step.
    """
    gc.set_threshold(10_000, 10, 10)


def silence_libraries() -> None:
    """Silence libraries' log messages; their warnings stay, and their errors are raised."""
    from logging import CRITICAL, getLogger

    from absl import logging

    logging.set_verbosity(logging.FATAL)
    getLogger("asyncio").setLevel(CRITICAL)
    sys.unraisablehook = _report_unraisable
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")


def silence_libtpu() -> None:
    """Answer libtpu's questions to the cloud on a machine without TPUs, where libtpu would complain of no answer."""
    import jax  # noqa: F401  sets TPU_SKIP_MDS_QUERY where there are no TPUs

    if "TPU_SKIP_MDS_QUERY" in os.environ:
        for name, value in NO_CLOUD.items():
            os.environ.setdefault(name, value)


def _report_unraisable(failure: Any) -> None:
    """Report an error that nothing could catch, unless it comes from TensorStore's callbacks after a failed save."""
    if str(failure.exc_value) != "Event loop is closed":
        sys.__unraisablehook__(failure)


def cache_programs() -> None:
    """Keep compiled programs in JAX_COMPILATION_CACHE_DIR, by default in the user's cache folder."""
    import jax

    from jtasks.data.files import cache_folder

    if not os.environ.get("JAX_COMPILATION_CACHE_DIR"):
        cache = cache_folder() / "compiled"
        with contextlib.suppress(OSError):  # without a writable cache folder, programs are compiled each time
            cache.mkdir(parents=True, exist_ok=True)
            jax.config.update("jax_compilation_cache_dir", str(cache))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.1)
