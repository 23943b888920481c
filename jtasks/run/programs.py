"""The state and the step of a run, built in one place for training, replays, plans and checks."""

import pathlib
from collections.abc import Callable, Collection
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from jtasks import optim
from jtasks.distributed import sharding
from jtasks.run import adapter as adapters
from jtasks.run import checkpoint, preflight
from jtasks.run import step as steps_
from jtasks.run.compile import quick_options
from jtasks.run.job import Job
from jtasks.run.step import Batch, State
from jtasks.run.transfer import transfer_params

# Options of XLA for TPUs: sum the gradient of each matrix beside other work, and not those of a layer at its end.
OVERLAP = {
    "xla_enable_async_all_reduce": "true",
    "xla_tpu_enable_async_collective_fusion_fuse_all_reduce": "true",
    "xla_jf_crs_combiner_threshold_in_bytes": "4194304",  # the sums of small gradients stay together
}


class Programs(NamedTuple):
    """The functions of a run, before anything is compiled or allocated."""

    init: Callable[[Batch], Any]  # parameters from the first batch
    create: Callable[[Any], State]  # the state before the first step, from the parameters
    params: Any  # shapes of all parameters, `jax.ShapeDtypeStruct`
    shapes: State  # of `jax.ShapeDtypeStruct`
    shardings: State
    step: Any  # jitted: (state, batch) -> (state, output)
    trainable: Any  # a tree like the trained parameters
    adapter: adapters.Adapter | None  # None: all parameters are trained, except for config.optim.freeze


def build(job: Job, batch: Batch, steps: int, whole: Collection[str] | None = None) -> Programs:
    """Return the functions of a run of `steps` for batches like this one, arrays or `jax.ShapeDtypeStruct`.

    With config.adapter, `whole` are the names of the parameters trained whole, or None to find them.
    """
    config = job.config

    def init(batch: Batch) -> Any:
        params = job.task.init(jax.random.key(config.seed), batch, config)
        preflight.check_params(params)
        return params

    try:
        params, heads = adapters.shapes_of(init, batch)
    except Exception as error:
        error.add_note(f"while init made parameters of config.model = {config.model.to_dict()}")
        raise
    adapter = adapters.make(job, params, heads, whole)

    def divide(params: Any) -> tuple[Any, Any]:
        """Return the trained and the frozen parameters."""
        if adapter is None:
            return params, None
        return adapter.trained(params, jax.random.fold_in(jax.random.key(config.seed), 1)), adapter.base(params)

    shapes, base = jax.eval_shape(divide, params)
    optimizer, schedule = optim.optimizer(config.optim, steps, shapes)
    trainable = optim.trainable(config.optim, shapes)

    def create(params: Any) -> State:
        trained, base = divide(params)
        plateau = bool(config.plateau.metric)
        return steps_.init_state(trained, optimizer, ema=config.ema > 0, base=base, plateau=plateau)

    state = jax.eval_shape(create, params)
    shardings = job.shardings(state, shapes if adapter is None else adapters.named(shapes, base))
    step = jax.jit(
        steps_.make_train_step(job.task, config, optimizer, schedule, trainable, job.mesh),
        donate_argnums=0,
        out_shardings=(shardings, sharding.replicated_sharding(job.mesh)),
        compiler_options=compiler_options(job.mesh),
    )
    return Programs(init, create, params, state, shardings, step, trainable, adapter)


def compiler_options(mesh: Mesh) -> dict[str, str]:
    """Return the options with which XLA compiles the step for a mesh."""
    return OVERLAP if mesh.devices.flat[0].platform == "tpu" and mesh.shape.get("fsdp", 1) > 1 else {}


def state_at(
    step: int, program: Programs, job: Job, workdir: pathlib.Path, batch: Batch, say: Callable[[str], None]
) -> State:
    """Return the state saved after `step`, or for step 0 the initial state, with the parameters of config.init_from.

    Raises:
      DamagedError: the checkpoint's content has changed since the save.
    """
    adapter = program.adapter
    if step:
        folder = workdir / "checkpoints" / str(step)
        like = sharding.with_shardings(program.shapes, program.shardings)
        state = checkpoint.restore(folder, like._replace(base=None, lr_factor=None), verify=True)
        if adapter is not None:
            state = state._replace(base=adapters.load_base(job, program.params, adapter, workdir))
        if like.lr_factor is not None:
            state = with_lr_factor(state, 1.0, like.lr_factor.sharding)
        say(f"resumed from step {step} of {workdir}")
        return state
    shardings = job.shardings(program.params, program.params)
    quick = quick_options(job.mesh)
    init = jax.jit(program.init, out_shardings=shardings, compiler_options=quick)
    params = init(batch)  # initialized already sharded
    if job.config.init_from:
        params, taken = transfer_params(job, params)
        for kind, names in taken.items():
            say(f"init_from: {len(names)} parameters {kind}" + "".join(f"\n  {name}" for name in names))
    create = jax.jit(program.create, out_shardings=program.shardings, donate_argnums=0, compiler_options=quick)
    return create(params)


def with_lr_factor(state: State, factor: float, where: jax.sharding.Sharding) -> State:
    """Return the state with another factor of the learning rate, by config.plateau."""
    return state._replace(lr_factor=jax.jit(lambda: jnp.float32(factor), out_shardings=where)())
