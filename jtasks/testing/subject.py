"""The task under test at small scale: one batch, its parameters, and functions compiled once."""

import contextlib
import dataclasses
import functools
from collections.abc import Callable, Iterator, Mapping
from types import ModuleType
from typing import Any
from unittest import mock

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
from jax.sharding import AxisType, Mesh

from jtasks import config as configs
from jtasks import task as tasks
from jtasks.config import Config
from jtasks.data import pipeline
from jtasks.data.batch_plan import BatchPlan
from jtasks.distributed import sharding
from jtasks.metrics import Mean, terms
from jtasks.run import batch_gradient, programs
from jtasks.run.gradient import exact_gradient
from jtasks.run.job import Job, total_steps
from jtasks.tree import by_name, leaf_name

Tree = Any
Batch = dict[str, jax.Array]
Metrics = dict[str, Mean]
Measured = tuple[Tree, Metrics]  # the gradient and the metrics, as in a training step
Measure = Callable[[Tree, Batch, jax.Array], Measured]

MICROBATCHES = 4


def mesh_of(devices: list[Any]) -> Mesh:
    """Make a mesh of these devices with one axis, `data`."""
    return Mesh(np.array(devices), ("data",), axis_types=(AxisType.Auto,))


def rows() -> int:
    """Return the size of the kit's batches: at least 16, divisible by devices and microbatches."""
    parts = int(np.lcm(MICROBATCHES, jax.local_device_count()))
    return -(-16 // parts) * parts


def small(config: Any, task: ModuleType) -> Config:
    """Return the config for the checks: all fields, the kit's batch size, no buckets, float32, no adapter.

    Rounding in float32 is too small to hide a fault.
    """
    given = config.to_dict()
    fields = _merge(configs.defaults(given.get("optim", {}).get("name", "adamw"), tasks.fields(task)).to_dict(), given)
    ours = {"batch_size": rows(), "batch_tokens": 0, "accumulate": 1, "shares": None, "precision": "float32"}
    ours["adapter"] = configs.defaults().adapter.to_dict()  # the task does not know of an adapter
    return Config(fields | ours | {"task": fields["task"]})


def _merge(under: dict[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    both = {name: _merge(under[name], over[name]) for name in over if isinstance(under.get(name), dict)}
    return under | dict(over) | both


@dataclasses.dataclass
class Subject:
    """A task that has the contract's shape, with values that the checks share."""

    job: Job  # on one device
    examples: pipeline.Examples
    params: Tree
    globals_: dict[str, str]  # the module's variables before any function ran
    impure: bool = False  # True once a repeated call or trace gave other numbers

    @property
    def task(self) -> ModuleType:
        """The module under test."""
        return self.job.task

    @property
    def config(self) -> Config:
        """The small config."""
        return self.job.config

    @property
    def losses(self) -> tuple[str, ...]:
        """Names of the loss's terms."""
        return tuple(terms(self.first[1]))

    @property
    def mixes(self) -> bool:
        """Whether the task's loss compares the examples of a batch with each other."""
        return self.splits_nothing or hasattr(self.task, "batch_loss_fn")

    @property
    def splits_nothing(self) -> bool:
        """Whether the task declares that its loss cannot be split into microbatches."""
        return bool(getattr(self.task, "MIXES_EXAMPLES", False))

    @functools.cached_property
    def plan(self) -> BatchPlan:
        """The order of training."""
        return self.job.plan(self.examples, shuffle=True)

    @functools.cached_property
    def batch(self) -> Batch:
        """The first batch of training."""
        return self.job.batch_at(self.examples, self.plan, 0)

    @functools.cached_property
    def program(self) -> programs.Programs:
        """The functions of a run, built once."""
        return self.build()

    def build(self) -> programs.Programs:
        """Build the functions of a run, with a newly jitted step."""
        return programs.build(self.job, self.batch, max(1, total_steps(self.config, self.plan)))

    @functools.cached_property
    def perturbed(self) -> Tree:
        """Other parameters of similar size, so that nothing is zero only by its initialization."""
        return self.perturbation(1)

    def perturbation(self, seed: int) -> Tree:
        """Return the parameters plus noise of half their size, made on the host to avoid compiling."""
        draw = np.random.default_rng(seed).standard_normal

        def noisy(x: np.ndarray) -> np.ndarray:
            size = max(float(np.sqrt(np.mean(np.square(x)))), 0.02) if x.size else 0.0
            return x + 0.5 * size * draw(x.shape, np.float32)

        return jax.device_put(
            jax.tree.map(noisy, jax.device_get(self.params)), sharding.replicated_sharding(self.job.mesh)
        )

    @functools.cached_property
    def measure(self) -> Measure:
        """The exact gradient and the metrics, compiled once."""
        return self.measurement(self.config)

    def measurement(self, config: Config, microbatches: int = 1) -> Any:
        """Return a newly jitted function (params, batch, rng) -> (exact gradient, metrics)."""
        functions = batch_gradient.functions(self.task, config)
        if functions and microbatches > 1:
            split = functools.partial(batch_gradient.exact_gradient, functions, microbatches=microbatches)
            return jax.jit(lambda p, b, rng: split(p, b, rng))
        return jax.jit(lambda p, b, rng: exact_gradient(self.loss(config), p, b, rng, microbatches=microbatches))

    def loss(self, config: Config) -> Any:
        """Return the task's loss_fn as a function (params, batch, rng) -> (loss, metrics)."""
        return lambda params, batch, rng: tasks.loss_fn(self.task)(params, batch, rng, config)

    @functools.cached_property
    def first(self) -> Measured:
        """The result of the very first call."""
        return jax.device_get(self.measure(self.params, self.batch, key(0)))

    @functools.cached_property
    def evaluate(self) -> Any:
        """The task's eval_fn, compiled once per batch size."""
        return self.evaluation()

    def evaluation(self) -> Any:
        """Return a newly jitted eval_fn."""
        return jax.jit(lambda params, batch: tasks.eval_fn(self.task)(params, batch, self.config))

    @functools.cached_property
    def predict(self) -> Any:
        """The task's predict_fn, compiled once."""
        return self.prediction()

    def prediction(self) -> Any:
        """Return a newly jitted predict_fn."""
        return jax.jit(lambda params, batch, rng: self.task.predict_fn(params, batch, rng, self.config))

    @functools.cached_property
    def random(self) -> bool:
        """Whether loss_fn draws from `rng`."""
        other = jax.device_get(self.measure(self.params, self.batch, key(1)))
        return not same(self.first, other)

    @functools.cached_property
    def dropout(self) -> list[str]:
        """Fields of the config that switch dropout on."""
        return [name for name, value in configs.fields(self.config) if "drop" in name.rpartition(".")[2] and value]

    @functools.cached_property
    def quiet_config(self) -> Config:
        """The config with dropout switched off where loss_fn draws from `rng`, so that splits can be compared."""
        if not self.random or not self.dropout:
            return self.config
        full = ml_collections.ConfigDict(self.config)
        with full.unlocked():
            for name in self.dropout:
                *parents, last = name.split(".")[1:]
                node = functools.reduce(lambda n, parent: n[parent], parents, full)
                node[last] = type(node[last])(0) if isinstance(node[last], bool | int | float) else None
        return Config(full)

    @functools.cached_property
    def quiet(self) -> Measure:
        """`measure` with dropout switched off."""
        return self.measurement(self.quiet_config) if self.quiet_config is not self.config else self.measure

    @functools.cached_property
    def noisy(self) -> bool:
        """Whether numbers depend on `rng` even without dropout, so that only splits by mask can be compared."""
        if not self.random:
            return False
        return not same(*(jax.device_get(self.quiet(self.params, self.batch, key(seed))) for seed in (0, 1)))

    def batches(self, count: int) -> Iterator[Batch]:
        """Yield the first training batches, up to one of another shape than the first."""
        for index in range(count):
            batch = self.job.batch_at(self.examples, self.plan, index)
            if jax.tree.map(jnp.shape, batch) != jax.tree.map(jnp.shape, self.batch):
                return
            yield batch


@contextlib.contextmanager
def one_device(task: ModuleType) -> Iterator[None]:
    """Make JAX list one device to the task within the block, and trace its jitted functions again."""
    answers = {id(f): lambda *_, f=f, **__: f()[:1] for f in (jax.devices, jax.local_devices)}
    answers |= {id(f): lambda *_, **__: 1 for f in (jax.device_count, jax.local_device_count)}
    with contextlib.ExitStack() as stack:
        for module in (jax, task):
            for name_, member in list(vars(module).items()):
                if id(member) in answers:
                    stack.enter_context(mock.patch.object(module, name_, answers[id(member)]))
        clear_traces(task)
        yield
    clear_traces(task)


def clear_traces(task: ModuleType) -> None:
    """Clear the caches of the task's own jitted functions."""
    for member in vars(task).values():
        if hasattr(member, "clear_cache") and callable(member):
            member.clear_cache()


def key(seed: int) -> jax.Array:
    """Return a random key."""
    return jax.random.key(seed)


def keep(batch: Batch, real: np.ndarray) -> Batch:
    """Return the batch with only the rows of `real` [b] unmasked."""
    return batch | {"mask": batch["mask"] * jnp.asarray(real, jnp.float32)}


def pick(batch: Batch, indices: np.ndarray) -> Batch:
    """Return these rows of the batch, each with its seed and mask."""
    return {name: x[jnp.asarray(indices)] for name, x in batch.items()}


def same(a: Tree, b: Tree) -> bool:
    """Return whether two trees are equal bit for bit; NaN equals NaN."""
    return not unequal(a, b)


def unequal(a: Tree, b: Tree, tolerance: float = 0.0) -> list[str]:
    """Return paths of leaves that differ or that one tree lacks; `tolerance` is relative to a leaf's largest value."""
    left, right = (
        {leaf_name(p) or "output": np.asarray(x) for p, x in jax.tree_util.tree_leaves_with_path(t)} for t in (a, b)
    )
    missing = sorted(set(left) ^ set(right))
    return missing + [path for path in left if path in right and not _alike(left[path], right[path], tolerance)]


def _alike(a: np.ndarray, b: np.ndarray, tolerance: float) -> bool:
    if a.shape != b.shape or a.dtype != b.dtype:
        return False
    if np.array_equal(a, b, equal_nan=a.dtype.kind in "fc"):
        return True
    if not tolerance or a.dtype.kind not in "fc":
        return False
    return np.allclose(a, b, rtol=0, atol=tolerance * float(np.max(np.abs(a))), equal_nan=True)


def gradient_difference(a: Tree, b: Tree) -> tuple[float, str]:
    """Return the worst parameter's relative difference of gradients (0 for rounding), and the parameter's name."""
    names = list(by_name(a))
    pairs = [_finite_parts(x, y) for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)]
    whole = np.sqrt(sum(np.sum(np.square(x)) for x, _ in pairs))
    worst = (0.0, "")
    for path, (x, y) in zip(names, pairs, strict=True):
        distance, size = float(np.linalg.norm(x - y)), float(np.linalg.norm(x))
        if not distance <= 2e-4 * size + 1e-5 * whole:
            worst = max(worst, (distance / max(size, 1e-30), path))
    return worst


def _finite_parts(x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return float64 arrays with 0 where both are not finite; where only one is not finite, they differ vastly."""
    good = np.isfinite(x), np.isfinite(y)
    x, y = np.where(good[0], x, 0).astype(np.float64), np.where(good[1], y, 0).astype(np.float64)
    return x, np.where(good[0] == good[1], y, 1e30)


def close(a: Any, b: Any, scale: float = 0.0) -> bool:
    """Return whether two numbers are equal up to float32 rounding of sums; NaN equals NaN."""
    a, b = float(a), float(b)
    return a == b or (np.isnan(a) and np.isnan(b)) or abs(a - b) <= 1e-5 * max(abs(a), abs(b)) + 1e-6 * max(1.0, scale)


def value(mean: Mean) -> float:
    """Return a mean as a number, of an F1 of several classes the mean over them; 0 for an empty mean."""
    total, count = np.float64(mean.total), np.float64(mean.count)
    return float(np.mean(np.where(count == 0, 0.0, total) / np.where(count == 0, 1.0, count)))


def variables(task: ModuleType) -> dict[str, str]:
    """Return the module's own variables as texts short enough to compare."""
    kinds = (bool, int, float, str, list, dict, set, tuple, np.ndarray, type(None), np.random.Generator)
    return {k: repr(v)[:2000] for k, v in vars(task).items() if not k.startswith("__") and isinstance(v, kinds)}
