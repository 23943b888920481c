"""Claims about jtasks.data.pipeline: batches are a pure function of (seed, step), however they are read."""

import itertools
import subprocess
import sys
import threading
import time
import tracemalloc

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from jtasks.data import fingerprint, pipeline, shuffle
from jtasks.data.batch_plan import BatchPlan
from jtasks.errors import ConfigError, DataError


class Rows:
    """A sequence of examples read one by one, some of them unreadable; picklable, for worker processes."""

    def __init__(self, n, broken=()):
        self.n, self.broken = n, broken

    def __len__(self):
        return self.n

    def __getitem__(self, i):
        if i in self.broken:
            raise OSError("disk on fire")
        return {"x": np.float32([i, -i]), "y": np.int32(i % 7), "name": f"example {i}"}


def arrays(n):
    i = np.arange(n)
    return {"x": np.stack([i, -i], 1).astype(np.float32), "y": (i % 7).astype(np.int32), "name": i.astype(str)}


def on(devices):
    mesh = jax.make_mesh((devices,), ("data",), axis_types=(AxisType.Auto,), devices=jax.devices()[:devices])
    return NamedSharding(mesh, PartitionSpec("data"))


def equal(one, other):
    assert set(one) == set(other)
    for name in one:
        np.testing.assert_array_equal(one[name], other[name], err_msg=name)
        assert one[name].dtype == other[name].dtype, name


def prefetchers():
    return [thread for thread in threading.enumerate() if thread.name == "prefetch"]


SIZES = {"n": st.integers(1, 40), "b": st.integers(1, 50), "seed": st.integers(0, 2**31 - 1)}


# The order


def test_batch_at_is_pure():
    plan = BatchPlan(30, 3, 8, shuffle=True)
    first = pipeline.batch_at(arrays(30), plan, 5)
    pipeline.batch_at(arrays(30), plan, 99)
    equal(first, pipeline.batch_at(arrays(30), plan, 5))
    equal(first, pipeline.batch_at(Rows(30), plan, 5))
    assert not np.array_equal(first["x"], pipeline.batch_at(arrays(30), plan, 6)["x"])


@settings(max_examples=40, deadline=None)
@given(**SIZES, start=st.integers(0, 5))
def test_epochs_are_permutations_strung_together(n, b, seed, start):
    plan = BatchPlan(n, seed, b, shuffle=True)
    steps = range(start, start + 3 * n // b + 3)
    stream = np.concatenate([plan.at(step * b + np.arange(b))[0] for step in steps])
    offset = -(start * b) % n  # to the first epoch that begins in here
    for k in range((len(stream) - offset) // n):
        np.testing.assert_array_equal(np.sort(stream[offset + k * n :][:n]), np.arange(n))


@settings(max_examples=40, deadline=None)
@given(**SIZES, other=st.integers(1, 50))
def test_seeds_follow_from_run_epoch_and_example_whatever_the_batch_size(n, b, seed, other):
    def seeds(batch_size):
        stream = {}
        plan = BatchPlan(n, seed, batch_size, shuffle=True)
        for step in range(2 * n // batch_size + 1):
            positions = step * batch_size + np.arange(batch_size)
            indices, entries = plan.at(positions)
            stream |= {(p // n, i): s for p, i, s in zip(positions, indices, entries["seed"], strict=True)}
        return {key: value for key, value in stream.items() if key[0] < 2}

    assert seeds(b) == seeds(other)


# Evaluation


@pytest.mark.parametrize("batch_size", [1, 7, 64, 90])
def test_evaluation_covers_every_example_once_in_order(batch_size):
    plan = BatchPlan(90, 0, batch_size, shuffle=False)
    batches = [pipeline.batch_at(arrays(90), plan, step) for step in range(-(-90 // batch_size))]
    x = np.concatenate([batch["x"][batch["mask"] == 1, 0] for batch in batches])
    np.testing.assert_array_equal(x, np.arange(90))
    assert all(len(batch["mask"]) == batch_size for batch in batches)
    seeds = np.concatenate([batch["seed"][batch["mask"] == 1] for batch in batches])
    np.testing.assert_array_equal(seeds, shuffle.example_seeds(0, np.zeros(90, int), np.arange(90)))


# Reading ahead


@pytest.mark.parametrize("source", [arrays, Rows])
@pytest.mark.parametrize("shuffle", [True, False])
def test_batches_equal_batch_at(source, shuffle):
    plan, examples = BatchPlan(20, 1, 8, shuffle), source(20)
    found = list(pipeline.batches(examples, plan, range(3), on(1), threads=4))
    assert len(found) == 3
    for step, batch in enumerate(found):
        equal(jax.device_get(batch), pipeline.batch_at(examples, plan, step))


@pytest.mark.parametrize("source", [arrays, Rows])
def test_starting_at_a_step_gives_the_tail_of_starting_at_the_first(source):
    plan, examples = BatchPlan(20, 1, 8, shuffle=True), source(20)
    whole = list(pipeline.batches(examples, plan, range(9), on(1), threads=2))
    tail = list(pipeline.batches(examples, plan, range(6, 9), on(1), threads=2))
    for one, other in zip(whole[6:], tail, strict=True):
        equal(jax.device_get(one), jax.device_get(other))


@pytest.mark.parametrize("source", [arrays, Rows])
def test_eight_devices_hold_the_same_global_batch_one_eighth_each(source):
    plan, examples = BatchPlan(20, 1, 16, shuffle=True), source(20)
    for step, batch in enumerate(pipeline.batches(examples, plan, range(2), on(8), threads=4)):
        expected = pipeline.batch_at(examples, plan, step)
        equal(jax.device_get(batch), expected)
        shards = sorted(batch["x"].addressable_shards, key=lambda shard: shard.index[0].start or 0)
        assert [shard.data.shape for shard in shards] == [(2, 2)] * 8
        np.testing.assert_array_equal(np.concatenate([shard.data for shard in shards]), expected["x"])


@pytest.mark.parametrize(("workers", "steps"), [(1, 2), (2, 5), (3, 2)])
def test_worker_processes_read_the_same_batches(workers, steps):
    plan = BatchPlan(20, 1, 8, shuffle=True)
    found = list(pipeline.batches(Rows(20), plan, range(steps), on(1), workers=workers))
    assert len(found) == steps
    for step, batch in enumerate(found):
        equal(jax.device_get(batch), pipeline.batch_at(Rows(20), plan, step))


def test_a_collate_fn_sees_example_dicts_from_either_source():
    def collate(examples):
        assert set(examples[0]) == {"x", "y", "name"}
        return {"sum": np.sum([example["x"] for example in examples], axis=1)}

    plan = BatchPlan(20, 1, 8, shuffle=True)
    one, other = (
        [jax.device_get(batch) for batch in pipeline.batches(examples, plan, range(2), on(1), collate=collate)]
        for examples in (arrays(20), Rows(20))
    )
    assert set(one[0]) == {"sum", "mask", "seed"}
    for a, b in zip(one, other, strict=True):
        equal(a, b)
    equal(one[1], pipeline.batch_at(arrays(20), plan, 1, collate))


def test_memory_mapped_arrays_are_read(tmp_path):
    np.save(tmp_path / "x.npy", arrays(20)["x"])
    mapped = {"x": np.load(tmp_path / "x.npy", mmap_mode="r")}
    plan = BatchPlan(20, 1, 8, shuffle=True)
    (batch,) = pipeline.batches(mapped, plan, range(1), on(1))
    np.testing.assert_array_equal(batch["x"], pipeline.batch_at(arrays(20), plan, 0)["x"])


@pytest.mark.parametrize("source", [arrays, Rows])
def test_text_stays_off_the_device_and_wide_numbers_become_narrow(source):
    batch = pipeline.batch_at(source(20), BatchPlan(20, 0, 4, shuffle=True), 0)
    assert set(batch) == {"x", "y", "mask", "seed"}
    wide = {"a": np.arange(4), "b": np.ones(4), "c": np.array([True] * 4), "d": np.arange(4, dtype=np.uint8)}
    kinds = {k: v.dtype.name for k, v in pipeline.batch_at(wide, BatchPlan(4, 0, 4, shuffle=False), 0).items()}
    assert kinds == {"a": "int32", "b": "float32", "c": "bool", "d": "uint8", "mask": "float32", "seed": "uint32"}


# Mistakes


@pytest.mark.parametrize("value", [2**31, -(2**40), 2**63 - 1])
def test_whole_numbers_that_a_device_would_change_are_refused(value):
    rows = {"id": np.array([0, value])}
    with pytest.raises(DataError, match=rf"the entry 'id' of a batch holds {value}, which int32 cannot"):
        pipeline.batch_at(rows, BatchPlan(2, 0, 2, shuffle=False), 0)
    small = pipeline.batch_at({"id": rows["id"] % 2**31}, BatchPlan(2, 0, 2, shuffle=False), 0)
    assert small["id"].dtype == np.int32


def test_arrays_of_unequal_lengths_are_named():
    with pytest.raises(DataError, match=r"unequal lengths.*'a': 3, 'b': 4"):
        pipeline.size({"a": np.zeros(3), "b": np.zeros(4)})


def test_a_dataset_without_arrays_is_an_error():
    with pytest.raises(DataError):
        pipeline.size({})


def test_an_unreadable_example_names_its_index():
    with pytest.raises(DataError, match="example 13 of the dataset cannot be read: OSError: disk on fire"):
        pipeline.batch_at(Rows(20, broken=[13]), BatchPlan(20, 0, 20, shuffle=False), 0)


def test_an_unreadable_example_names_its_index_when_read_ahead():
    batches = pipeline.batches(Rows(20, broken=[13]), BatchPlan(20, 0, 4, shuffle=False), range(5), on(1), threads=2)
    with pytest.raises(DataError, match="example 13 of the dataset cannot be read: OSError: disk on fire"):
        list(batches)
    assert not prefetchers()


@pytest.mark.parametrize("name", ["mask", "seed"])
def test_the_names_that_the_library_adds_are_reserved(name):
    with pytest.raises(ConfigError, match=rf"\['{name}'\]"):
        pipeline.batch_at({"x": np.zeros(4), name: np.zeros(4)}, BatchPlan(4, 0, 2, shuffle=True), 0)
    with pytest.raises(ConfigError, match=rf"\['{name}'\]"):
        list(pipeline.batches([{name: 1.0}] * 4, BatchPlan(4, 0, 2, shuffle=True), range(1), on(1), threads=1))


@pytest.mark.parametrize("rows", [[{"x": np.zeros(2)}, {"x": np.zeros(3)}], [{"x": 1, "y": 2}, {"x": 1}]])
def test_examples_that_do_not_stack_ask_for_a_collate_fn(rows):
    with pytest.raises(DataError, match=r"cannot be stacked .*give the task a collate_fn"):
        pipeline.batch_at(rows, BatchPlan(2, 0, 2, shuffle=False), 0)


# Prefetching


def test_prefetch_keeps_order_and_ends():
    assert list(pipeline.prefetch(iter(range(50)))) == list(range(50))
    assert list(pipeline.prefetch(iter([]))) == []
    assert not prefetchers()


def test_batches_that_a_program_leaves_open_end_with_it_without_a_word():
    program = "from jtasks.data.pipeline import prefetch; batches = prefetch(iter(range(9))); print(next(batches))"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stdout, done.stderr) == (0, "0\n", "")


def test_prefetch_raises_what_the_source_raised_after_what_it_gave():
    def source():
        yield 1
        raise KeyError("gone")

    found = pipeline.prefetch(source())
    assert next(found) == 1
    with pytest.raises(KeyError, match="gone"):
        next(found)
    assert not prefetchers()


def test_prefetch_abandoned_early_ends_its_thread():
    found = pipeline.prefetch(itertools.count())
    assert next(found) == 0 and prefetchers()
    found.close()
    assert not prefetchers()


def test_prefetch_reads_as_far_ahead_as_asked_and_no_further():
    taken, ahead = [], []

    def numbers():
        for i in range(100):
            ahead.append(i + 1 - len(taken))
            yield i

    prefetched = pipeline.prefetch(numbers(), depth=2)
    taken.append(next(prefetched))
    deadline = time.monotonic() + 60
    while max(ahead) < 3:  # two waiting, one in the thread's hands
        assert time.monotonic() < deadline
        time.sleep(0.01)
    for number in prefetched:
        taken.append(number)
    assert taken == list(range(100))
    assert max(ahead) <= 4  # one on its way to us


def test_batches_abandoned_early_leave_no_thread():
    found = pipeline.batches(Rows(1000), BatchPlan(1000, 0, 4, shuffle=True), range(10**6), on(1), threads=2)
    next(found)
    found.close()
    assert not prefetchers()


class _Made:
    """A source of 10^9 examples."""

    def __len__(self):
        return 10**9

    def __getitem__(self, index):
        return {"x": np.float32(index % 7)}


def test_the_first_batch_of_a_billion_examples_takes_no_memory_for_the_others():
    tracemalloc.start()
    prints = fingerprint.of(_Made())
    plan = BatchPlan(10**9, 3, 64, shuffle=True)
    batch = pipeline.batch_at(_Made(), plan, 10**7)  # in the middle of an epoch
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert prints["examples"] == 10**9 and batch["x"].shape == (64,) and len(np.unique(batch["seed"])) == 64
    assert peak < 2**21
