"""The state and the step of a run, built in one place for training, replays, plans and checks."""

import pathlib
from collections.abc import Callable
from typing import Any, NamedTuple

import jax

from jtasks import optim
from jtasks.distributed import sharding
from jtasks.run import checkpoint, preflight
from jtasks.run import step as steps_
from jtasks.run.job import Job
from jtasks.run.step import Batch, State
from jtasks.run.transfer import transfer_params


class Programs(NamedTuple):
    """The functions of a run, before anything is compiled or allocated."""

    init: Callable[[Batch], Any]  # parameters from the first batch
    create: Callable[[Any], State]  # the state before the first step, from the parameters
    shapes: State  # of `jax.ShapeDtypeStruct`
    shardings: State
    step: Any  # jitted: (state, batch) -> (state, output)
    trainable: Any  # a tree like the parameters


def build(job: Job, batch: Batch, steps: int) -> Programs:
    """Return the functions of a run of `steps` for batches like this one, arrays or `jax.ShapeDtypeStruct`."""
    config = job.config

    def init(batch: Batch) -> Any:
        params = job.task.init(jax.random.key(config.seed), batch, config)
        preflight.check_params(params)
        return params

    try:
        shapes = jax.eval_shape(init, batch)
    except Exception as error:
        error.add_note(f"while init made parameters of config.model = {config.model.to_dict()}")
        raise
    optimizer, schedule = optim.optimizer(config.optim, steps, shapes)
    trainable = optim.trainable(config.optim, shapes)

    def create(params: Any) -> State:
        return steps_.init_state(params, optimizer, ema=config.ema > 0)

    state = jax.eval_shape(create, shapes)
    shardings = job.shardings(state, shapes)
    step = jax.jit(
        steps_.make_train_step(job.task, config, optimizer, schedule, trainable, job.mesh),
        donate_argnums=0,
        out_shardings=(shardings, sharding.replicated_sharding(job.mesh)),
    )
    return Programs(init, create, state, shardings, step, trainable)


def state_at(
    step: int, program: Programs, job: Job, workdir: pathlib.Path, batch: Batch, say: Callable[[str], None]
) -> State:
    """Return the state saved after `step`, or for step 0 the initial state, with the parameters of config.init_from.

    Raises:
      DamagedError: the checkpoint's content has changed since the save.
    """
    if step:
        folder = workdir / "checkpoints" / str(step)
        like = sharding.with_shardings(program.shapes, program.shardings)
        state = checkpoint.restore(folder, like, verify=True)
        say(f"resumed from step {step} of {workdir}")
        return state
    params = jax.jit(program.init, out_shardings=program.shardings.params)(batch)  # initialized already sharded
    if job.config.init_from:
        params, taken = transfer_params(job, params)
        for kind, names in taken.items():
            say(f"init_from: {len(names)} parameters {kind}" + "".join(f"\n  {name}" for name in names))
    return jax.jit(program.create, out_shardings=program.shardings, donate_argnums=0)(params)
