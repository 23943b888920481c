"""Read checkpoints through Orbax: restore a state strictly, import the parameters that fit.

Restoring verifies the checksums in threads beside the one that reads the arrays, so the disk is read once.
Checkpoints are written by `checkpoint_writer`, which shares Orbax's options with this module.
"""

import concurrent.futures
import contextlib
import gc
import os
import pathlib
import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jtasks import storage
from jtasks.distributed import processes
from jtasks.errors import CheckpointError, DamagedError
from jtasks.faults import some
from jtasks.run import checkpoint_files
from jtasks.tree import leaf_name

# Host memory of a restore beyond the state itself: about HOST_BYTES, or one shard if that is larger; of a save about
# three shards, two of them in flight.
HOST_BYTES = 2**28
# Largest chunk of an array in a checkpoint. Chunks are compressed in parallel, and none waits for a whole array. The C
# library returns a block of 32 MiB or more to the system at once, and may keep a smaller one.
CHUNK_BYTES = 2**26


def restore(folder: pathlib.Path, like: Any, only: str = "", *, verify: bool = False) -> Any:
    """Restore the state saved in `folder`, with the structure, shapes, types and shardings of `like`.

    Args:
      folder: the checkpoint.
      like: shapes, types and shardings.
      only: a prefix of paths such as "params/": only that part of the checkpoint must fit.
      verify: whether to compare the large files with their checksums meanwhile; each process reads its share.

    Raises:
      CheckpointError: leaves are missing, extra, or of another shape or type; all are listed.
      DamagedError: the content of a file has changed; all processes raise it.
    """
    wanted = leaves(like)
    saved = {name: leaf for name, leaf in _saved_leaves(folder).items() if name.startswith(only)}
    problems = [f"missing: {name} {_describe(wanted[name])}" for name in wanted if name not in saved]
    problems += [f"not in this run: {name} {_describe(saved[name])}" for name in saved if name not in wanted]
    problems += [
        f"{name} is {_describe(saved[name])}, expected {_describe(wanted[name])}"
        for name in wanted
        if name in saved and _describe(saved[name]) != _describe(wanted[name])
    ]
    if problems:
        raise CheckpointError(
            f"checkpoint {folder} does not fit this config:\n  " + "\n  ".join(problems) + "\nuse another workdir, or"
            " config.init_from to take over the parameters that fit"
        )
    with _verified(folder) if verify else contextlib.nullcontext():
        arrays = _read(folder, wanted, saved)
    paths, structure = jax.tree_util.tree_flatten_with_path(like)
    restored = [arrays[leaf_name(path)] if leaf.size else jnp.zeros(leaf.shape, leaf.dtype) for path, leaf in paths]
    return jax.tree.unflatten(structure, restored)


@contextlib.contextmanager
def _verified(folder: pathlib.Path) -> Iterator[None]:
    """Compare the large files of a checkpoint with their checksums while the block reads them.

    Raises DamagedError, in place of an error of the block, on all processes if any of them found a difference.
    """
    share = checkpoint_files.large_files(folder, jax.process_index(), jax.process_count())
    with concurrent.futures.ThreadPoolExecutor(1, "verify") as pool:
        verification = pool.submit(checkpoint_files.changed, folder, share)
        failure: Exception | None = None
        try:
            yield
        except Exception as error:  # Orbax's, perhaps about the damage
            failure = error
        try:
            problems = verification.result()
        except OSError as error:
            problems = [str(error)]
    reports = processes.gather("damage", problems)
    problems = processes.broadcast_from_first(lambda: sorted(problem for report in reports for problem in report))
    if problems:
        raise DamagedError(checkpoint_files.describe_damage(folder, problems)) from failure
    if failure is not None:
        raise failure


def arrays(folder: pathlib.Path) -> dict[str, np.ndarray]:
    """Return all arrays of a checkpoint by "/"-joined path, in host memory, for tools that inspect or compare them."""
    import orbax.checkpoint as ocp

    like = dict.fromkeys(_saved_leaves(folder), ocp.RestoreArgs(restore_type=np.ndarray))
    handler = ocp.PyTreeCheckpointHandler(**multiprocessing_options())
    with plain(folder.parent) as place, ocp.Checkpointer(handler, **multiprocessing_options()) as checkpointer:
        return checkpointer.restore(place / folder.name, args=ocp.args.PyTreeRestore(restore_args=like))


def import_params(source: str, params: Any, warn: Callable[[str], None]) -> tuple[Any, dict[str, list[str]]]:
    """Take from a checkpoint the parameters that fit by name and shape.

    Args:
      source: a workdir, its `checkpoints` folder, or one `checkpoints/STEP`.
      params: the parameters as initialized; leaves that do not fit stay as they are.

    Returns:
      The parameters, and the names that were `taken`, `left` as initialized, and `unused` of the checkpoint.
    """
    folder, prefix, saved = _saved_params(source, warn)
    wanted = leaves(params)
    taken = {n: leaf for n, leaf in wanted.items() if n in saved and _describe(saved[n]) == _describe(leaf)}
    if not taken:
        there, here = ([f"{n} {_describe(leaf)}" for n, leaf in of.items()] for of in (saved, wanted))
        raise CheckpointError(
            f"no parameter of config.init_from={source} fits: it has {some(there)}; wanted {some(here)}"
        )
    read = _read(folder, {prefix + n: leaf for n, leaf in taken.items()}, {prefix + n: x for n, x in saved.items()})
    arrays = {n.removeprefix(prefix): array for n, array in read.items()}
    paths, structure = jax.tree_util.tree_flatten_with_path(params)
    report = {
        "taken": list(taken),
        "left": [f"{n} {_describe(leaf)}" for n, leaf in wanted.items() if n not in taken],
        "unused": [f"{n} {_describe(leaf)}" for n, leaf in saved.items() if n not in taken],
    }
    return jax.tree.unflatten(structure, [arrays.get(leaf_name(path), leaf) for path, leaf in paths]), report


def absent_params(source: str, params: Any, warn: Callable[[str], None]) -> set[str]:
    """Return the names of the parameters, or of their shapes, that `import_params` would leave as initialized."""
    _, _, saved = _saved_params(source, warn)
    return {n for n, leaf in leaves(params).items() if n not in saved or _describe(saved[n]) != _describe(leaf)}


def _saved_params(source: str, warn: Callable[[str], None]) -> tuple[pathlib.Path, str, dict[str, Any]]:
    """Return the checkpoint that config.init_from means, and the prefix and the shapes of its parameters by name."""
    folder, named = checkpoint_files.locate(source)
    step = processes.broadcast_from_first(
        lambda: (checkpoint_files.require(folder, int(named)) if named else checkpoint_files.newest(folder, warn)) or 0
    )
    if not step:
        raise CheckpointError(
            f"no checkpoint in config.init_from={source}: give a workdir of a run, or checkpoints/STEP"
        )
    folder = folder / str(step)
    saved = _saved_leaves(folder)
    prefix = "ema_params/" if any(name.startswith("ema_params/") for name in saved) else "params/"
    return folder, prefix, {name.removeprefix(prefix): leaf for name, leaf in saved.items() if name.startswith(prefix)}


def leaves(tree: Any) -> dict[str, Any]:
    """Return the leaves by "/"-joined path, without empty arrays, which Orbax refuses."""
    return {leaf_name(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(tree) if leaf.size}


def _saved_leaves(folder: pathlib.Path) -> Mapping[str, Any]:
    import orbax.checkpoint as ocp

    storage.fetch(folder)
    with plain(folder.parent) as place, ocp.StandardCheckpointer(**multiprocessing_options()) as checkpointer:
        return dict(checkpointer.metadata(place / folder.name).item_metadata.tree)


def _read(folder: pathlib.Path, wanted: Mapping[str, Any], saved: Mapping[str, Any]) -> dict[str, jax.Array]:
    """Read only the `wanted` leaves, each onto its own sharding, of those that are `saved`."""
    import orbax.checkpoint as ocp

    like = {n: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding) for n, x in wanted.items()}
    sizes = {name: _read_bytes(saved[name], x.sharding.shard_shape(x.shape)) for name, x in like.items()}
    # A damaged file may stop one process: none waits for another here.
    alone = multiprocessing_options({jax.process_index()})
    handler = ocp.PyTreeCheckpointHandler(restore_concurrent_gb=gigabytes(max(HOST_BYTES, *sizes.values())), **alone)
    # Two groups of half the bytes are read at once: at the end of one, which waits for a last chunk, no core is idle.
    at_once = 2 if max(sizes.values(), default=0) <= HOST_BYTES // 2 else 1

    def read(names: list[str]) -> dict[str, jax.Array]:
        part = {name: like[name] for name in names}
        arguments = ocp.args.PyTreeRestore(
            part, restore_args=ocp.checkpoint_utils.construct_restore_args(part), partial_restore=True
        )
        arrays: dict[str, jax.Array] = jax.block_until_ready(checkpointer.restore(place / folder.name, args=arguments))
        gc.collect(0)  # JAX then lets go of the host's copies of arrays that are on their devices
        return arrays

    with (
        plain(folder.parent) as place,
        ocp.Checkpointer(handler, **alone) as checkpointer,
        concurrent.futures.ThreadPoolExecutor(at_once, "restore") as pool,
    ):
        parts = list(pool.map(read, _groups(sizes, HOST_BYTES // at_once)))
    return {name: array for part in parts for name, array in part.items()}


def _groups(sizes: Mapping[str, int], limit: int) -> list[list[str]]:
    """Group names in their order: a group is full once it has `limit` bytes."""
    groups: list[list[str]] = [[]]
    for name, size in sizes.items():
        if groups[-1] and sum(sizes[n] for n in groups[-1]) + size > limit:
            groups.append([])
        groups[-1].append(name)
    return groups


def gigabytes(largest: int) -> float:
    """Return Orbax's limit of bytes in flight, in GB, which must exceed the `largest` shard."""
    return max(CHUNK_BYTES, largest + 1) / 1e9


def _read_bytes(saved: Any, shard: tuple[int, ...]) -> int:
    """Return an upper bound of the bytes of the chunks that overlap a shard."""
    size: int = saved.dtype.itemsize
    for length, part, chunk in zip(saved.shape, shard, saved.storage.chunk_shape or shard, strict=True):
        size *= chunk * min((part + chunk - 2) // chunk + 1, -(-length // chunk))
    return size


@contextlib.contextmanager
def plain(folder: pathlib.Path) -> Iterator[pathlib.Path]:
    r"""Yield a path of the folder that Orbax and TensorStore read literally.

    Both take [ ] and \ for parts of a pattern, match nothing, and report that only on restore. Both refuse `gs:` and
    bytes that are not UTF-8. An open folder has a second path, under /proc/self/fd, without these characters.
    """
    path = folder.absolute()
    if re.fullmatch(r"[\w /.,=+@~^%-]*", str(path)) or not pathlib.Path("/proc/self/fd").is_dir():
        yield path
        return
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        yield pathlib.Path(f"/proc/self/fd/{descriptor}")
    finally:
        os.close(descriptor)


def multiprocessing_options(active: set[int] | None = None, *, apart: bool = False) -> dict[str, Any]:
    """Return options that name the processes to Orbax, by default all; its own default needs equally many devices.

    With `apart`, every process makes and finishes the folder on a file system of its own.
    """
    import orbax.checkpoint as ocp

    active = active or set(range(jax.process_count()))
    primary = None if apart else 0
    options = ocp.options.MultiprocessingOptions(active_processes=active, primary_host=primary)
    return {"multiprocessing_options": options}


def _describe(leaf: Any) -> str:
    return f"{jnp.dtype(leaf.dtype).name}{list(leaf.shape)}"
