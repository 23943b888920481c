"""Claims about jtasks.run.spool: what goes in comes out in any order, and memory holds little of it."""

import json
import os
import tempfile
import tracemalloc
import types
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
import pytest
import tiny

from jtasks import metrics
from jtasks.data import fingerprint, pipeline
from jtasks.data.lazy import Lazy, each
from jtasks.errors import DataError
from jtasks.run import evaluate, predict
from jtasks.run.job import Job
from jtasks.run.spool import Spool


class Pair(NamedTuple):
    left: object
    right: object


def test_trees_of_any_dtype_and_of_several_lengths_come_back_whatever_their_order():
    spool, rng = Spool(), np.random.default_rng(0)
    expected = {}
    for indices, length in (([7, 2, 0], 5), ([3, 1], 2), ([4, 6, 5], 5)):
        batch = {
            "half": rng.normal(size=(4, length)).astype(jnp.bfloat16),
            "whole": rng.integers(0, 9, (4, 2, length)),
            "pair": Pair(rng.normal(size=4).astype(np.float32), rng.random(4) < 0.5),
            "empty": np.zeros((4, 0, 3)),
            "complex": rng.normal(size=4) * 1j,
            "none": None,
        }
        rows = np.arange(4)[-len(indices) :]
        spool.add(np.array(indices), batch, rows)
        for index, row in zip(indices, rows, strict=True):
            kept = {name: x[row] for name, x in batch.items() if isinstance(x, np.ndarray)}
            expected[index] = kept | {"pair": Pair(*(x[row] for x in batch["pair"])), "none": None}
    for index, tree in expected.items():
        got = spool.read(index)
        assert got.keys() == tree.keys() and type(got["pair"]) is Pair and got["none"] is None
        pairs = [(got[name], tree[name]) for name in ("half", "whole", "empty", "complex")]
        for one, other in [*pairs, *zip(got["pair"], tree["pair"], strict=True)]:
            assert type(one) is type(other) and one.dtype == other.dtype and one.shape == other.shape
            assert np.array_equal(one, other)
    assert f"{spool.read(7)['pair'].left:.3f}" == f"{expected[7]['pair'].left:.3f}"  # a number, as formats want one


def test_its_files_are_closed_with_it():
    spool = Spool()
    files = spool.content, spool.places
    del spool
    for file in files:
        with pytest.raises(OSError, match="Bad file"):
            os.fstat(file)


def test_a_full_disk_is_told_with_what_to_do(monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "pwrite", full)
    with pytest.raises(DataError, match=r"do not fit into .* \(No space left on device\): set TMPDIR"):
        Spool().add(np.array([0]), {"x": np.zeros(1)}, np.array([0]))


def test_without_a_folder_for_temporary_files_that_is_told(monkeypatch, tmp_path):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "absent"))
    with pytest.raises(DataError, match=r"absent \(No such file or directory\): set TMPDIR"):
        Spool()


def test_a_lazy_sequence_reads_what_is_asked_for_and_nothing_else():
    seen = []
    lazy = Lazy(range(10**9), lambda i: seen.append(i) or i)
    assert len(lazy) == 10**9 and not seen
    assert lazy[-1] == 10**9 - 1 and lazy[np.int64(5)] == 5 and list(lazy[10:4:-3]) == [10, 7]
    assert len(lazy[::2]) == 5 * 10**8 and lazy[4:][1:][0] == 5
    assert seen == [10**9 - 1, 5, 10, 7, 5]
    with pytest.raises(IndexError):
        Lazy(range(3), lazy.read)[3]
    assert [i for i, _ in zip(Lazy(range(3), lambda i: i), "abc", strict=True)] == [0, 1, 2]


@pytest.mark.parametrize("examples", [{"x": np.arange(3)}, [{"x": i} for i in range(3)]])
def test_examples_are_a_sequence_whatever_the_dataset_is(examples):
    assert [int(row["x"]) for row in predict.rows(examples)] == [0, 1, 2]
    assert len(predict.rows(examples)) == pipeline.size(examples)


def test_predicting_holds_a_few_outputs_in_memory_not_a_split(tmp_path, monkeypatch):
    n, width = 256, 2**16  # 16 MiB of outputs
    task = types.SimpleNamespace(
        predict_fn=lambda params, batch, rng, config: {"x": batch["i"][:, None] % 2 == jnp.zeros((1, width))},
        answers=lambda examples, outputs, config: each(lambda row: {"said": str(row["i"]) * 2**16}, examples),
        export_fn=lambda examples, outputs, config: {
            "same.txt": str(sum(e["i"] % 2 != o["x"][-1] for e, o in zip(examples, outputs, strict=True)))
        },
    )
    job = Job(task, tiny.config("mnist"), tiny.mesh(1))
    opened = types.SimpleNamespace(job=job, require=lambda split: {"i": np.arange(n)}, params=dict)
    monkeypatch.setattr(predict, "open_run", lambda *_: opened)
    tracemalloc.start()
    try:
        path = predict.run(None, tmp_path, "test")
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 8 * 2**20, peak
    assert (tmp_path / "same-test.txt").read_text() == str(n)
    with path.open() as lines:
        read = [json.loads(line) for line in lines]
    assert [(line["index"], line["x"]) for line in read] == [(i, [i % 2 == 0] * width) for i in range(n)]
    assert [len(line["said"]) for line in read] == [len(str(i)) * 2**16 for i in range(n)]
    assert sorted(p.name for p in tmp_path.iterdir()) == ["predictions-test.jsonl", "same-test.txt"]


@pytest.mark.parametrize("make", [evaluate.make, predict.make])
@pytest.mark.parametrize("kind", ["sequence", "arrays"])
def test_a_split_of_a_billion_examples_is_begun_without_memory_for_each(make, kind):
    n = 10**9
    examples = Lazy(range(n), lambda i: {"x": np.float32(i)})
    if kind == "arrays":
        examples = {"x": np.broadcast_to(np.float32(1), (n,))}
    calls = []

    def poll():
        calls.append(1)
        if len(calls) > 40:
            raise InterruptedError

    task = types.SimpleNamespace(
        eval_fn=lambda params, batch, config: {"loss": metrics.Mean.of(batch["x"], batch["mask"])},
        predict_fn=lambda params, batch, rng, config: {"x": batch["x"]},
    )
    tracemalloc.start()
    try:
        with pytest.raises(InterruptedError):
            make(Job(task, tiny.config("mnist"), tiny.mesh(1)), poll)({}, examples)
        assert fingerprint.of(examples)["examples"] == n
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 64 * 2**20  # a bit each would be twice as much
