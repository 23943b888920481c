"""Write checkpoints through Orbax without holding the loop.

A checkpoint is written as `saving-STEP/`, gets the checksums of its files (Orbax reads a flipped byte without a word)
and is renamed last: see `checkpoint_files`. Each process computes the checksums of the files it wrote, in a thread.
"""

import contextlib
import json
import math
import pathlib
import re
import shutil
import threading
from collections.abc import Collection, Mapping
from typing import Any

import jax

from jtasks import storage
from jtasks.distributed import processes
from jtasks.errors import CheckpointError
from jtasks.run import checkpoint_files
from jtasks.run.checkpoint import CHUNK_BYTES, gigabytes, leaves, multiprocessing_options, plain

SLICE_BYTES = 2**22  # smallest slice of a replicated array that a device saves; one device saves a smaller array whole


class Checkpoints:
    """The writer of a run's checkpoints under `folder`; one save is in progress at a time."""

    def __init__(self, folder: pathlib.Path):
        self.folder = folder.absolute()  # Orbax refuses relative paths
        # Processes with a working copy each write files of their own, which need no merging on one file system.
        self._apart = not processes.alone() and storage.url_of(self.folder) is not None
        self._checkpointer: Any = None  # opened by the first save, whose state it fits
        self._thread: threading.Thread | None = None
        self._error: CheckpointError | None = None
        self._writers: set[int] = set()  # the processes that must have written a part
        self._place = contextlib.ExitStack()  # what `plain` holds open during a save
        processes.before_abort(lambda: checkpoint_files.clear_unfinished(self.folder))

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(self, kind: object, *error: object) -> None:
        with contextlib.nullcontext() if kind is None else contextlib.suppress(CheckpointError):
            self.close()

    def save(
        self, state: Any, step: int, expendable: Collection[int] = (), notes: Mapping[str, str] | None = None
    ) -> None:
        """Copy the state after `step` to the host, write it in the background, then delete the `expendable` steps.

        `notes` are further files of the checkpoint, {name: text}.

        The folder above the checkpoints must exist: a deleted run folder is not created again.

        Raises:
          CheckpointError: the previous save failed, or this one cannot begin.
        """
        import orbax.checkpoint as ocp

        self.wait()
        partial = self.folder / f"saving-{step}"
        try:
            self.folder.mkdir(exist_ok=True)
            self._clear(partial)
            if self._apart and partial.with_name(str(step)).exists():
                self.delete([step])
            self._place.close()
            place = self._place.enter_context(plain(self.folder))
            tree = leaves(state)
            if self._checkpointer is None:
                self._checkpointer = _open_writer(tree, apart=self._apart)
            chunks = dict.fromkeys(tree, ocp.SaveArgs(chunk_byte_size=CHUNK_BYTES))
            self._checkpointer.save(place / partial.name, args=ocp.args.PyTreeSave(tree, save_args=chunks), force=True)
        except (OSError, ValueError) as error:
            self._clear(partial)
            raise CheckpointError(f"step {step} cannot be saved in {self.folder}: {_reason(error)}") from error
        shards = (shard for leaf in tree.values() for shard in leaf.global_shards)
        self._writers = {shard.device.process_index for shard in shards if shard.replica_id == 0}
        self._thread = threading.Thread(
            target=self._commit, args=(partial, step, expendable, notes or {}), name="commit", daemon=True
        )
        self._thread.start()

    def wait(self) -> None:
        """Wait for the save in progress; raises CheckpointError if it failed."""
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        if self._error is not None:
            error, self._error = self._error, None
            raise error

    def close(self) -> None:
        """Wait for the save in progress, and end Orbax's threads."""
        try:
            self.wait()
        finally:
            with contextlib.suppress(Exception):  # Orbax repeats what `wait` has raised
                if self._checkpointer is not None:
                    self._checkpointer.close()
            self._place.close()

    def delete(self, steps: Collection[int]) -> None:
        """Delete finished checkpoints."""
        if jax.process_index() == 0:
            for step in steps:
                storage.remove(self.folder / str(step))
                shutil.rmtree(self.folder / str(step), ignore_errors=True)

    def _commit(self, partial: pathlib.Path, step: int, expendable: Collection[int], notes: Mapping[str, str]) -> None:
        try:
            assert self._checkpointer is not None  # `save` has opened it
            self._checkpointer.wait_until_finished()
            for name, text in notes.items() if jax.process_index() == 0 else ():
                (partial / name).write_text(text, encoding="utf-8")
            own = self._own_files(partial)
            sums = checkpoint_files.checksums(partial, own)
            checkpoint_files.flush(partial, own)
            if self._apart and jax.process_index():
                storage.send(partial, self.folder / str(step), own)
                shutil.rmtree(partial, ignore_errors=True)
            parts = processes.gather("checksums", sums)
            if jax.process_index() == 0:
                self._require_parts(partial)
                sums = {name: entry for part in parts for name, entry in part.items()}
                (partial / checkpoint_files.CHECKSUMS).write_text(json.dumps(sums), encoding="utf-8")
                checkpoint_files.flush(partial, [checkpoint_files.CHECKSUMS])
                shutil.rmtree(self.folder / str(step), ignore_errors=True)
                partial.rename(self.folder / str(step))
                checkpoint_files.flush_one(self.folder)
                storage.publish(self.folder / str(step), whole=not self._apart)
            self.delete(expendable)
        except BaseException as error:
            self._clear(partial)
            text = f"step {step} was not saved in {self.folder}: {_reason(error)}"
            if not processes.alone():  # Orbax keeps the other processes waiting for this one
                processes.end(f"error: {text}", 1)
            self._error = CheckpointError(text)  # raised in the loop, by wait()
            self._error.__cause__ = error

    def _own_files(self, partial: pathlib.Path) -> list[str]:
        """Return the names of the files that this process has written, and is the only one to have written."""
        names, own = checkpoint_files.files(partial), jax.process_index()
        if self._apart:  # every process has written the description of each array
            return [name for name in names if not own or checkpoint_files.is_chunk(name)]
        return [name for name in names if checkpoint_files.writer(name) == own]

    def _require_parts(self, partial: pathlib.Path) -> None:
        """Raise CheckpointError if a process's part is missing: its folder of this name may be another one."""
        if self._apart:
            return
        missing = [i for i in sorted(self._writers) if not (partial / f"ocdbt.process_{i}").is_dir()]
        if missing:
            raise CheckpointError(f"the part of process {', '.join(map(str, missing))} is not in {partial.parent}")

    def _clear(self, partial: pathlib.Path) -> None:
        """Delete what a failed save left, also under Orbax's name for unfinished saves: the disk may be full."""
        if jax.process_index() == 0:
            for name in (partial.name, f"{partial.name}.orbax-checkpoint-tmp"):
                shutil.rmtree(self.folder / name, ignore_errors=True)


def _open_writer(tree: Mapping[str, jax.Array], *, apart: bool) -> Any:
    """Return a writer of states like `tree`, by processes with files of their own if `apart`.

    Without a limit on the bytes in flight, Orbax holds the whole compressed state in memory until the end.
    """
    import orbax.checkpoint as ocp

    options, primary = multiprocessing_options(apart=apart), None if apart else 0
    # By default each replica of an array saves a slice of it, and each shape's slicing is compiled for that.
    arrays = ocp.type_handlers.ArrayHandler(min_slice_bytes_for_replica_parallel=SLICE_BYTES, primary_host=primary)
    registry = ocp.type_handlers.create_type_handler_registry((jax.Array, arrays))
    largest = max((x.dtype.itemsize * math.prod(x.sharding.shard_shape(x.shape)) for x in tree.values()), default=0)
    handler = ocp.PyTreeCheckpointHandler(
        use_ocdbt=not apart, type_handler_registry=registry, save_concurrent_gb=gigabytes(2 * largest), **options
    )
    return ocp.AsyncCheckpointer(handler, **options)


def _reason(error: BaseException) -> str:
    """Return the reason in an error of Orbax or TensorStore, without the libraries' own source locations."""
    line = (str(error).strip() or type(error).__name__).splitlines()[0]
    return re.sub(r" \[[^]]*\]$", "", line).rpartition('": ')[2]
