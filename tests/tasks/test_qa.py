"""Claims about the task `qa`."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from finetune import config, prepared

from jtasks import task
from jtasks.data import squad
from jtasks.errors import DataError
from jtasks.run import predict
from jtasks.run.loop import train

QA = task.load("jtasks.tasks.qa")


def spans_of(start, end, context, length):
    """All spans by the textbook: (score, first, last), the best first."""
    places = np.flatnonzero(context)
    found = [(start[i] + end[j], i, j) for i in places for j in places if i <= j < i + length]
    return sorted(found, key=lambda span: -span[0])


@pytest.mark.parametrize(("answer", "best"), [(4, 5), (30, 20), (1, 3)])
def test_the_best_spans_of_a_window_are_found(tmp_path, monkeypatch, answer, best):
    made = prepared("squad.py:small", tmp_path, f"data.max_answer_tokens={answer}", f"data.num_spans={best}")
    b, t = 6, 24
    random = np.random.default_rng(0)
    logits = random.normal(size=(b, t, 2)).astype(np.float32)
    monkeypatch.setattr(QA, "_logits", lambda params, batch, rng, config: jnp.asarray(logits))
    segment_ids = (np.arange(t) < random.integers(8, t + 1, b)[:, None]).astype(np.uint8)
    token_types = segment_ids * (np.arange(t) >= 5).astype(np.uint8)
    found = jax.device_get(
        QA.predict_fn({}, {"segment_ids": segment_ids, "token_types": token_types}, None, made.config)
    )
    for row in range(b):
        context = (token_types[row] > 0) & (np.arange(t) < segment_ids[row].sum() - 1)
        expected = spans_of(*logits[row].T, context, answer)[:best]
        n = len(expected)
        np.testing.assert_allclose(found["score"][row, :n], [s for s, _, _ in expected], rtol=1e-6)
        got = list(zip(found["start"][row, :n].tolist(), found["end"][row, :n].tolist(), strict=True))
        assert got == [(i, j) for _, i, j in expected]
        assert (found["score"][row, n:] <= squad.NO_SPAN).all()
        np.testing.assert_allclose(found["none"][row], logits[row, 0].sum(), rtol=1e-6)


def window(name, context, answers, offsets, begin=3):
    return {
        "question": squad.Question(name, "where?", context, answers),
        "offsets": np.array(offsets, np.int32),
        "begin": np.int32(begin),
    }


def said(none, *found):
    """An output: the score of no answer, and (score, start, end)."""
    scores, starts, ends = zip(*found, strict=True)
    return {"none": np.float32(none), "score": np.float32(scores), "start": np.array(starts), "end": np.array(ends)}


CONTEXT = "in Rome or Paris"
LEFT = window("1", CONTEXT, [(3, "Rome")], [(0, 2), (3, 7), (8, 10)])  # in Rome or
RIGHT = window("1", CONTEXT, [(3, "Rome")], [(8, 10), (11, 16)])  # or Paris
NOTHING = window("2", "nowhere", [], [(0, 7)])
EXAMPLES = [LEFT, NOTHING, RIGHT]
OUTPUTS = [
    said(1.0, (4.0, 4, 4), (3.0, 3, 4), (-1e30, 0, 0)),
    said(5.0, (2.0, 3, 3), (-1e30, 1, 0)),
    said(3.0, (3.5, 4, 4), (4.5, 3, 3)),
]


def test_windows_of_a_question_are_merged():
    one, two = squad.predictions(EXAMPLES, OUTPUTS, 20)
    assert [text for text, _ in one.best] == ["or", "Rome", "Paris", "in Rome"]
    assert [score for _, score in one.best] == pytest.approx([4.5, 4.0, 3.5, 3.0])
    assert one.odds == pytest.approx(1.0 - 4.5)  # the worst of no answer against the best of all
    assert two.odds == pytest.approx(5.0 - 2.0)
    assert (one.answer(0.0), two.answer(0.0), two.answer(4.0)) == ("or", "", "nowhere")


def test_scores_of_both_versions(tmp_path):
    made = prepared("squad.py:small", tmp_path, "data.threshold=0.0")
    result = QA.score_fn(EXAMPLES, OUTPUTS, made.config)
    assert (result["exact"], result["answerable_exact"], result["unanswerable_exact"]) == (50.0, 0.0, 100.0)
    assert (result["best_f1"], result["best_exact"]) == (50.0, 50.0)
    never = prepared("squad.py:small", tmp_path, "data.threshold=-9.0")
    assert QA.score_fn(EXAMPLES, OUTPUTS, never.config)["unanswerable_exact"] == 100.0
    plain = config("squad.py:small", tmp_path, "data.unanswerable=False")
    better = [said(1.0, (9.0, 4, 4)), OUTPUTS[2]]
    assert QA.score_fn([LEFT, RIGHT], better, plain) == {"exact": 100.0, "f1": 100.0}


def test_the_report_is_the_official_file(tmp_path):
    made = prepared("squad.py:small", tmp_path)
    files = {name: json.loads(text) for name, text in QA.export_fn(EXAMPLES, OUTPUTS, made.config).items()}
    assert files["answers.json"] == {"1": "or", "2": ""}
    assert files["odds.json"] == {"1": -3.5, "2": 3.0}
    assert files["best.json"]["1"][1] == {"text": "Rome", "score": 4.0}
    shown = QA.show_fn(EXAMPLES, OUTPUTS, made.config)["answers"]
    assert shown.split("\n") == [
        "where?",
        "  found: or",
        "  truly: Rome",
        "where?",
        "  found: (no answer)",
        "  truly: (no answer)",
    ]


def test_a_context_without_tokens_has_no_answer():
    empty = window("1", "", [], np.zeros((0, 2)))
    (predicted,) = squad.predictions([empty], [said(0.0, (-1e30, 0, 0))], 20)
    assert predicted.best == [] and predicted.answer() == ""


def test_questions_without_an_answer_must_be_expected(tmp_path):
    settings = config("squad.py:small", tmp_path, "data.unanswerable=False")
    with pytest.raises(DataError, match=r"train.json has questions without answers: set config.data.unanswerable=True"):
        QA.dataset("train", settings)


def test_the_loss_is_the_mean_of_start_and_end_and_right_logits_score_full_marks(tmp_path, monkeypatch):
    made = prepared("squad.py:small", tmp_path, "data.max_answer_tokens=8")
    examples = made.require("valid")
    batch = {name: x for name, x in examples.items() if x.dtype != object}
    batch["mask"] = np.ones(len(batch["start"]), np.float32)

    def logits(params, batch, rng, config):
        ends = jnp.stack([jax.nn.one_hot(batch[name], batch["tokens"].shape[1]) for name in ("start", "end")], -1)
        return jnp.where(batch["segment_ids"][:, :, None] > 0, 50.0 * ends, squad.NO_SPAN)

    monkeypatch.setattr(QA, "_logits", logits)
    metrics = QA.eval_fn({}, batch, made.config)
    assert float(metrics["start"].value + metrics["end"].value) < 1e-6 and float(metrics["accuracy"].value) == 1
    monkeypatch.setattr(QA, "_logits", lambda p, b, r, c: 0 * logits(p, b, r, c))
    uniform = QA.eval_fn({}, batch, made.config)
    assert uniform["start"].weight == uniform["end"].weight == 0.5
    np.testing.assert_allclose(uniform["start"].value, np.log(batch["tokens"].shape[1]), rtol=1e-5)
    monkeypatch.setattr(QA, "_logits", logits)
    outputs = jax.device_get(QA.predict_fn({}, batch, None, made.config))
    rows = [{name: x[i] for name, x in examples.items()} for i in range(len(batch["mask"]))]
    found = [{name: x[i] for name, x in outputs.items()} for i in range(len(rows))]
    result = QA.score_fn(rows, found, made.config)
    assert result["exact"] == result["f1"] == result["best_f1"] == 100.0


@pytest.mark.slow
def test_predict_mode_writes_the_official_file(tmp_path):
    settings = config("squad.py:small", tmp_path, "steps=1", "epochs=0.0", "show_count=0")
    train(settings, tmp_path / "run")
    path = predict.run(settings, tmp_path / "run", "valid")
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    assert [line["index"] for line in lines] == list(range(len(lines))) and len(lines[0]["start"]) == 20
    answers = json.loads((tmp_path / "run" / "answers-valid.json").read_text())
    assert list(answers) == [f"dev{i}" for i in range(7)]
    contexts = {q.name: q.context for q in squad.questions("dev.json", "valid", folder=str(tmp_path))}
    assert all(answer in contexts[name] for name, answer in answers.items())


def test_questions_whose_answers_nobody_tells_are_shown_but_neither_trained_on_nor_scored(tmp_path):
    made = prepared("squad.py:small", tmp_path)
    content = json.loads((tmp_path / "dev.json").read_text())
    for paragraph in content["data"][0]["paragraphs"]:
        del paragraph["qas"][0]["answers"], paragraph["qas"][0]["is_impossible"]
    (tmp_path / "dev.json").write_text(json.dumps(content))
    assert (QA.dataset("valid", made.config)["start"] == -1).all()
    (tmp_path / "train.json").write_text(json.dumps(content))
    with pytest.raises(DataError, match=r"train\.json: question 'dev0' has no 'answers', which training needs"):
        QA.dataset("train", made.config)
    hidden = [window("1", CONTEXT, None, [(0, 2), (3, 7), (8, 10)])]
    assert "truly: (not told)" in QA.show_fn(hidden, OUTPUTS[:1], made.config)["answers"]
    with pytest.raises(DataError, match="question '1' has no 'answers' to compare with"):
        QA.score_fn(hidden, OUTPUTS[:1], made.config)


def test_untold_answers_count_for_nothing_in_the_loss(tmp_path, monkeypatch):
    made = prepared("squad.py:small", tmp_path)
    logits = np.random.default_rng(0).normal(size=(2, 9, 2)).astype(np.float32)
    monkeypatch.setattr(QA, "_logits", lambda params, batch, rng, config: jnp.asarray(logits))
    told = {"mask": np.array([1.0, 0.0], np.float32), "start": np.array([3, 0]), "end": np.array([4, 0])}
    untold = {"mask": np.ones(2, np.float32), "start": np.array([3, -1]), "end": np.array([4, -1])}
    one, two = (QA.eval_fn({}, batch, made.config) for batch in (told, untold))
    for name, mean in one.items():
        assert (float(mean.total), float(mean.count)) == (float(two[name].total), float(two[name].count))
