"""How long a save holds the loop: an asynchronous save of a state against one that is waited for.

  python benchmarks/save.py [--megabytes=100] [--runs=7]

Prints one JSON line: medians of the seconds until `Checkpoints.save` returns, and until all is on disk
(arrays, checksums, the final name), and their ratio.
"""

import argparse
import json
import pathlib
import statistics
import tempfile
import time

import jax


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--megabytes", type=int, default=100)
    parser.add_argument("--runs", type=int, default=7)
    flags = parser.parse_args()
    from jtasks.run import checkpoint_writer

    # Random numbers: Orbax compresses, and constants would take no time to write.
    shape = (flags.megabytes * 250_000 // 16,)
    arrays = {f"layer_{i}": jax.random.normal(jax.random.key(i), shape) for i in range(16)}
    jax.block_until_ready(arrays)
    held, whole = [], []
    with tempfile.TemporaryDirectory() as folder, checkpoint_writer.Checkpoints(pathlib.Path(folder)) as checkpoints:
        for run in range(1, flags.runs + 2):
            begun = time.perf_counter()
            checkpoints.save(arrays, run, expendable=[run - 1])
            held.append(time.perf_counter() - begun)
            checkpoints.wait()
            whole.append(time.perf_counter() - begun)
    # The first save also sets up Orbax's threads.
    asynchronous, synchronous = statistics.median(held[1:]), statistics.median(whole[1:])
    figures = {"held_s": round(asynchronous, 4), "synchronous_s": round(synchronous, 4)}
    print(json.dumps({"case": f"save {flags.megabytes} MB", **figures, "ratio": round(asynchronous / synchronous, 3)}))


if __name__ == "__main__":
    main()
