"""Automatic shares (`config.shares="auto"`): time each device, choose the shares, record them in the run's folder."""

import json
import pathlib
import time
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jtasks.config import Config
from jtasks.console import say
from jtasks.data import pipeline
from jtasks.distributed import processes, sharding
from jtasks.distributed.shares import AGAIN, AUTO, best_shares
from jtasks.run.gradient import gradient_fn
from jtasks.run.job import Job
from jtasks.writing import write_file

FILE = "shares.json"
SECONDS = 0.5  # shortest measurement, of at least three runs


def resolve_shares(job: Job, workdir: pathlib.Path, examples: pipeline.Examples) -> Job:
    """Return the job with numbers in place of automatic shares: those recorded in `workdir`, or newly measured.

    Measures again if the devices or the batch size have changed, or if `config.shares` is "auto!".
    """
    if job.config.shares not in (AUTO, AGAIN):
        return job
    plan = job.plan(examples, shuffle=True)
    known = load_shares(job, workdir) if processes.first() and job.config.shares == AUTO else None
    if processes.broadcast_from_first(lambda: int(known is not None)):
        first = known.config.shares if known else (0,) * job.mesh.size
        shares = tuple(processes.broadcast_from_first(lambda d=d: first[d]) for d in range(job.mesh.size))  # type: ignore[misc]
        say(f"shares {_format_shares(shares)}, as recorded in {workdir / FILE}; config.shares='auto!' measures again")
        return _with_shares(job, shares)
    at = min(plan.shapes(), key=plan.examples)  # the batch of the longest examples
    batch_size = plan.examples(at)
    start, example = time_devices(job, pipeline.batch_at(examples, plan, at, job.collate), batch_size)
    shares, seconds = best_shares(start, example, batch_size)
    equal = float(np.max(start + -(-batch_size // job.mesh.size) * example))
    processes.on_first_process(lambda: record_shares(job, workdir, shares, start, example))
    say(
        f"shares {_format_shares(shares)}: {seconds:.3g} s a step expected, equal ones {equal:.3g} s; recorded in"
        f" {workdir / FILE}"
    )
    return _with_shares(job, shares)


def load_shares(job: Job, workdir: pathlib.Path) -> Job | None:
    """Return the job with the shares that an earlier start measured on the same devices; None if there are none."""
    try:
        record = json.loads((workdir / FILE).read_text(encoding="utf-8")) if job.config.shares in (AUTO, AGAIN) else {}
        same = record["batch"] == _batch(job.config) and record["devices"] == _devices(job)
        return _with_shares(job, tuple(int(share) for share in record["shares"])) if same else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


def time_devices(job: Job, rows: Mapping[str, np.ndarray], batch_size: int) -> tuple[np.ndarray, np.ndarray]:
    """Time a microbatch on each device: seconds of overhead and seconds per example, each [devices].

    Each process times its own devices one by one, on two microbatches cut from the batch `rows`: one as large as in
    equal shares, and one a quarter of that size.
    """
    local = [device for device in job.mesh.devices.flat if device.process_index == jax.process_index()]
    alone = gradient_fn(job.task, _with_shares(job, None).config, None)
    large = -(-batch_size // job.mesh.size)
    small = -(-large // 4)
    params = jax.jit(lambda b: job.task.init(jax.random.key(0), b, job.config))(jax.device_put(dict(rows), local[0]))

    @jax.jit
    def add(params: Any, sums: Any, batch: Any) -> Any:
        return jax.tree.map(jnp.add, sums, alone(params, batch, jax.random.key(0))[0])

    timings = np.zeros((len(local), 2))
    for device, row in zip(local, timings, strict=True):
        copy = jax.device_put(params, device)
        parts = [jax.device_put({k: x[:size] for k, x in rows.items()}, device) for size in (small, large)]
        few, many = (_seconds(add, copy, copy, part) for part in parts)
        # Noise must not make examples free: then any size of microbatch would look as good as another.
        slope = (many - few) / max(large - small, 1)
        row[1] = max(slope, 0.1 * many / large)
        row[0] = max(0.0, many - large * row[1])
    processes.barrier()
    everywhere = _gather(job, timings)
    return everywhere[:, 0], everywhere[:, 1]


def _seconds(function: Callable[..., Any], *arguments: Any) -> float:
    """Return the mean seconds of a call, over SECONDS and at least three calls; a device's pauses count."""
    jax.block_until_ready(function(*arguments))
    begun, runs = time.perf_counter(), 0
    while runs < 3 or time.perf_counter() - begun < SECONDS:
        jax.block_until_ready(function(*arguments))
        runs += 1
    return (time.perf_counter() - begun) / runs


def _gather(job: Job, local: np.ndarray) -> np.ndarray:
    """Gather the rows [devices, ...] of all devices, in the order of the mesh, from those of this process."""
    divided, shape = sharding.batch_sharding(job.mesh), (job.mesh.size, *local.shape[1:])
    rows = sharding.local_rows(divided, len(job.mesh.devices.flat))
    array = sharding.put({"seconds": local.astype(np.float32)}, divided, rows, shape[0])["seconds"]
    whole = jax.jit(lambda x: x, out_shardings=sharding.replicated_sharding(job.mesh))(array)
    return np.asarray(whole.addressable_data(0), np.float64)


def record_shares(
    job: Job, workdir: pathlib.Path, shares: tuple[int, ...], start: np.ndarray, example: np.ndarray
) -> None:
    """Write the shares, with the times and the devices that they follow from."""
    record = {
        "shares": shares,
        "devices": _devices(job),
        "batch": _batch(job.config),
        "seconds_to_start": start.tolist(),
        "seconds_an_example": example.tolist(),
    }
    write_file(workdir / FILE, json.dumps(record, indent=1) + "\n")


def _devices(job: Job) -> list[str]:
    return [f"{device.device_kind} of process {device.process_index}" for device in job.mesh.devices.flat]


def _batch(config: Config) -> list[int]:
    return [config.batch_size, config.batch_tokens]


def _with_shares(job: Job, shares: tuple[int, ...] | None) -> Job:
    return job._replace(config=Config(job.config.to_dict() | {"shares": shares}))


def _format_shares(shares: tuple[int, ...]) -> str:
    return ", ".join(map(str, shares[:16])) + (f", ... ({len(shares)} in all)" if len(shares) > 16 else "")
