"""Optimizers and schedules from `config.optim`; masks over parameters from regular expressions on their paths.

    config.optim = dict(name="adamw", lr=3e-4, b2=0.95, schedule="cosine", warmup=0.05, weight_decay=0.1)

`name` is an optax alias (or one of `optax.contrib`: muon, ...). Any scalar argument of the alias is a further field.
Parameters are named by their "/"-joined paths, such as `blocks/mlp/up/kernel`.
"""

import inspect
import re
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import optax.contrib

from jtasks.errors import ConfigError
from jtasks.optim import delayed, layerwise
from jtasks.optim.fields import arguments, factories, resolve_fields
from jtasks.optim.fields import updates as number_of
from jtasks.optim.schedules import schedule
from jtasks.tree import leaf_name

# Optimizers that depend on the shape or the norm of a leaf.
PER_LEAF = ("adafactor", "fromage", "galore", "lamb", "lars", "novograd")


def optimizer(optim: Any, steps: int, params: Any) -> tuple[optax.GradientTransformation, optax.Schedule]:
    """Return the gradient transformation for `params`, and its learning-rate schedule.

    First the global norm of the trainable gradients is clipped, then the optimizer runs. Weight decay uses the
    optimizer's own argument if there is one: decoupled and multiplied by the learning rate for adamw, lion, lamb, muon
    and others (Loshchilov & Hutter, arXiv:1711.05101), and here for adafactor, whose optax form ignores that rate.
    Otherwise, as for sgd, adam and rmsprop, `weight_decay * params` is added to the clipped gradient, which is L2
    regularization (adadelta and lars do so themselves). Frozen parameters get updates of 0, and have no optimizer
    state, unless other layers of the same scanned stack are trained. Last, updates, weight decay included, are
    multiplied by the layer's factor of the learning rate (see `layerwise.rates`) and by the first of `factors`
    whose regex matches. Until a parameter's `unfreeze` its updates are 0 and its gradient does not count in the clipped
    norm, but the optimizer follows its gradients, so that the first update has moments of many gradients.

    Muon (Jordan 2024, kellerjordan.github.io/posts/muon) orthogonalizes the hidden layers' matrices: parameters whose
    path ends in `kernel`, of shape `[in, out]` or, stacked by scan, `[depth, in, out]` (each layer by itself). Its Adam
    part updates everything else: embeddings, biases, norms, convolutions and the output layer, recognized by a module
    name that ends in `head`. The field `adam_learning_rate` is that part's peak rate; its default is `lr`.

    Optimizers with statistics of whole leaves (PER_LEAF: LAMB's and LARS's trust ratios, adafactor's factors, ...)
    treat each layer of a scanned stack as a leaf of its own, so a stack trains like the same layers without scan.

    Args:
      optim: `config.optim`, a ConfigDict or a mapping; absent fields have their default values.
      steps: updates in the run.
      params: nested dict of arrays or of `jax.ShapeDtypeStruct`; only paths and ranks are used.

    Raises:
      ConfigError: as `schedule`; an unknown optimizer; a regex that matches nothing; or nothing left to train.

    >>> params = {"dense": {"kernel": jnp.ones((2, 2)), "bias": jnp.ones(2)}}
    >>> transformation, rate = optimizer({"name": "sgd", "lr": 0.5, "freeze": "bias"}, 10, params)
    >>> updates, _ = transformation.update(params, transformation.init(params), params)
    >>> print(updates["dense"]["kernel"], updates["dense"]["bias"])
    [[-0.5 -0.5]
     [-0.5 -0.5]] [0. 0.]
    """
    fields, rate, train = resolve_fields(optim), schedule(optim, steps), trainable(optim, params)
    begins = _begins(fields, params, train, steps)
    transformation = _named_optimizer(fields, rate, params, train)
    if fields["name"] in PER_LEAF or (fields["name"] == "muon" and fields.get("adaptive")):
        transformation = layerwise.one_by_one(transformation, params)
    if fields["clip"]:
        clip = optax.clip_by_global_norm(fields["clip"]) if begins is None else delayed.clip(fields["clip"], begins)
        transformation = optax.chain(clip, transformation)
    if not all(np.all(leaf) for leaf in jax.tree.leaves(train)):
        labels = jax.tree.map(lambda leaf: "trainable" if np.any(leaf) else "frozen", train)
        transformation = optax.partition({"trainable": transformation, "frozen": optax.set_to_zero()}, labels)
    factors = jax.tree.map(lambda leaf: leaf if np.ndim(leaf) else 1.0, train)
    if fields["layer_decay"] < 1:
        slower = layerwise.rates(fields["layer_decay"], fields["embeddings"], params)
        factors = jax.tree.map(lambda leaf, factor: leaf * factor, factors, slower)
    if fields["factors"]:
        factors = jax.tree.map(lambda leaf, own: leaf * own, factors, _factors(fields["factors"], params))
    if any(np.ndim(factor) or factor != 1 for factor in jax.tree.leaves(factors)):
        transformation = optax.chain(transformation, _scale_updates(factors))
    return (transformation if begins is None else optax.chain(transformation, delayed.hold(begins))), rate


def paths(params: Any) -> list[str]:
    """Return the "/"-joined path of each parameter, in the order of `jax.tree.leaves`.

    >>> paths({"dense": {"kernel": 1, "bias": 2}})
    ['dense/bias', 'dense/kernel']
    """
    return [leaf_name(keys) for keys, _ in jax.tree.leaves_with_path(params)]


def matching(regex: str, params: Any) -> Any:
    """Return a tree of bools shaped as `params` that say whether `re.search` finds `regex` in a parameter's path.

    >>> matching("kernel$", {"dense": {"kernel": 1, "bias": 2}})
    {'dense': {'bias': False, 'kernel': True}}
    """
    return jax.tree.map_with_path(lambda keys, _: re.search(regex, leaf_name(keys)) is not None, params)


def trainable(optim: Any, params: Any) -> Any:
    """Return a tree of bools shaped as `params`: False if `optim.freeze` or an integer type holds a parameter fixed.

    If only some layers of a stack are frozen, such as `^blocks/[0-3]/`, the leaf is a bool array [depth, 1, ...].

    Raises:
      ConfigError: the regex is malformed, matches no parameter, or matches all of them; or all are integers.

    >>> trainable({"freeze": "^encoder/"}, {"encoder": {"kernel": 1}, "head": {"kernel": 2}})
    {'encoder': {'kernel': False}, 'head': {'kernel': True}}
    """
    regex = resolve_fields(optim)["freeze"]
    if not regex:
        train = jax.tree.map(_real, params)
        if not any(jax.tree.leaves(train)):
            raise ConfigError("init's result has only whole numbers: nothing is left to train")
        return train
    train = jax.tree.map(lambda frozen: ~frozen if np.ndim(frozen) else not frozen, _mask("freeze", regex, params))
    train = jax.tree.map(lambda leaf, param: leaf if _real(param) else False, train, params)
    if not any(np.any(leaf) for leaf in jax.tree.leaves(train)):
        raise ConfigError(f"config.optim.freeze={regex!r} matches every parameter: nothing is left to train")
    return train


def _factors(pairs: Any, params: Any) -> Any:
    """Return the factor of the learning rate of each parameter, by the first pair whose regex matches, else 1."""
    factors = jax.tree.map(lambda leaf: 1.0, params)
    for regex, factor in reversed(pairs):
        hits = _mask("factors", regex, params)
        factors = jax.tree.map(lambda old, hit, new=factor: _choose(hit, new, old), factors, hits)
    return factors


def _begins(fields: dict[str, Any], params: Any, train: Any, steps: int) -> Any:
    """Return the update from which each parameter changes, None if all do from the first on.

    Raises:
      ConfigError: nothing is trained from the first update on.
    """
    if not fields["unfreeze"]:
        return None
    begins = jax.tree.map(lambda leaf: 0, params)
    for regex, span in reversed(fields["unfreeze"]):
        hits, begin = _mask("unfreeze", regex, params), number_of(span, steps)
        begins = jax.tree.map(lambda old, hit, new=begin: _choose(hit, new, old), begins, hits)
    now = jax.tree.map(lambda leaf, begin: leaf & (begin == 0), train, begins)
    if not any(np.any(leaf) for leaf in jax.tree.leaves(now)):
        raise ConfigError(f"config.optim.unfreeze={fields['unfreeze']} leaves nothing to train from the first update")
    return begins


def _choose(hit: Any, new: Any, old: Any) -> Any:
    """Return a number, or an array for single layers of a stack: `new` where hit, else `old`."""
    if np.ndim(hit) or np.ndim(old):
        return np.where(hit, new, old)
    return new if hit else old


def _real(param: Any) -> bool:
    return jnp.issubdtype(getattr(param, "dtype", jnp.float32), jnp.inexact)


def _mask(field: str, regex: str, params: Any) -> Any:
    try:
        mask = (matching if field == "decay_mask" else layerwise.matching)(regex, params)
    except re.error as error:
        raise ConfigError(f"config.optim.{field}={regex!r} is not a regular expression: {error}") from error
    if not regex or not any(np.any(leaf) for leaf in jax.tree.leaves(mask)):
        some = ", ".join(paths(params)[:8])
        raise ConfigError(f"config.optim.{field}={regex!r} matches no parameter; some paths are {some}")
    return mask


def _scale_updates(factors: Any) -> optax.GradientTransformation:
    """Multiply the updates; parameters with a factor of 0 stay exactly the same."""

    def scale(updates: Any, params: Any) -> Any:
        return jax.tree.map(lambda u, f: jnp.where(f == 0, 0, u * f).astype(u.dtype), updates, factors)

    return optax.stateless(scale)


def _named_optimizer(
    fields: dict[str, Any], rate: optax.Schedule, params: Any, train: Any
) -> optax.GradientTransformation:
    """Return the named optimizer with its weight decay, before clipping and freezing."""
    name, decay = fields["name"], fields["weight_decay"]
    factory = factories()[name]
    given = {field: fields[field] for field in arguments(name) if field in fields}
    mask = _mask("decay_mask", fields["decay_mask"], params)
    if name == "muon":
        return _muon(rate, fields, given, mask, params)
    accepted = inspect.signature(factory).parameters
    if "weight_decay" in accepted:
        given["weight_decay"] = decay  # also if 0, since optax's own default may not be
    if not decay:
        return factory(rate, **given)
    if "weight_decay_rate" in accepted:
        given["weight_decay_rate"] = lambda count: decay * rate(count)
    elif "weight_decay" not in accepted:
        return optax.chain(optax.add_decayed_weights(decay, mask), factory(rate, **given))
    masks = [field for field in ("mask", "weight_decay_mask") if field in accepted]
    if not masks and not all(jax.tree.leaves(jax.tree.map(lambda hit, used: hit or not np.any(used), mask, train))):
        raise ConfigError(
            f"{name} decays all trainable parameters or none, but config.optim.decay_mask={fields['decay_mask']!r}"
            " selects some; "
            "set it to '.*', weight_decay to 0, or take another optimizer"
        )
    return factory(rate, **given, **dict.fromkeys(masks, mask))


def _muon(
    rate: optax.Schedule, fields: dict[str, Any], given: dict[str, Any], mask: Any, params: Any
) -> optax.GradientTransformation:
    decay, peak = fields["weight_decay"], fields["lr"]
    adam_peak = given.pop("adam_learning_rate", None)
    # The same schedule scaled: optax would use the number as a constant rate.
    ratio = 1.0 if adam_peak is None or not peak else adam_peak / peak
    hidden = jax.tree.map(
        lambda kernel, leaf: kernel and leaf.ndim in (2, 3), matching(r"(^|(?<!head)/)kernel$", params), params
    )
    last_two = optax.contrib.MuonDimensionNumbers(-2, -1)  # optax treats axes before them as batch axes
    transformation = optax.contrib.muon(
        rate,
        weight_decay=decay,
        weight_decay_mask=mask,
        adam_learning_rate=lambda count: ratio * rate(count),
        muon_weight_dimension_numbers=jax.tree.map(lambda leaf: last_two if leaf else None, hidden),
        **given,
    )
    if not decay:
        return transformation
    # optax's decay of the Adam part has no mask, so the decay of masked parameters follows separately.
    rest = jax.tree.map(lambda hit, matrix: hit and not matrix, mask, hidden)
    return optax.chain(transformation, optax.add_decayed_weights(lambda count: -decay * ratio * rate(count), rest))
