"""Claims about text infilling: what is hidden, how often, and that nothing is lost."""

import collections
import itertools
import math

import jax
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from jtasks.ops import augment, infilling

ROWS, LENGTH, WHOLE = 8192, 24, 6000  # the first rows have one document of 12 tokens, the others several
RATE, MEAN = 0.5, 2.0  # of a document of 12 tokens: 6 hidden ones, in T5's way in 3 spans
FIRST, END, MASK, STOPS = 999, 1, 2, (103, 107)


@pytest.fixture(scope="module")
def rows():
    """Tokens [n, l] that differ within a row, and segment ids with gaps: separators and padding."""
    random = np.random.default_rng(0)
    tokens = np.tile(np.arange(100, 100 + LENGTH, dtype=np.int32), (ROWS, 1))
    segments = np.zeros((ROWS, LENGTH), np.int32)
    segments[:WHOLE, :12] = 1
    segments[WHOLE // 2 : WHOLE] = np.roll(segments[WHOLE // 2 : WHOLE], 12, axis=1)  # these hold no full stop
    for row in segments[WHOLE:]:
        separators = random.random(LENGTH) < random.choice([0.0, 0.2, 0.5])
        row[:] = np.where(separators, 0, np.cumsum(separators) + 1)
        row[LENGTH - random.integers(0, 5) :] *= random.integers(0, 2)
    return tokens, segments, np.arange(ROWS, dtype=np.uint32)


@pytest.fixture(scope="module")
def functions():
    spans = infilling.span_lengths(LENGTH, rate=RATE, mean=MEAN, documents=LENGTH)
    whole = infilling.infill_lengths(LENGTH, documents=LENGTH)
    options = {"end": END, "rate": RATE, "mean": MEAN}
    return (
        jax.jit(lambda t, i, s: infilling.corrupt_spans(t, i, augment.keys(s), spans, sentinel=FIRST, **options)),
        jax.jit(lambda t, i, s: infilling.infill(t, i, augment.keys(s), whole, mask=MASK, stops=STOPS, **options)),
    )


@pytest.fixture(scope="module")
def spans(rows, functions):
    return jax.device_get(functions[0](*rows))


@pytest.fixture(scope="module")
def filled(rows, functions):
    return jax.device_get(functions[1](*rows))


def parts(ids, segments):
    """Lists of the ids of each document of a row, in order; padding comes last."""
    count = int((segments > 0).sum())
    assert (np.diff(segments[:count]) >= 0).all() and not segments[count:].any()
    return {number: ids[segments == number].tolist() for number in range(1, segments.max() + 1)}


def documents(tokens, segments):
    numbers = [number for number in np.unique(segments) if number]
    return {k: tokens[segments == number].tolist() for k, number in enumerate(numbers, 1)}


def t5(tokens, masked):
    """T5's noise_span_to_unique_sentinel and nonnoise_span_to_unique_sentinel, with their end marks."""
    source, target, sentinel = [], [], FIRST + 1
    for i, token in enumerate(tokens):
        if masked[i]:
            if i == 0 or not masked[i - 1]:
                sentinel -= 1
                source.append(sentinel)
                target.append(sentinel)
            target.append(token)
        else:
            source.append(token)
    return [*source, END], [*target, END]


def test_spans_are_those_of_t5s_code_in_every_document(rows, spans):
    for i in range(WHOLE - 20, ROWS):
        said, wanted = parts(spans.source[i], spans.source_segment_ids[i]), documents(rows[0][i], rows[1][i])
        answers = parts(spans.target[i], spans.target_segment_ids[i])
        assert said.keys() == wanted.keys() == answers.keys()
        for number, tokens in wanted.items():
            masked = [token not in said[number] for token in tokens]
            assert (said[number], answers[number]) == t5(tokens, masked)
            size = len(tokens)
            assert sum(masked) == min(max(round(size * RATE), 1), size - 1)
            starts = sum(b and not a for a, b in itertools.pairwise([False, *masked]))
            assert starts == min(max(round(sum(masked) / MEAN), 1), sum(masked), size - sum(masked))
            assert not masked[0]


def test_all_divisions_into_spans_are_equally_likely(spans):
    # 6 hidden tokens in 3 spans and 6 others in 3: (5 over 2) squared ways.
    seen = spans.source[:WHOLE]
    counts = collections.Counter(map(bytes, np.where(seen < FIRST - LENGTH, seen % 12, seen)))
    assert len(counts) == 100
    chi_square = sum((count - WHOLE / 100) ** 2 / (WHOLE / 100) for count in counts.values())
    assert abs(chi_square - 99) < 5 * math.sqrt(2 * 99)


def test_lengths_of_t5():
    assert infilling.span_lengths(568) == (512, 114)  # compute_input_and_target_lengths(512, 0.15, 3.0)
    assert [infilling.span_lengths(n) for n in (1, 2, 3)] == [(2, 1), (3, 3), (4, 3)]
    assert infilling.infill_lengths(7, documents=2) == (9, 9)


@pytest.mark.parametrize(("rate", "mean"), [(0.15, 3.0), (0.5, 2.0), (0.9, 1.0)])
def test_lengths_hold_all_divisions_into_documents(rate, mean):
    room = [infilling.span_lengths(n, rate=rate, mean=mean) for n in range(1, 13)]
    for sizes in itertools.chain(*(itertools.combinations_with_replacement(range(1, 10), k) for k in (1, 2, 3))):
        if sum(sizes) <= 12:
            bound = infilling.span_lengths(12, rate=rate, mean=mean, documents=len(sizes))
            for side in (0, 1):
                exact = sum(infilling.span_lengths(size, rate=rate, mean=mean)[side] for size in sizes)
                assert exact <= bound[side]
    assert room == sorted(room)


def sentence(token):
    return sum(token > stop for stop in STOPS)


def test_infilling_keeps_the_order_of_sentences_and_tokens(rows, filled):
    for i in range(WHOLE, ROWS):
        said, wanted = parts(filled.source[i], filled.source_segment_ids[i]), documents(rows[0][i], rows[1][i])
        assert parts(filled.target[i], filled.target_segment_ids[i]) == {n: [*t, END] for n, t in wanted.items()}
        assert said.keys() == wanted.keys()
        for number, tokens in wanted.items():
            *rest, last = said[number]
            shown, masks = [token for token in rest if token != MASK], rest.count(MASK)
            hidden = max(round(len(tokens) * RATE), 1)
            assert last == END and len(shown) == len(tokens) - hidden and set(shown) <= set(tokens)
            assert 1 <= masks <= hidden
            runs = [number for number, _ in itertools.groupby(shown, sentence)]
            assert len(runs) == len(set(runs))
            assert all(sorted(run) == run for run in ([*run] for _, run in itertools.groupby(shown, sentence)))


def test_sentences_have_every_order_equally_often(filled):
    orders = collections.Counter()
    for row in filled.source[: WHOLE // 2]:
        order = tuple(k for k, _ in itertools.groupby((token - 100) // 4 for token in row if token >= 100))
        orders[order] += len(order) == 3
    counts = [count for order, count in orders.items() if len(order) == 3]
    n = sum(counts)
    assert len(counts) == 6 and n > WHOLE / 4
    assert sum((count - n / 6) ** 2 / (n / 6) for count in counts) < 5 + 5 * math.sqrt(2 * 5)


def draw(random, hidden):
    """The definition: lengths until they sum up to `hidden`, at most as many."""
    lengths = []
    while sum(lengths) < hidden:
        left = hidden - sum(lengths)
        lengths.append(left if len(lengths) == hidden - 1 else min(random.poisson(MEAN), left))
    return random.permutation(lengths).tolist()


def test_spans_of_poissons_lengths_lie_anywhere(filled):
    # Documents without full stops; 6 of 12 tokens stay, and n masks lie among them in (6 + n over n) ways.
    random = np.random.default_rng(0)
    wanted = collections.Counter(tuple(draw(random, 6)) for _ in range(20000))
    found, places = collections.Counter(), collections.Counter()
    for row in filled.source[WHOLE // 2 : WHOLE]:
        rest = [int(token) for token in row[: row.tolist().index(END)]]
        masks = tuple(i for i, token in enumerate(rest) if token == MASK)
        places[masks] += 1
        if len(masks) == 2 and masks[1] > masks[0] + 1:  # then each length can be read off
            before = rest[masks[0] - 1] if masks[0] else 111
            found[rest[masks[0] + 1] - before - 1] += 1
    n, expected = WHOLE // 2, collections.Counter()
    for lengths, count in wanted.items():
        expected[len(lengths)] += count / 20000
    for masks, share in expected.items():
        count = sum(number for where, number in places.items() if len(where) == masks)
        assert abs(count / n - share) < 5 * math.sqrt(share * (1 - share) / n) + 0.005
    twos = [number for where, number in places.items() if len(where) == 2]
    each = sum(twos) / math.comb(8, 2)
    assert sum((number - each) ** 2 / each for number in twos) < 27 + 5 * math.sqrt(2 * 27)
    pairs = collections.Counter({lengths[0]: 0 for lengths in wanted if len(lengths) == 2})
    for lengths, count in wanted.items():
        pairs[lengths[0]] += count * (len(lengths) == 2)
    total, drawn = sum(found.values()), sum(pairs.values())
    assert found.keys() <= pairs.keys() and 0 in found
    for length, count in pairs.items():
        share = count / drawn
        assert abs(found[length] / total - share) < 5 * math.sqrt(share * (1 - share) * (1 / total + 1 / drawn))


def test_devices_and_other_values_change_nothing(rows, functions, spans):
    sharding = NamedSharding(jax.make_mesh((8,), ("data",), axis_types=(AxisType.Auto,)), PartitionSpec("data"))
    split = jax.device_get(functions[0](*(jax.device_put(x, sharding) for x in rows)))
    jax.tree.map(np.testing.assert_array_equal, split, spans)
    compiled = functions[0]._cache_size()
    again = functions[0](rows[0], np.zeros_like(rows[1]), rows[2])
    assert functions[0]._cache_size() == compiled
    assert not np.asarray(again.source_segment_ids).any() and (np.asarray(again.target) == END).all()
