"""Every test runs on eight fake CPU devices, with rank promotion an error."""

import gc
import os
import pathlib
import tempfile

import jaxlib.version

# Tests compile more than they compute. With these settings XLA compiles the gradient of a small GPT in a tenth of the
# time. Variables that are set already stay: XLA_FLAGS= JAX_DISABLE_MOST_OPTIMIZATIONS=0 pytest.
os.environ.setdefault("JAX_DISABLE_MOST_OPTIMIZATIONS", "1")
os.environ.setdefault(
    "XLA_FLAGS",
    "--xla_cpu_parallel_codegen_split_count=1"
    # Later versions end at a flag that they do not know.
    + (" --xla_cpu_use_fusion_emitters=false" if jaxlib.version.__version_info__ < (0, 11, 1) else ""),
)

import hypothesis
import jax
import pytest

# How long an example takes is no claim: a busy machine would fail it.
hypothesis.settings.register_profile("untimed", deadline=None)
hypothesis.settings.load_profile("untimed")

jax.config.update("jax_platforms", "cpu")
jax.config.update("jax_num_cpu_devices", 8)
jax.config.update("jax_numpy_rank_promotion", "raise")

# Tests leave the user's cache alone; one compilation cache serves the runs of a whole session.
if "PYTEST_XDIST_WORKER" not in os.environ:  # workers share the folder of the process that starts them
    CACHE = tempfile.TemporaryDirectory(prefix="jtasks-tests-")
    os.environ.update(XDG_CACHE_HOME=CACHE.name, JTASKS_DATA=f"{CACHE.name}/data")

# What one test compiled serves the next; each process that tests has a folder of its own, as writes are not atomic.
jax.config.update("jax_compilation_cache_dir", f"{os.environ['XDG_CACHE_HOME']}/{os.getpid()}")
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)

# Tracing makes many objects. At Python's threshold of 700 the collector takes a tenth of the time.
gc.set_threshold(10_000)

SHARED = pathlib.Path(__file__).resolve().parents[2] / "shared"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Begin with the documentation: its pages take longest, and one process runs them all in one folder."""
    items.sort(key=lambda item: item.path.name != "test_docs.py")


@pytest.fixture(scope="session")
def shared() -> pathlib.Path:
    """The folder of real data beside the repository; tests that need it are skipped without it."""
    if not SHARED.is_dir():
        pytest.skip(f"no real data here: {SHARED} is absent")
    return SHARED
