"""Saving and restoring a large state beside plain Orbax: GB/s, processor time and memory.

  python benchmarks/checkpoint.py [--gigabytes=10] [--rounds=1] [--cold] [--folder=DIR]

Plain Orbax is its StandardCheckpointer, which writes no checksums. Ours is `Checkpoints`, which computes them, and a
restore that verifies them. The sides take turns, A B A B. Every save and every restore is a process of its own, timed
from the call until all is on the disk or on the device. A restore reads what was just written, from the page cache if
the machine's memory holds that; with --cold the files are written back and dropped from the page cache first.

The state is 16 arrays of normal numbers, which Orbax compresses to about 0.9 of their size. A save by plain Orbax needs
twice the size in memory, and the folder (by default in the system's folder for temporary files) the size once.

Prints one JSON line a case; `ratio` is ours over plain, of the medians of the seconds, and `cpu_ratio` of the seconds
of the processor. `beyond` is the largest memory during a save or a restore beyond the state itself, in arrays. A
save on CPUs reads the state in place; on other devices the host's copy of the state comes on top.
"""

import argparse
import json
import os
import pathlib
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable

ARRAYS = 16
SIDES = ("plain", "ours")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gigabytes", type=float, default=10)
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--cold", action="store_true", help="restore from the disk, not from the page cache")
    parser.add_argument("--folder", type=pathlib.Path)
    parser.add_argument("--turn", nargs=2, help=argparse.SUPPRESS)  # save or restore, of a side
    flags = parser.parse_args()
    if flags.turn:
        print(json.dumps(turn(*flags.turn, flags.gigabytes, flags.folder)))
        return
    results: dict[tuple[str, str], list[dict[str, float]]] = {}
    for _ in range(flags.rounds):
        for side in SIDES:
            with tempfile.TemporaryDirectory(dir=flags.folder) as folder:
                for action in ("save", "restore"):
                    if action == "restore" and flags.cold:
                        drop(pathlib.Path(folder))
                    command = [sys.executable, __file__, f"--gigabytes={flags.gigabytes}", f"--folder={folder}"]
                    output = subprocess.run([*command, "--turn", action, side], check=True, stdout=subprocess.PIPE)
                    results.setdefault((action, side), []).append(json.loads(output.stdout))
    for action in ("save", "restore"):
        case: dict[str, object] = {"case": f"{action} {flags.gigabytes:g} GB", "cold": flags.cold}
        plain, ours = (results[action, side] for side in SIDES)
        for side, turns in (("plain", plain), ("ours", ours)):
            seconds = statistics.median(t["seconds"] for t in turns)
            case |= {f"{side}_s": round(seconds, 2), f"{side}_gb_per_s": round(flags.gigabytes / seconds, 3)}
            case[f"{side}_beyond"] = round(max(t["beyond"] for t in turns) / flags.gigabytes * ARRAYS, 2)
        for name, key in (("ratio", "seconds"), ("cpu_ratio", "cpu_seconds")):
            case[name] = round(statistics.median(t[key] for t in ours) / statistics.median(t[key] for t in plain), 3)
        print(json.dumps(case))


def turn(action: str, side: str, gigabytes: float, folder: pathlib.Path) -> dict[str, float]:
    """Save or restore once; returns the seconds, and the gigabytes beyond the state at the peak."""
    import jax
    import numpy as np

    shape = (int(gigabytes * 1e9 / 4 / ARRAYS / 1024), 1024)
    save, restore = {"plain": (save_plain, restore_plain), "ours": (save_ours, restore_ours)}[side]
    tiny = folder / "tiny"  # imports what is imported at the first call, and starts the threads
    save(tiny, {"a": jax.numpy.ones(3)})
    restore(tiny, {"a": like((3,))})
    shutil.rmtree(tiny)
    if action == "save":
        first = jax.random.normal(jax.random.key(0), shape)
        state = {f"layer_{i}": first + i for i in range(ARRAYS)}
        jax.block_until_ready(state)
        del first
        before = reset_peak()
        result = timed(lambda: save(folder / "state", state))
        return result | {"beyond": memory("VmHWM") - before}
    before = reset_peak()
    arrays: dict[str, jax.Array] = {}
    result = timed(lambda: arrays.update(restore(folder / "state", {f"layer_{i}": like(shape) for i in range(ARRAYS)})))
    jax.block_until_ready(arrays)
    result["beyond"] = memory("VmHWM") - before - gigabytes
    assert np.allclose(arrays["layer_7"][::999] - arrays["layer_2"][::999], 5, atol=1e-5)
    return result


def timed(action: Callable[[], object]) -> dict[str, float]:
    begun, used = time.perf_counter(), resource.getrusage(resource.RUSAGE_SELF)
    action()
    seconds, now = time.perf_counter() - begun, resource.getrusage(resource.RUSAGE_SELF)
    return {"seconds": seconds, "cpu_seconds": now.ru_utime + now.ru_stime - used.ru_utime - used.ru_stime}


def like(shape: tuple[int, ...]) -> object:
    import jax

    return jax.ShapeDtypeStruct(shape, "float32", sharding=jax.sharding.SingleDeviceSharding(jax.devices()[0]))


def save_plain(folder: pathlib.Path, state: dict[str, object]) -> None:
    import orbax.checkpoint as ocp

    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(folder.absolute(), state)


def restore_plain(folder: pathlib.Path, state: dict[str, object]) -> dict[str, object]:
    import jax
    import orbax.checkpoint as ocp

    with ocp.StandardCheckpointer() as checkpointer:
        return jax.block_until_ready(checkpointer.restore(folder.absolute(), state))


def save_ours(folder: pathlib.Path, state: dict[str, object]) -> None:
    from jtasks.run import checkpoint_writer

    folder.mkdir()
    with checkpoint_writer.Checkpoints(folder) as checkpoints:
        checkpoints.save(state, 1)


def restore_ours(folder: pathlib.Path, state: dict[str, object]) -> dict[str, object]:
    import jax

    from jtasks.run import checkpoint, checkpoint_files

    step = checkpoint_files.newest(folder, print, whole=False)
    return jax.block_until_ready(checkpoint.restore(folder / str(step), state, verify=True))


def reset_peak() -> float:
    """Let the peak of this process's memory begin here; return the memory now, in gigabytes."""
    pathlib.Path("/proc/self/clear_refs").write_text("5", encoding="utf-8")
    return memory("VmRSS")


def memory(name: str) -> float:
    """Return a figure of /proc/self/status, such as the resident memory, in gigabytes."""
    lines = pathlib.Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 / 1e9 for line in lines if line.startswith(f"{name}:"))


def drop(folder: pathlib.Path) -> None:
    """Write files back and drop them from the page cache."""
    for path in folder.rglob("*"):
        if path.is_file():
            descriptor = os.open(path, os.O_RDONLY)
            os.fsync(descriptor)
            os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
            os.close(descriptor)


if __name__ == "__main__":
    main()
