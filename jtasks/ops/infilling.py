"""Pre-training of an encoder-decoder by text infilling: spans of text to restore, drawn on the device per example.

`corrupt_spans` is T5's span corruption (Raffel et al. 2020, 3.1.4), `infill` BART's denoising (Lewis et al. 2020, 2.2).
A row of tokens holds one document, or several back to back with increasing segment ids. Each document is corrupted by
itself; its source and its target have the same segment id, 1 for the first document. Shapes depend on no values.
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jtasks.ops import augment
from jtasks.ranges import Field

# Fields of a task's config for `corrupt`, for its `defaults`. None: the paper's value, or filled from the data.
FIELDS = {
    "data.noise": Field(str, ("", "spans", "infilling"), ""),  # T5's span corruption, BART's denoising, or ""
    "data.noise_rate": Field(float, "(0, 1)"),  # fraction of the tokens to hide: 0.15 of spans, 0.3 of infilling
    "data.span_length": Field(float, "[1, 20]", 3.0),  # average number of tokens in a span
    "data.permute": Field(bool, None, True),  # infilling also permutes the sentences of a document
    "model.hide": Field(int),  # id of the first sentinel, or of the mask
    "model.stops": Field(tuple),  # ids that end a sentence
    "model.documents": Field(int),  # maximum number of documents in a row
}

_LONGEST = 64  # Poisson's lengths are at most this, which changes a probability below 1e-9 up to a mean of 20


class Pairs(NamedTuple):
    """What the encoder reads, and what the decoder predicts; each document ends with the end mark on both sides."""

    source: jax.Array  # [b, s] int32
    source_segment_ids: jax.Array  # [b, s] int32, 0 for padding
    target: jax.Array  # [b, t] int32
    target_segment_ids: jax.Array  # [b, t] int32


def span_lengths(length: int, *, rate: float = 0.15, mean: float = 3.0, documents: int = 1) -> tuple[int, int]:
    """Return the lengths (source, target) that hold every row of `corrupt_spans`, with the end marks.

    For one document they are those of T5's `compute_input_and_target_lengths`. Several are counted as if all were of
    the length that takes the most room; `documents` may stand apart by an end mark, which is no token of theirs.

    >>> span_lengths(568)
    (512, 114)
    """
    sizes = np.arange(1, length + 1)
    noise, spans = _counts(length, rate, mean)[:, 1:]
    kept, hidden = sizes - noise + spans + 1, noise + spans + 1
    return _most(kept, documents), _most(hidden, documents)


def infill_lengths(length: int, *, documents: int = 1) -> tuple[int, int]:
    """Return the lengths (source, target) that hold every row of `infill`, with an end mark for each document."""
    return length + documents, length + documents


def lengths(config: Any, documents: int) -> tuple[int, int]:
    """Return the lengths (source, target) of rows of config.data.length tokens with up to `documents` documents."""
    data = config.data
    if data.noise == "infilling":
        return infill_lengths(data.length)  # an end mark that separates documents makes room for theirs
    options = {"rate": _rate(config), "mean": data.span_length}
    return span_lengths(max(data.length - documents + 1, 1), documents=documents, **options)


def sentinels(config: Any) -> int:
    """Return the largest number of sentinels that a document in a row of config.data.length tokens needs."""
    return int(_counts(config.data.length, _rate(config), config.data.span_length)[1].max())


def corrupt(batch: Mapping[str, Any], config: Any) -> dict[str, Any]:
    """Return a batch of `tokens` [b, l] with the entries of `Pairs`, drawn from the `seed` of each example.

    The first tokens of a row do not count, if there is a `skip` [b]. With config.data.packed the id config.model.end
    separates documents. A batch without `tokens` is returned as it is.
    """
    if "tokens" not in batch:
        return dict(batch)
    data, model = config.data, config.model
    tokens = batch["tokens"].astype(jnp.int32)
    ends = (tokens == model.end) & data.packed
    counts = jnp.arange(tokens.shape[1])[None] >= batch["skip"][:, None]
    segment_ids = jnp.where(counts & ~ends, jnp.cumsum(ends, axis=1) + 1, 0)
    arguments = tokens, segment_ids, augment.keys(batch.get("seed")), lengths(config, model.documents)
    options = {"end": model.end, "rate": _rate(config), "mean": data.span_length}
    if data.noise == "infilling":
        pairs = infill(*arguments, mask=model.hide, stops=model.stops, **options)
    else:
        pairs = corrupt_spans(*arguments, sentinel=model.hide, **options)
    return {**batch, **pairs._asdict()}


def corrupt_spans(
    tokens: jax.Array,
    segment_ids: jax.Array,
    keys: jax.Array,
    lengths: tuple[int, int],
    *,
    sentinel: int,
    end: int,
    rate: float = 0.15,
    mean: float = 3.0,
) -> Pairs:
    """Replace random spans by sentinels; the target is each sentinel with the tokens that it hides.

    As in T5's code, a document of n tokens has round(rate n) hidden ones, at least 1, in round(hidden / mean) spans, at
    least 1. It begins with a token that is not hidden and ends with a hidden one. All divisions into spans that are not
    empty and do not touch are equally likely. A document of one token has nothing hidden, and a target of an end mark.

    Args:
      tokens: [b, l] int32.
      segment_ids: [b, l], the number of each token's document, which does not decrease; 0: no token.
      keys: a random key per example, [b].
      lengths: of source and target, see `span_lengths`; what does not fit is cut off.
      sentinel: id of the first sentinel of a document; the next ones count down, as T5's <extra_id_0>, <extra_id_1>.
      end: id after each source and each target.
      rate: fraction of the tokens to hide.
      mean: average number of tokens in a span.
    """
    hidden_counts, span_counts = (jnp.asarray(counts) for counts in _counts(tokens.shape[1], rate, mean))

    def one(tokens: jax.Array, segment_ids: jax.Array, key: jax.Array) -> Pairs:
        row = _Row(tokens, segment_ids)
        hidden, spans = hidden_counts[row.sizes], span_counts[row.sizes]
        # The first places of a document stand for its tokens that stay, the last ones for those to hide. Both are cut
        # into as many pieces, at random, and the pieces are laid out in turn.
        behind = row.places >= (row.sizes - hidden)
        group = 2 * row.segments + behind
        score = jax.random.uniform(key, tokens.shape)
        cuts = _rank(jnp.where(_first(group), -1.0, score), group) < spans
        piece = _count_within(cuts, group) - 1
        order = jnp.lexsort((2 * piece + behind, row.segments))
        masked, piece = behind[order] & row.real, piece[order]
        opens = masked & ~_before(masked)
        mark = sentinel - piece
        shown = row.real & (opens | ~masked)
        source = _write([(jnp.where(masked, mark, row.tokens), shown), (end, row.last)], row.segments, lengths[0], end)
        written = [(mark, opens), (row.tokens, masked), (end, row.last)]
        return Pairs(*source, *_write(written, row.segments, lengths[1], end))

    return jax.vmap(one)(tokens, segment_ids, keys)


def infill(
    tokens: jax.Array,
    segment_ids: jax.Array,
    keys: jax.Array,
    lengths: tuple[int, int],
    *,
    mask: int,
    end: int,
    rate: float = 0.3,
    mean: float = 3.0,
    stops: tuple[int, ...] = (),
) -> Pairs:
    """Permute sentences and replace random spans by one mask each; the target is the whole document.

    A document of n tokens has round(rate n) hidden ones, at least 1. The lengths of the spans are drawn from Poisson's
    distribution until they sum up to this number; the last one is shortened. A span of length 0 inserts a mask. There
    are at most as many spans as hidden tokens. All places of the spans among the tokens that stay are equally likely.

    Args:
      tokens: [b, l] int32.
      segment_ids: [b, l], the number of each token's document, which does not decrease; 0: no token.
      keys: a random key per example, [b].
      lengths: of source and target, see `infill_lengths`; what does not fit is cut off.
      mask: id that replaces a span.
      end: id after each source and each target.
      rate: fraction of the tokens to hide.
      mean: mean of Poisson's distribution.
      stops: ids that end a sentence, such as the full stop; none: sentences keep their order.
    """
    counts = jnp.asarray(_counts(tokens.shape[1], rate, mean, keep=0)[0])
    distribution = jnp.asarray(_poisson(mean))

    def one(tokens: jax.Array, segment_ids: jax.Array, key: jax.Array) -> Pairs:
        row = _Row(tokens, segment_ids)
        score, place, shuffle = jax.random.uniform(key, (3, *tokens.shape))
        words = _permute_sentences(row, shuffle, stops) if stops else row.tokens
        hidden = counts[row.sizes]
        drawn = jnp.searchsorted(distribution, score, side="right")
        # The n-th place of a document holds the n-th span, and how many tokens all spans up to it hide.
        ends = jnp.where(row.places < hidden - 1, jnp.minimum(_sum_within(drawn, row.segments), hidden), hidden)
        begins = jnp.where(row.places == 0, 0, _before(ends))
        used = row.real & (row.places < hidden) & (begins < hidden)
        spans = jax.ops.segment_sum(used.astype(jnp.int32), row.segments, len(tokens) + 1)[row.segments]
        # Which places of the source are masks is drawn, and which span each one stands for.
        live = row.real & (row.places < row.sizes - hidden + spans)
        number = _rank(jnp.where(live, place, 2.0), row.segments)
        masked = live & (number < spans)
        gone = _sum_within(jnp.where(masked, (ends - begins)[row.starts + number], 0), row.segments)
        original = row.starts + row.places - _count_within(masked, row.segments) + gone
        words = words[jnp.minimum(original, len(tokens) - 1)]
        source = _write([(jnp.where(masked, mask, words), live), (end, row.last)], row.segments, lengths[0], end)
        target = _write([(row.tokens, row.real), (end, row.last)], row.segments, lengths[1], end)
        return Pairs(*source, *target)

    return jax.vmap(one)(tokens, segment_ids, keys)


def _rate(config: Any) -> float:
    rate = config.data.noise_rate
    return {"spans": 0.15, "infilling": 0.3}[config.data.noise] if rate is None else rate


class _Row:
    """The tokens of a row without gaps, and where each one is in its document; all [l]."""

    def __init__(self, tokens: jax.Array, segment_ids: jax.Array) -> None:
        order = jnp.argsort(segment_ids == 0, stable=True)
        length = len(tokens)
        self.tokens, self.real = tokens[order], segment_ids[order] > 0
        opens = self.real & _first(segment_ids[order])
        self.segments = jnp.where(self.real, jnp.cumsum(opens) - 1, length)  # from 0; `length` behind the last token
        self.sizes = jax.ops.segment_sum(self.real.astype(jnp.int32), self.segments, length + 1)[self.segments]
        at = jnp.arange(length)
        self.starts = jax.lax.cummax(jnp.where(_first(self.segments), at, 0))
        self.places = at - self.starts
        self.last = self.real & (self.places == self.sizes - 1)


def _permute_sentences(row: _Row, scores: jax.Array, stops: tuple[int, ...]) -> jax.Array:
    """Return the tokens [l] with the sentences of each document in random order; full stops belong to the sentence."""
    stop = jnp.isin(row.tokens, jnp.array(stops, row.tokens.dtype))
    opens = _first(row.segments) | (_before(stop) & ~stop)
    at = jax.lax.cummax(jnp.where(opens, jnp.arange(len(scores)), 0))
    return row.tokens[jnp.lexsort((at, scores[at], row.segments))]


def _counts(length: int, rate: float, mean: float, keep: int = 1) -> np.ndarray:
    """Return the number of hidden tokens and of spans [2, length + 1] of a document of 0, 1, ... tokens.

    At least `keep` tokens are not hidden.
    """
    sizes = np.arange(length + 1)
    hidden = np.minimum(np.maximum(np.round(sizes * rate), 1), np.maximum(sizes - keep, 0))
    spans = np.minimum(np.maximum(np.round(hidden / mean), 1), np.minimum(hidden, sizes - hidden))
    return np.stack([hidden, spans]).astype(np.int32)


def _most(room: np.ndarray, documents: int) -> int:
    """Return an upper bound of the room that `documents` take, from the `room` [l] of one of 1, 2, ... l tokens."""
    if documents == 1:
        return int(room.max())
    sizes = np.arange(1, len(room) + 1)
    slope = room[-1] / len(room)
    return int(slope * len(room) + documents * np.max(room - slope * sizes))


def _poisson(mean: float) -> np.ndarray:
    """Return the probabilities of at most 0, 1, ... under Poisson's distribution."""
    steps = np.arange(_LONGEST)
    logs = steps * np.log(mean) - mean - np.cumsum(np.log(np.maximum(steps, 1)))
    return np.cumsum(np.exp(logs)).astype(np.float32)


def _before(values: jax.Array) -> jax.Array:
    """Return the values [l] one place later, and a zero first."""
    return jnp.concatenate([jnp.zeros_like(values[:1]), values[:-1]])


def _first(groups: jax.Array) -> jax.Array:
    """Return whether each of [l] is the first of its group; a group is a run of equal numbers."""
    return jnp.concatenate([jnp.ones(1, bool), groups[1:] != groups[:-1]])


def _sum_within(values: jax.Array, groups: jax.Array) -> jax.Array:
    """Return the sums [l] of the values up to each one in its group."""
    sums = jnp.cumsum(values)
    before = jnp.where(_first(groups), sums - values, 0)
    return sums - jax.lax.cummax(before)  # the sums do not decrease


def _count_within(flags: jax.Array, groups: jax.Array) -> jax.Array:
    return _sum_within(flags.astype(jnp.int32), groups)


def _rank(scores: jax.Array, groups: jax.Array) -> jax.Array:
    """Return for each of the scores [l] how many of its group are lower."""
    order = jnp.lexsort((scores, groups))
    at = jnp.arange(len(scores))
    starts = jax.lax.cummax(jnp.where(_first(groups), at, 0))  # sorting keeps the groups' places
    return jnp.zeros_like(at).at[order].set(at - starts)


def _write(
    columns: Sequence[tuple[Any, jax.Array]], segments: jax.Array, length: int, pad: int
) -> tuple[jax.Array, jax.Array]:
    """Write the values of each place one after the other: ids [length] and segment ids [length], padded.

    Args:
      columns: pairs (values, whether they are written), [l] each; values of one place are written in this order.
      segments: [l], from 0.
      length: number of ids to return; later ones are dropped.
      pad: id in unused places.
    """
    values = jnp.stack([jnp.broadcast_to(values, segments.shape) for values, _ in columns], axis=1).ravel()
    written = jnp.stack([flags for _, flags in columns], axis=1).ravel()
    where = jnp.where(written, jnp.cumsum(written) - 1, length)
    ids = jnp.full(length, pad, jnp.int32).at[where].set(values.astype(jnp.int32), mode="drop")
    numbers = jnp.repeat(segments + 1, len(columns)).astype(jnp.int32)
    return ids, jnp.zeros(length, jnp.int32).at[where].set(numbers, mode="drop")
