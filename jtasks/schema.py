"""The fields that every config has: one declaration for the table of ranges, and for type checkers and editors."""

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any, get_args, get_origin, get_type_hints

from jtasks.ranges import Field


def field(default: Any, allowed: str | tuple[str, ...] | None = None) -> Any:
    """Declare a field of a config; see `ranges.Field`."""
    return Field(object, allowed, default)


class Group(Mapping[str, Any]):
    """A group of fields, a frozen dict with attributes. At run time it is a `ml_collections.FrozenConfigDict`."""

    if TYPE_CHECKING:

        def __init__(self, fields: Mapping[str, Any]) -> None: ...
        def __getitem__(self, name: str) -> Any: ...
        def __iter__(self) -> Iterator[str]: ...
        def __len__(self) -> int: ...
        def __hash__(self) -> int: ...
        def to_dict(self) -> dict[str, Any]:  # noqa: D102
            ...


class OpenGroup(Group):
    """A group that has further fields, of the task, of its model or of its optimizer."""

    if TYPE_CHECKING:

        def __getattr__(self, name: str) -> Any: ...


class Log(Group):
    """Fields of config.log."""

    to: tuple[str, ...] = field(("tensorboard",))  # wandb, mlflow, MODULE:FUNCTION, FILE.py:FUNCTION


class Check(Group):
    """Fields of config.check."""

    step: int = field(0, "[0, 2e9]")  # for --mode=check: replay the batch of this step; 0: the conformance kit


class Profile(Group):
    """Fields of config.profile."""

    start: int = field(10, "[1, 2e9]")  # first step of a profile, which DIR/profile gets
    steps: int = field(0, "[0, 2e9]")  # number of steps to profile; 0: none


class Stop(Group):
    """Fields of config.stop: end the run once evaluations do not improve any more."""

    metric: str = field("")  # such as "valid/loss"; "": train all steps
    patience: int = field(3, "[1, 2e9]")  # stop after this many evaluations in a row without improvement
    mode: str = field("min", ("min", "max"))  # whether lower or higher is better
    min_delta: float = field(0.0, "[0, inf)")  # a smaller change is no improvement


class Plateau(Group):
    """Fields of config.plateau: lower the learning rate while evaluations do not improve."""

    metric: str = field("")  # such as "valid/loss"; "": off
    factor: float = field(0.5, "(0, 1)")  # of the learning rate, each time that patience ends
    patience: int = field(3, "[1, 2e9]")  # evaluations in a row without improvement
    mode: str = field("min", ("min", "max"))  # whether lower or higher is better
    min_delta: float = field(0.0, "[0, inf)")  # a smaller change is no improvement
    min_factor: float = field(0.0, "[0, 1]")  # smallest product of all factors


class Data(OpenGroup):
    """Fields of config.data."""

    dir: str | None = field(None)  # None: $JTASKS_DATA, else the user's cache folder
    shared: bool = field(True)  # whether all machines see one file system; False: each prepares its data
    threads: int = field(16, "[0, 10000]")  # threads that read ahead data not in memory
    workers: int = field(0, "[0, 10000]")  # processes instead of threads
    allow_changes: bool = field(False)  # resume although data or data fields differ from the run's
    skip_bad: int = field(0, "[0, inf)")  # maximum number of unreadable examples to replace
    buckets: tuple[int, ...] = field((), "[1, 2e9]")  # for batch_tokens: lengths that batches are cut to, ascending
    mix: OpenGroup  # weights of the sources by name, such as dict(web=2, books=1); empty: config.data is the only one
    sources: OpenGroup  # of each source by name: fields of config.data with other values


class Adapter(Group):
    """Fields of config.adapter: small trained additions to parameters of config.init_from, which stay as they are."""

    kind: str = field("", ("", "lora"))  # "lora": low-rank matrices; "": none, all parameters are trained
    rank: int = field(8, "[1, 65536]")  # of the product of two matrices that is added to each kernel
    alpha: float | None = field(None, "(0, inf)")  # the product is multiplied by alpha / rank; None: rank, so by 1
    match: str = field("query|value", "regex")  # of the linear layers that get an adapter
    train: str = field("", "regex")  # of parameters trained whole, besides those that init_from lacks; "": none


AXES = ("data", "fsdp", "tensor")  # of the mesh
BATCH_AXES = ("data", "fsdp")  # over which a batch is sharded


class Mesh(Group):
    """Fields of config.mesh: devices along each axis; -1: all remaining devices."""

    data: int = field(-1, "[-1, 2e9]")
    fsdp: int = field(1, "[-1, 2e9]")
    tensor: int = field(1, "[-1, 2e9]")


class Config(OpenGroup):
    """Fields of every config; `jtasks.config.Config`."""

    task: str = field("")  # dotted module name, or the path of a .py file
    seed: int = field(0, "[0, 9e18]")
    steps: int = field(0, "[0, 2e9]")  # optimizer steps; or give epochs
    epochs: float = field(0.0, "[0, inf)")
    batch_size: int = field(64, "[1, 2e9]")  # examples per step, over all devices and microbatches
    batch_tokens: int = field(0, "[0, 2e9]")  # instead: tokens per step, by length (see data.buckets); 0: off
    accumulate: int = field(1, "[1, 2e9]")  # microbatches per step
    eval_every: int = field(0, "[0, inf)")  # steps; 0: only at the end
    eval_batches: int = field(0, "[0, inf)")  # evaluate only the first batches of a split; 0: all
    save_every: int = field(1000, "[0, inf)")  # steps; 0: only at the end
    log_every: int = field(50, "[1, inf)")
    log: Log
    keep: int = field(2, "[1, inf)")  # number of newest checkpoints to keep
    best: str = field("")  # such as "valid/loss": keep the checkpoint with the best value of this metric too
    best_mode: str = field("min", ("min", "max"))  # whether the lowest or the highest value is the best
    evals: OpenGroup  # further evaluations by name, such as dict(movies=dict(data=dict(...), every=500)); see variants
    stop: Stop
    report_metric: bool = field(True)  # score predictions by score_fn, at the end and in --mode=eval
    show_count: int = field(8, "[0, 2e9]")  # examples for show_fn at each evaluation; 0: none
    precision: str = field("float32", ("float32", "bfloat16"))  # of the computation; parameters stay float32
    ema: float = field(0.0, "[0, 1)")  # decay of a moving average of the parameters, used to evaluate; 0: none
    noise_scale: bool = field(False)  # log the gradient noise scale, from the gradients of the microbatches
    max_bad_steps: int = field(10, "[1, inf)")  # stop after this many non-finite steps in a row
    check: Check
    profile: Profile
    init_from: str = field("")  # a workdir, a checkpoint or hf:NAME to take fitting parameters from
    data: Data
    adapter: Adapter
    model: OpenGroup
    optim: OpenGroup
    plateau: Plateau
    mesh: Mesh
    sharding: tuple[Any, ...] = field(())  # ((regex of parameter paths, spec), ...)
    shares: Any = field(None)  # microbatches of each device: None (equal), (3, 1, ...), "auto"


def _table(group: type[Group], prefix: str = "") -> dict[str, Field]:
    """Return the declared fields of a group and of the groups in it, by dotted name."""
    table: dict[str, Field] = {}
    for name, hint in get_type_hints(group).items():
        if isinstance(hint, type) and issubclass(hint, Group):
            table |= _table(hint, f"{prefix}{name}.")
        else:
            table[prefix + name] = getattr(group, name)._replace(kind=_kind(hint))
    return table


def _kind(hint: Any) -> type:
    """Return the type of a field's values by its annotation; None is a value of any field without a default."""
    if hint is Any:
        return object
    return tuple if get_origin(hint) is tuple else (get_args(hint) or (hint,))[0]


def _groups(group: type[Group], prefix: str = "") -> Iterator[tuple[str, bool]]:
    """Yield the dotted name of each nested group, outer groups first, and whether the group may have further fields."""
    for name, hint in get_type_hints(group).items():
        if isinstance(hint, type) and issubclass(hint, Group):
            yield prefix + name, issubclass(hint, OpenGroup)
            yield from _groups(hint, f"{prefix}{name}.")


FIELDS = _table(Config)
GROUPS = tuple(name for name, _ in _groups(Config))
# Groups that allow no further fields.
STRICT = tuple(f"config.{name}" for name, is_open in _groups(Config) if not is_open or name == "optim")
