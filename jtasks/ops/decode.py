"""Decoding as pure loops over step_fn(cache, tokens) -> (logits, cache), to be jitted as a whole.

| | |
|---|---|
| greedy | `sample` with `temperature=0` |
| sampling | `sample` with `temperature`, `top_k`, `top_p`, `min_p` |
| beam search | `beam_search` |

A model reads the prompts in one pass, which returns the logits of the first new token and a cache. Each step then adds
one token to each sequence. Tokens are int32 with the leading dimensions of the logits: [b], or [b, n] for n sequences
per prompt. `models.GPT` has `prefill` and `extend`:

    logits, cache = model.apply(variables, prompt, length=20, branches=5, method="prefill")
    step_fn = lambda cache, tokens: model.apply(variables, tokens, cache, method="extend")
    beams = decode.beam_search(step_fn, cache, logits, num_beams=5, max_len=20, eos=1, reorder=models.reorder_branches)

Both take the arguments of `ops.rules.Rules`: `eos`, `pad`, `min_len`, `repetition_penalty`, `no_repeat_ngram_size`,
`bad_words_ids`, `forced_bos_token_id`, `forced_eos_token_id`, `prompt` and `valid`.
"""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jtasks.errors import ConfigError
from jtasks.ops.rules import RANGES, Rules, check
from jtasks.ranges import Field

StepFn = Callable[[Any, jax.Array], tuple[jax.Array, Any]]
_NEVER = -1e9  # score of what must not be chosen; ranks below everything allowed

# Fields of config.sample for `sample` and of config.beam for `beam_search`, for a task's `defaults`.
SAMPLE = {
    "sample.temperature": Field(float, "[0, inf)", 1.0),  # 0: the likeliest token
    "sample.top_k": Field(int, "[0, 2e9]", 0),  # draw from the k likeliest; 0: from all
    "sample.top_p": Field(float, "(0, 1]", 1.0),  # draw from the smallest set with total probability p
    "sample.min_p": Field(float, "[0, 1]", 0.0),  # draw from those at least p times as likely as the likeliest
}
BEAM = {
    "beam.num_beams": Field(int, "[1, 2e9]", 5),
    "beam.max_len": Field(int, "[1, 2e9]", 20),  # maximum number of new tokens
    "beam.min_len": RANGES["min_len"]._replace(default=1),  # minimum number of new tokens before the end
    "beam.length_penalty": Field(float, "(-inf, inf)", 1.0),
    "beam.early_stopping": Field(object, None, False),  # True, False or "never"
    "beam.repetition_penalty": RANGES["repetition_penalty"]._replace(default=1.0),
    "beam.no_repeat_ngram_size": RANGES["no_repeat_ngram_size"]._replace(default=0),
    "beam.bad_words_ids": Field(tuple, None, ()),  # sequences of ids that never occur, such as ((3,), (5, 7))
    "beam.forced_bos_token_id": RANGES["forced_bos_token_id"],  # the first new id; None: any
    "beam.forced_eos_token_id": RANGES["forced_eos_token_id"],  # the id at max_len, if none ended before; None: any
}
_DRAW = {name.removeprefix("sample."): field for name, field in SAMPLE.items()} | {
    "top_p": Field(float, "[0, 1]"),
    "length": Field(int, "[0, 2e9]"),
}
_SEARCH = {name.removeprefix("beam."): field for name, field in BEAM.items()} | {"n_best": Field(int, "[1, 2e9]")}


class Beams(NamedTuple):
    """The best continuations of each prompt, best first."""

    tokens: jax.Array  # [b, n, length] int32
    scores: jax.Array  # [b, n] float32: log probability / lengths ** length_penalty
    lengths: jax.Array  # tokens, including the one that ends the sequence


def options(fields: Mapping[str, Any]) -> dict[str, Any]:
    """Return the arguments of `sample` among the fields of config.sample."""
    return {name: fields[name] for name in (name.removeprefix("sample.") for name in SAMPLE)}


def filter_logits(
    logits: jax.Array, *, temperature: float = 1.0, top_k: int = 0, top_p: float = 1.0, min_p: float = 0.0
) -> jax.Array:
    """Return the logits [..., vocab] of the distribution to draw from; excluded tokens get -inf.

    Args:
      temperature: divisor of the logits, above 0.
      top_k: keep the k likeliest; 0 keeps all.
      top_p: keep the smallest set with total probability p (Holtzman et al. 2020); 1 keeps all, 0 the likeliest.
      min_p: keep those at least p times as likely as the likeliest (Nguyen et al. 2024); 0 keeps all.

    Raises:
      ConfigError: an argument is out of range.
    """
    check(_DRAW, temperature=temperature, top_k=top_k, top_p=top_p, min_p=min_p)
    if isinstance(temperature, int | float) and temperature == 0:
        raise ConfigError("temperature=0 has no distribution to draw from; `sample` takes the likeliest token instead")
    logits = logits / jnp.maximum(temperature, 1e-30)  # all of them overflow below, and a draw takes the likeliest here
    if top_k:
        threshold = jax.lax.top_k(logits, min(top_k, logits.shape[-1]))[0][..., -1:]
        logits = jnp.where(logits < threshold, -jnp.inf, logits)
    if top_p < 1:
        ordered = jnp.sort(logits, axis=-1, descending=True)
        before = jnp.cumsum(jax.nn.softmax(ordered), axis=-1) - jax.nn.softmax(ordered)
        count = jnp.sum(before < top_p, axis=-1, keepdims=True)
        threshold = jnp.take_along_axis(ordered, jnp.maximum(count, 1) - 1, axis=-1)
        logits = jnp.where(logits < threshold, -jnp.inf, logits)
    if min_p:
        threshold = jnp.max(logits, axis=-1, keepdims=True) + jnp.log(min_p)
        logits = jnp.where(logits < threshold, -jnp.inf, logits)
    return logits


def sample(
    step_fn: StepFn,
    cache: Any,
    logits: jax.Array,
    keys: jax.Array | None,
    length: int,
    *,
    temperature: float = 1.0,
    top_k: int = 0,
    top_p: float = 1.0,
    min_p: float = 0.0,
    **options: Any,
) -> jax.Array:
    """Draw up to `length` tokens, [b, length] or [b, n, length] int32; stop when all sequences have ended.

    Args:
      logits: of the first token, [b, vocab] or [b, n, vocab], from the prefill, as is `cache`.
      keys: a random key per sequence, [b] or [b, n], so that a draw does not depend on its neighbors.
      length: number of new tokens; 0 draws nothing.
      temperature: 0 takes the likeliest token each time, without `keys`.
      top_k, top_p, min_p: see `filter_logits`.
      options: fields of `ops.rules.Rules`.

    Raises:
      ConfigError: an argument is out of range, or there are no keys to draw with.
    """
    check(_DRAW, length=length, temperature=temperature, top_k=top_k, top_p=top_p, min_p=min_p)
    if temperature != 0 and keys is None:
        raise ConfigError("sampling at a temperature above 0 needs a random key for each sequence; keys is None")
    shape, vocab = logits.shape[:-1], logits.shape[-1]
    if not length:
        return jnp.zeros((*shape, 0), jnp.int32)
    rules = Rules(**options)
    history, filled = rules.history(shape)
    start = history.shape[-1]

    def draw(logits: jax.Array, sequences: jax.Array, ended: jax.Array, i: Any) -> tuple[jax.Array, jax.Array]:
        logits = rules.apply(logits, sequences, filled, i)
        if temperature == 0:
            token = jnp.argmax(logits, axis=-1)
        else:
            assert keys is not None  # checked above
            chosen = filter_logits(logits, temperature=temperature, top_k=top_k, top_p=top_p, min_p=min_p)
            folded = jax.vmap(jax.random.fold_in, (0, None))(keys.reshape(-1), i)
            token = jax.vmap(jax.random.categorical)(folded, chosen.reshape(-1, vocab)).reshape(shape)
        token = jnp.where(ended, rules.pad, token).astype(jnp.int32)
        sequences = jax.lax.dynamic_update_index_in_dim(sequences, token, start + i, axis=-1)
        return sequences, ended | rules.ends(token)

    def going(state: tuple[Any, ...]) -> jax.Array:
        i, _, _, ended = state
        return (i < length) & ~jnp.all(ended)

    def body(state: tuple[Any, ...]) -> tuple[Any, ...]:
        i, cache, sequences, ended = state
        last = jax.lax.dynamic_index_in_dim(sequences, start + i - 1, axis=-1, keepdims=False)
        logits, cache = step_fn(cache, last)
        return i + 1, cache, *draw(logits, sequences, ended, i)

    sequences = jnp.concatenate([history, jnp.full((*shape, length), rules.pad, jnp.int32)], axis=-1)
    first = draw(logits, sequences, jnp.zeros(shape, bool), 0)
    _, _, sequences, _ = jax.lax.while_loop(going, body, (jnp.int32(1), cache, *first))
    return sequences[..., start:]


class _Search(NamedTuple):
    """State of a beam search: n running beams, and the n best ended ones."""

    i: jax.Array  # int32 scalar: new tokens so far
    sequences: jax.Array  # [b, n, t + max_len] int32: prompts and new tokens
    running: jax.Array  # [b, n] float32: log probabilities
    parents: jax.Array  # [b, n] int32: the beam that each one continues
    ended: jax.Array  # [b, n, max_len] int32
    scores: jax.Array  # whether the slot holds an ended beam
    lengths: jax.Array  # [b, n] int32
    done: jax.Array  # [b, n] bool: whether there is an ended one
    hopeful: jax.Array  # whether a running beam may still beat the worst ended one


def reorder_leaves(cache: Any, parents: jax.Array) -> Any:
    """Reorder a cache with leaves [b, n, ...] of beams by their `parents` [b, n]."""
    return jax.tree.map(lambda x: _gather(x, parents), cache)


def beam_search(
    step_fn: StepFn,
    cache: Any,
    logits: jax.Array,
    *,
    num_beams: int,
    max_len: int,
    length_penalty: float = 1.0,
    early_stopping: bool | str = False,
    n_best: int = 1,
    reorder: Callable[[Any, jax.Array], Any] = reorder_leaves,
    **options: Any,
) -> Beams:
    """Search for the `n_best` likeliest continuations with `num_beams` beams.

    Equals `generate` of Hugging Face's transformers 5 with the same arguments, where `min_len` and `max_len` are called
    `min_new_tokens` and `max_new_tokens`: an encoder-decoder's `min_length` and `max_length` count the id that begins
    the target, so both are one more. One beam is greedy search. If the rules bar every token before a sequence has
    ended, the running beams are returned, padded.

    Args:
      step_fn: (cache, tokens [b, num_beams]) -> (logits [b, num_beams, vocab], cache).
      logits: of the first token, [b, vocab], from the prefill, as is `cache`.
      max_len: maximum number of new tokens, including EOS; a beam that reaches it has ended.
      length_penalty: log probabilities are divided by length to this power; above 0 favors long beams.
      early_stopping: True: stop at `num_beams` ended beams. False: stop when the best running beam, at its present
        length, is worse than all of them. "never": compare with its best possible length instead.
      n_best: number of returned beams, at most `num_beams`.
      reorder: (cache, parents [b, num_beams]) -> cache of these parents.
      options: fields of `ops.rules.Rules`.

    Raises:
      ConfigError: an argument is out of range.
    """
    check(_SEARCH, num_beams=num_beams, n_best=n_best, max_len=max_len, length_penalty=length_penalty)
    if n_best > num_beams:
        raise ConfigError(f"n_best={n_best} must be at most num_beams={num_beams}")
    if early_stopping not in (True, False, "never"):
        raise ConfigError(f'early_stopping={early_stopping!r} must be True, False or "never"')
    (b, vocab), n = logits.shape, num_beams
    rules = Rules(**options)
    history, filled = rules.history((b, n))
    start = history.shape[-1]
    stop_early = early_stopping is True or n == 1
    # Enough candidates that n beams continue even if every ending token comes first.
    candidates = min(max(2, 1 + len(rules.ending)), vocab) * n

    def choose(state: _Search, logits: jax.Array) -> _Search:
        if n == 1:
            nats = jax.nn.log_softmax(rules.apply(logits, state.sequences, filled, state.i))
        else:
            nats = rules.apply(jax.nn.log_softmax(logits), state.sequences, filled, state.i)
        totals, chosen = top_k((nats + state.running[..., None]).reshape(b, -1), candidates)
        parents, tokens = chosen // vocab, (chosen % vocab).astype(jnp.int32)
        sequences = _gather(state.sequences, parents)
        sequences = jax.lax.dynamic_update_index_in_dim(sequences, tokens, start + state.i, axis=-1)
        length = state.i + 1
        ends = rules.ends(tokens) | (length == max_len)

        running, kept = jax.lax.top_k(totals + ends * _NEVER, n)
        # Only the best n candidates may end; the others serve to continue.
        ending = ends & (jnp.arange(candidates) < n)[None]
        barred = ~ending * _NEVER + ~state.hopeful[:, None] * _NEVER
        if stop_early:
            barred += jnp.all(state.done, axis=1, keepdims=True) * _NEVER
        scores = jnp.concatenate([state.scores, totals / length**length_penalty + barred], axis=1)
        scores, best = jax.lax.top_k(scores, n)

        def merge(old: jax.Array, new: jax.Array) -> jax.Array:
            return _gather(jnp.concatenate([old, new], axis=1), best)

        done = merge(state.done, ending)
        reachable = max_len if early_stopping == "never" and length_penalty > 0 else length
        worst = jnp.where(done, jnp.min(scores, axis=1, keepdims=True), _NEVER)
        hopeful = jnp.any(running[:, :1] / reachable**length_penalty > worst, axis=1)
        stuck = ~jnp.any(totals > -jnp.inf, axis=1, keepdims=True) & ~jnp.any(state.done, axis=1, keepdims=True)
        so_far = state.running / jnp.maximum(state.i, 1) ** length_penalty
        return _Search(
            i=length,
            sequences=_gather(sequences, kept),
            running=running,
            parents=_gather(parents, kept),
            ended=jnp.where(stuck[..., None], state.sequences[..., start:], merge(state.ended, sequences[..., start:])),
            scores=jnp.where(stuck, so_far, scores),
            lengths=jnp.where(stuck, state.i, merge(state.lengths, jnp.broadcast_to(length, (b, candidates)))),
            done=jnp.where(stuck, state.running > _NEVER / 2, done),
            hopeful=state.hopeful & hopeful & ~stuck[:, 0],
        )

    def going(carry: tuple[_Search, Any]) -> jax.Array:
        state, _ = carry
        going = (state.i < max_len) & jnp.any(state.hopeful)
        return going & ~jnp.all(state.done) if stop_early else going

    def body(carry: tuple[_Search, Any]) -> tuple[_Search, Any]:
        state, cache = carry
        last = jax.lax.dynamic_index_in_dim(state.sequences, start + state.i - 1, axis=-1, keepdims=False)
        logits, cache = step_fn(reorder(cache, state.parents), last)
        return choose(state, logits), cache

    initial = _Search(
        i=jnp.int32(0),
        sequences=jnp.concatenate([history, jnp.full((b, n, max_len), rules.pad, jnp.int32)], axis=-1),
        running=jnp.full((b, n), _NEVER, jnp.float32).at[:, 0].set(0.0),  # beams start equal, so only the first counts
        parents=jnp.zeros((b, n), jnp.int32),
        ended=jnp.full((b, n, max_len), rules.pad, jnp.int32),
        scores=jnp.full((b, n), _NEVER, jnp.float32),
        lengths=jnp.zeros((b, n), jnp.int32),
        done=jnp.zeros((b, n), bool),
        hopeful=jnp.ones(b, bool),
    )
    first = choose(initial, jnp.broadcast_to(logits[:, None].astype(jnp.float32), (b, n, vocab)))
    end, _ = jax.lax.while_loop(going, body, (first, cache))
    return Beams(end.ended[:, :n_best], end.scores[:, :n_best], end.lengths[:, :n_best])


def top_k(x: jax.Array, k: int, size: int = 64) -> tuple[jax.Array, jax.Array]:
    """Return `jax.lax.top_k` of `x` [b, n], in a fifth of its time for a vocabulary on the CPU.

    The k largest are in the k groups of `size` neighbors with the largest maxima; of equal ones the first counts.
    """
    (b, n), padding = x.shape, -x.shape[1] % size
    if n <= 2 * k * size:
        return jax.lax.top_k(x, k)
    groups = jnp.pad(x, ((0, 0), (0, padding)), constant_values=-jnp.inf).reshape(b, -1, size)
    best = jnp.sort(jax.lax.top_k(jnp.max(groups, axis=-1), k)[1], axis=-1)
    values, places = jax.lax.top_k(_gather(groups, best).reshape(b, -1), k)
    return values, jnp.take_along_axis(best, places // size, axis=1) * size + places % size


def _gather(x: jax.Array, parents: jax.Array) -> jax.Array:
    """Gather beams of [b, n, ...] by index [b, m]; returns [b, m, ...]."""
    return jnp.take_along_axis(x, parents.reshape(*parents.shape, *(1,) * (x.ndim - 2)), axis=1)
