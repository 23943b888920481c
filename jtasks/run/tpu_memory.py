"""What to change in a config whose step needs more memory than a chip has."""

import math
import re

from jtasks.config import Config
from jtasks.distributed.shares import count_microbatches
from jtasks.run.plan import Planned

USABLE = 0.9  # part of a chip's memory that advice counts on, since estimates of another program are rough


def needed(message: str, arguments: int) -> int | None:
    """Return the bytes that a program needs, from the message of the compiler that refuses it.

    Args:
      message: what the compiler says.
      arguments: bytes of what the program takes, which the message about temporaries leaves out.
    """
    said = re.search(r"Used ([\d.]+)([KMGT]?) of|temporaries \(([\d.]+)([KMGT]?)\) exceeds", message)
    if said is None:
        return None
    number, unit = said.groups()[:2] if said[1] else said.groups()[2:]
    return int(float(number) * 1024 ** "_KMGT".index(unit or "_")) + (0 if said[1] else arguments)


def advice(planned: Planned, total: int | None, chip: float) -> str:
    """Return the changes of the config that need less memory, first those that should be enough.

    Args:
      planned: the step that does not fit.
      total: bytes that it needs on a chip, None if the compiler does not say.
      chip: bytes of memory of a chip.
    """
    config, mesh, arguments = planned.job.config, planned.job.mesh, planned.arguments()
    state, gradient = sum(arguments.values()), arguments["parameters"]
    temporary = None if total is None else total - state
    changes, divided = [], 1.0
    if state + gradient > USABLE * chip / 2 and mesh.shape["fsdp"] < mesh.size:
        count = _fsdp(mesh.shape["fsdp"], mesh.size, (state + gradient) / (USABLE * chip / 2))
        divided = mesh.shape["fsdp"] / count
        changes.append(f"--config.mesh.fsdp={count}, which divides parameters and optimizer among chips")
    elif state + gradient > USABLE * chip:
        changes.append("a topology of more chips, and --config.mesh.fsdp as large")
    if parts := _accumulate(planned, temporary, gradient * divided, USABLE * chip - state * divided):
        with_fsdp = "with it " if divided < 1 else ""
        changes.append(f"{with_fsdp}--config.accumulate={parts}, which takes parts of the batch one after the other")
    if config.precision == "float32":
        changes.append("--config.precision=bfloat16")
    if config.model.get("remat") is False:
        changes.append("--config.model.remat=True")
    return "; ".join([*changes, "a smaller config.batch_size"])


def _fsdp(now: int, chips: int, times: float) -> int:
    """Return the smallest number of chips along fsdp that divides all chips and is `times` as many as now."""
    fits = [count for count in range(now + 1, chips + 1) if chips % count == 0 and count >= times * now]
    return min(fits, default=chips)


def _accumulate(planned: Planned, temporary: int | None, gradient: float, free: float) -> int | None:
    """Return a number of microbatches with which the temporaries fit, None if there is none that does more."""
    config: Config = planned.job.config
    now = count_microbatches(config)
    rows = planned.batch["mask"].shape[0] // (planned.job.mesh.shape["data"] * planned.job.mesh.shape["fsdp"])
    if config.shares is not None or rows <= now:
        return None
    if temporary is None or free <= gradient:
        return min(rows, 2 * now)
    times = max(temporary - gradient, 0) / (free - gradient)  # the sum of gradients stays whole
    return min(rows, now * 2 ** math.ceil(math.log2(max(times, 2))))
