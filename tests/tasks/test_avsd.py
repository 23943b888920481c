"""Claims about jtasks.tasks.avsd, on made dialogues whose answers only the video's features tell."""

import functools
import json

import jax
import jax.numpy as jnp
import made_dialogues
import numpy as np
import pytest
import tiny
from front_door import ROOT, run

from jtasks import config as configs
from jtasks import optim
from jtasks.data import pipeline, tokenizers
from jtasks.distributed import sharding
from jtasks.errors import DataError
from jtasks.interop import huggingface, model_config
from jtasks.run import job, step
from jtasks.tasks import avsd

RNG = jax.random.key(0)
SIZES = {"train": 24, "valid": 9, "test": 3}


@pytest.fixture(scope="session")
def folder(tmp_path_factory):
    return made_dialogues.write(tmp_path_factory.mktemp("avsd"), SIZES)


def prepared(folder, *overrides, features="('near', 'far')"):
    """The job of a tiny config."""
    fields = [*made_dialogues.TINY, f"--config.data.dir={folder}", f"--config.data.features={features}", *overrides]
    return job.prepare(configs.load(f"{ROOT}/configs/avsd.py:small", fields))


def batch(made, split="valid", count=8):
    return tiny.first_batch(made, split, count)


@functools.cache
def params(made):
    """Parameters drawn so that every one of them shows."""
    return tiny.drawn(lambda b: avsd.init(RNG, b, made.config), batch(made))


evaluated = jax.jit(avsd.eval_fn, static_argnames="config")
predicted = jax.jit(avsd.predict_fn, static_argnames="config")


@pytest.fixture(scope="module")
def made(folder):
    return prepared(folder)


def test_terms_count_answer_tokens_and_predicted_frames(made):
    found = batch(made, count=12)  # 18 turns
    metrics = jax.device_get(evaluated(params(made), found, config=made.config))
    spoken = [len(exchange["answer"]) + 1 for exchange in _exchanges(made, "valid")][:12]
    assert float(metrics["answer"].count) == sum(min(count, 12) for count in spoken)
    assert float(metrics["video"].count) == sum(found["frames"] - 1) and set(found["frames"]) == {5, 6}
    np.testing.assert_allclose(metrics["perplexity"].value, np.exp(metrics["answer"].value), rtol=1e-5)
    assert metrics["video"].value > 0


def _exchanges(made, split):
    return [row["dialogue"]["dialog"][int(row["turn"])] for row in _rows(made, split)]


def _rows(made, split):
    examples = made.require(split)
    return [pipeline.read(examples, i) for i in range(pipeline.size(examples))]


def test_undisclosed_answers_are_predicted_and_never_count(folder, made):
    test = batch(made, "test", 6)
    assert test["answered"].tolist() == [6, 0] * 3 and len(_rows(made, "test")) == 6
    hidden = {name: value[1::2] for name, value in test.items()}
    metrics = evaluated(params(made), hidden, config=made.config)
    assert float(metrics["answer"].count) == float(metrics["answer"].total) == 0
    assert predicted(params(made), hidden, RNG, config=made.config)["tokens"].shape == (3, 8)
    as_train = prepared(folder, "--config.data.train=avsd_test.json")
    assert [row["turn"] for row in _rows(as_train, "train")] == [0, 0, 0]


def test_the_loss_is_the_sum_of_its_terms_and_reaches_every_parameter(made):
    run = jax.jit(jax.value_and_grad(avsd.loss_fn, has_aux=True), static_argnames="config")
    (loss, metrics), gradient = run(params(made), batch(made), RNG, config=made.config)
    np.testing.assert_allclose(loss, metrics["answer"].value + metrics["video"].value, rtol=1e-6)
    assert all(np.abs(leaf).max() > 0 for leaf in jax.tree.leaves(gradient))


def test_text_alone_has_no_term_for_the_video(folder):
    text = prepared(folder, features="()")
    found = batch(text)
    assert found["video"].shape == (8, 0, 0) and text.config.model.features == 0
    metrics = evaluated(params(text), found, config=text.config)
    assert float(metrics["video"].count) == float(metrics["video"].total) == 0
    assert {"project", "regress"} & set(params(text)) == set() and float(metrics["answer"].value) > 0


@pytest.mark.slow
def test_room_for_more_changes_no_answer(folder, made):
    """More frames and a longer context than there are, and junk in what is not there, are not seen."""
    one, weights = batch(made), params(made)
    roomy = dict(one)
    for name, width in (
        ("video", ((0, 0), (0, 3), (0, 0))),
        ("context", ((0, 0), (0, 5))),
        ("kinds", ((0, 0), (0, 5))),
    ):
        roomy[name] = np.pad(one[name], width)
    roomy["video"][:, one["video"].shape[1] :] = 7
    roomy["context"][roomy["kinds"] == 0] = 3
    more = dict(made.config.model.to_dict(), max_length=made.config.model.max_length + 8)
    wider = configs.Config({**made.config.to_dict(), "model": more})
    table = np.pad(weights["position"]["embedding"], ((0, 8), (0, 0)))
    wide_weights = weights | {"position": {"embedding": table}}
    expected = predicted(weights, one, RNG, config=made.config)
    found = predicted(wide_weights, roomy, RNG, config=wider)
    np.testing.assert_array_equal(found["tokens"], expected["tokens"])
    np.testing.assert_allclose(found["score"], expected["score"], rtol=1e-4)
    for name in ("answer", "video"):
        np.testing.assert_allclose(
            evaluated(wide_weights, roomy, config=wider)[name].value,
            evaluated(weights, one, config=made.config)[name].value,
            rtol=1e-4,
        )


def test_the_score_of_a_predicted_answer_is_what_the_loss_says_of_it(made):
    found, config = batch(made), made.config
    outputs = jax.device_get(predicted(params(made), found, RNG, config=config))
    for row, (tokens, score) in enumerate(zip(outputs["tokens"], outputs["score"], strict=True)):
        ended = np.flatnonzero(tokens == config.model.end)
        count = ended[0] + 1 if len(ended) else len(tokens)
        answer = np.full((8, 13), config.model.end, np.int32)
        answer[row, 1 : count + 1] = tokens[:count]
        answered = np.zeros(8, np.int32)
        answered[row] = count
        metrics = evaluated(params(made), found | {"answer": answer, "answered": answered}, config=config)
        np.testing.assert_allclose(-metrics["answer"].total / count, score, rtol=1e-4)
        assert count > config.beam.min_len


def trained(made, steps):
    config = made.config
    examples = made.require("train")
    plan = made.plan(examples, shuffle=True)
    first = jax.jit(lambda b: avsd.init(RNG, b, config))(made.batch_at(examples, plan, 0))
    optimizer, schedule = optim.optimizer(config.optim, steps, first)
    trainable = optim.trainable(config.optim, first)
    update = jax.jit(step.make_train_step(avsd, config, optimizer, schedule, trainable, made.mesh))
    state = step.init_state(first, optimizer, ema=False)
    for found in pipeline.batches(
        examples, plan, range(steps), sharding.batch_sharding(made.mesh), collate=made.collate
    ):
        state, _ = jax.block_until_ready(update(state, found))  # steps far ahead starve the collectives of CPUs
    return jax.device_get(state.params)


@pytest.mark.slow
def test_the_model_learns_to_use_the_features(folder):
    made = prepared(
        folder, "--config.batch_size=16", "--config.data.valid=avsd_train.json", "--config.data.turns=asked",
        "--config.model.width=32", "--config.model.dropout=0.0", "--config.beam.min_len=0", "--config.optim.lr=0.01",
    )  # fmt: skip
    weights, found = trained(made, 120), batch(made, "valid", 24)
    blind = found | {"video": np.zeros_like(found["video"])}
    seeing, guessing = (evaluated(weights, b, config=made.config)["answer"].value for b in (found, blind))
    assert seeing < 0.1 and guessing > 0.3
    outputs = jax.device_get(predicted(weights, found, RNG, config=made.config))
    outputs = [{name: value[row] for name, value in outputs.items()} for row in range(24)]
    said = avsd.answer_texts(outputs, made.config)
    assert said == [exchange["answer"] for exchange in _exchanges(made, "valid")]
    assert avsd.score_fn(_rows(made, "valid"), outputs, made.config)["bleu_1"] > 0.99


def outputs_of(made, texts):
    tokenizer, end = tokenizers.of(made.config, avsd.texts), made.config.model.end
    ids = [[*tokenizer.encode(text).ids, end] for text in texts]
    return [{"tokens": np.array((row + [end] * 8)[:8]), "score": np.float32(-1)} for row in ids]


def test_scores_leave_out_turns_without_a_reference(folder, made):
    rows = _rows(made, "test")
    scores = avsd.score_fn(rows, outputs_of(made, ["a man", "red"] * 3), made.config)
    assert scores["bleu_1"] > 0.99 and set(scores) == {"bleu_1", "bleu_2", "bleu_3", "bleu_4", "cider"}
    assert avsd.score_fn(rows[1::2], outputs_of(made, ["red"] * 3), made.config) == {}


def test_a_page_shows_caption_turns_and_both_answers(made):
    page = avsd.show_fn(_rows(made, "valid")[1:2], outputs_of(made, ["a man"]), made.config)["dialogues"]
    color = _exchanges(made, "valid")[1]["answer"]
    lines = [line.split(maxsplit=1) for line in page.splitlines() if line]
    assert page.startswith("=== valid0, turn 2\n")
    assert lines[1:] == [
        ["caption", "a man ."],
        ["summary", "he sits ."],
        ["Q", "who is it ?"],
        ["A", "a man"],
        ["question", "which color ?"],
        ["generated", "a man"],
        ["reference", color],
        ["reference", f"all {color}"],
    ]


def test_official_results_fill_in_what_is_undisclosed_or_else_every_answer(made):
    files = avsd.export_fn(_rows(made, "test"), outputs_of(made, ["no", "red"] * 3), made.config)
    dialogs = json.loads(files["dstc7.json"])["dialogs"]
    assert [[turn["answer"] for turn in dialogue["dialog"]] for dialogue in dialogs] == [["a man", "red"]] * 3
    assert json.loads(files["coco.json"])[0] == {"image_id": "test0_1", "caption": "red"}
    files = avsd.export_fn(_rows(made, "valid"), outputs_of(made, ["no", "red"] * 9), made.config)
    dialogs = json.loads(files["dstc7.json"])["dialogs"]
    assert [[turn["answer"] for turn in dialogue["dialog"]] for dialogue in dialogs] == [["no", "red"]] * 9
    assert len(json.loads(files["coco.json"])) == 18
    twice = [row | {"dialogue": dict(row["dialogue"])} for row in _rows(made, "valid")[:2] * 2]
    assert list(avsd.export_fn(twice, outputs_of(made, ["no"] * 4), made.config)) == ["coco.json"]


def test_gpt2s_weights_are_taken_and_what_the_video_needs_is_left(folder):
    golden = ROOT / "tests" / "golden" / "gpt2_lm"
    fields = ("width", "depth", "heads", "epsilon", "dropout", "attention_dropout", "tied", "activation", "norm")
    found = model_config.model_fields(golden)
    sizes = [f"--config.model.{name}={found[name]}" for name in fields]
    overrides = [f"--config.init_from=hf:{golden}", "--config.data.max_context_tokens=32", "--config.data.frames=4"]
    made = prepared(folder, *sizes, *overrides)
    assert (made.config.model.vocab, made.config.model.max_length) == (101, 64)
    fresh = jax.jit(lambda b: avsd.init(RNG, b, made.config))(batch(made))
    taken, report = huggingface.import_params(str(golden), fresh, made.config.model, "GPT2LMHeadModel", print)
    assert {name.split("/")[0] for name in report["taken"]} == {"tokens", "position", "blocks", "norm"}
    assert {text.split("/")[0] for text in report["left"]} == {"kind", "project", "regress"}
    assert not report["unused"] and jnp.all(taken["kind"]["embedding"] == fresh["kind"]["embedding"])


def test_missing_features_end_the_run_before_it_starts(folder, tmp_path):
    made_dialogues.write(tmp_path, {"train": 2}, features=False)
    with pytest.raises(DataError, match="4 of 4 files of features are missing"):
        prepared(tmp_path)
    elsewhere = prepared(tmp_path, f"--config.data.features_dir={folder}")
    assert batch(elsewhere, "train", 4)["video"].shape == (4, 6, 5)


def front_door(folder, workdir):
    arguments = ["--config=configs/avsd.py:small", f"--workdir={workdir}", f"--config.data.dir={folder}"]
    arguments += [*made_dialogues.TINY, made_dialogues.FEATURES, "--config.batch_size=8", "--config.show_count=2"]
    return [*arguments, "--config.steps=4"]


@pytest.fixture(scope="module")
def finished(folder, tmp_path_factory):
    workdir = tmp_path_factory.mktemp("finished")
    return workdir, run(*front_door(folder, workdir), devices=8)[0]


def test_it_trains_scores_and_shows_on_eight_devices(finished):
    workdir, result = finished
    assert {"valid/loss", "valid/perplexity", "valid/cider", "test/answer", "test/video"} <= set(result)
    assert "=== test0, turn 2" in (workdir / "show" / "dialogues-test-4.txt").read_text()


@pytest.mark.slow
def test_its_other_modes(folder, finished):
    workdir, result = finished
    again, _ = run(*front_door(folder, workdir), "--mode=eval", "--split=valid")
    assert "valid/bleu_4" in again
    for name in again:
        np.testing.assert_allclose(again[name], result[name], rtol=1e-4)
    run(*front_door(folder, workdir), "--mode=predict", "--split=test")
    assert len((workdir / "predictions-test.jsonl").read_text().splitlines()) == 6
    filled = json.loads((workdir / "dstc7-test.json").read_text())["dialogs"]
    assert all(turn["answer"] != "__UNDISCLOSED__" for dialogue in filled for turn in dialogue["dialog"])
    assert len(json.loads((workdir / "coco-test.json").read_text())) == 3
