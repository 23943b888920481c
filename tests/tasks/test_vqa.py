"""Claims about the task vqa, on pictures of one color with questions about it."""

import functools
import json

import jax
import jax.numpy as jnp
import made_questions
import numpy as np
import pytest
from front_door import ROOT

from jtasks import config as configs
from jtasks import models
from jtasks.data import pipeline
from jtasks.errors import ConfigError, DataError
from jtasks.run import job
from jtasks.tasks import vqa


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    folder = tmp_path_factory.mktemp("vqa")
    made_questions.write(folder)
    overrides = [*made_questions.TINY, f"--config.data.dir={folder}"]
    return job.prepare(configs.load(f"{ROOT}/configs/vqa_easy.py", overrides))


@functools.cache
def params(made):
    return jax.jit(vqa.init, static_argnames="config")(jax.random.key(0), batch(made), config=made.config)


def batch(made, split="train", n=4):
    rows = made.require(split)
    found = vqa.collate_fn([rows[i] for i in range(n)], made.config)
    return found | {"mask": np.ones(n, np.float32), "seed": np.arange(n, dtype=np.uint32)}


def normal(images, config):
    mean, std = (np.array(x) for x in (config.model.mean, config.model.std))
    return jnp.asarray((images / 255 - mean) / std, jnp.float32)


def test_people_weigh_as_often_as_they_gave_an_answer_and_candidates_are_trains_answers(made):
    rows = batch(made, n=pipeline.size(made.require("train")))
    assert made.config.model.answers[0] in made_questions.COLORS and set(made.config.model.answers) == {
        *made_questions.COLORS,
        "green",
    }
    assert {tuple(row) for row in rows["weight"].tolist()} == {(1.0, 0.0), (0.75, 0.25)}
    assert (rows["answer"][..., 0] == made.config.model.begin).all() and (rows["answer"][..., -1] == 3).all()
    assert rows["image"].dtype == np.uint8 and rows["image"].shape[1:] == (16, 16, 3)


@pytest.mark.slow
def test_the_loss_is_the_weighted_nats_of_whole_answers(made):
    rows, config = batch(made), made.config
    model = models.build(models.BLIP, config)
    rows["mask"][3] = 0
    (loss, metrics), gradient = jax.jit(jax.value_and_grad(vqa.loss_fn, has_aux=True), static_argnames="config")(
        params(made), rows, jax.random.key(0), config=config
    )
    inputs = normal(rows["image"], config), rows["tokens"], rows["segment_ids"].astype(np.int32)

    @jax.jit
    def log_probabilities(params, answers):
        run = functools.partial(model.apply, {"params": params})
        states = run(inputs[0][:, None], *inputs[1:], method="fuse")
        return jax.nn.log_softmax(run(states, inputs[2], answers, method="answer_logits"))

    total = 0.0
    for k in range(2):
        answers = rows["answer"][:, k]
        found = np.asarray(log_probabilities(params(made), answers))
        for i, ids in enumerate(answers[:3].tolist()):
            last = ids.index(config.model.end)
            total -= rows["weight"][i, k] * sum(found[i, t, ids[t + 1]] for t in range(last))
    np.testing.assert_allclose(metrics["loss"].total, total, rtol=1e-5)
    np.testing.assert_allclose(loss, total / 3, rtol=1e-5)
    assert float(metrics["accuracy"].count) == pytest.approx(3)
    assert all(np.abs(leaf).max() > 0 for leaf in jax.tree.leaves(gradient))


@pytest.mark.slow
def test_ranking_equals_brute_force_and_preselection_keeps_the_likeliest_first_tokens(made):
    rows, config = batch(made), made.config
    model, inputs = models.build(models.BLIP, config), (rows["tokens"], rows["segment_ids"].astype(np.int32))
    images = normal(rows["image"], config)
    random = np.random.default_rng(0)
    end, vocab = config.model.end, config.model.vocab
    candidates = random.integers(5, vocab, (90, 7)).astype(np.int32)  # 90 of 7 tokens are three blocks
    for i, row in enumerate(candidates):
        row[0], row[1 + 1 + i % 5 :] = config.model.begin, end
    run = functools.partial(model.apply, {"params": jax.tree.map(lambda x: 3 * x, params(made))})
    states = run(images[:, None], *inputs, method="fuse")

    def brute(row):
        shared = jnp.broadcast_to(row[None], (4, 7))
        found = jax.nn.log_softmax(score(shared))
        last = list(row).index(end)
        return sum(np.asarray(found)[:, i, row[i + 1]] for i in range(last))

    score = jax.jit(lambda tokens: run(states, inputs[1], tokens, method="answer_logits"))
    scores = np.stack([brute(row) for row in candidates], axis=1)  # [4, 90]
    ranked = functools.partial(models.rank, model, run.args[0]["params"], states, inputs[1], candidates, end)
    choice, best = jax.jit(ranked, static_argnums=0)(1000)
    np.testing.assert_array_equal(choice, scores.argmax(1))
    np.testing.assert_allclose(best, scores.max(1), rtol=1e-4)
    first = np.asarray(jax.nn.log_softmax(score(jnp.broadcast_to(candidates[:1], (4, 7)))))[:, 0][:, candidates[:, 1]]
    kept = np.argsort(-first, axis=1, kind="stable")[:, :5]
    choice, _ = jax.jit(ranked, static_argnums=0)(5)
    np.testing.assert_array_equal(choice, [own[scores[i, own].argmax()] for i, own in enumerate(kept)])
    assert not np.array_equal(choice, scores.argmax(1))


def test_inputs_are_rows_and_outputs_are_answers_scores_and_files(made):
    rows, config = batch(made, "test", 3), configs.Config(made.config.to_dict() | {"attention_layer": -1})
    test = made.require("test")
    asked = [{"image": row["image"], "question": row["question"]} for row in test]
    given = vqa.examples([*asked, (test[0]["image"], "is it green?")], config)
    for name in ("image", "tokens", "segment_ids"):
        np.testing.assert_array_equal(given[name][:3], rows[name])
    with pytest.raises(DataError, match="has no question"):
        vqa.examples([asked[0]["image"]], config)
    predict = jax.jit(vqa.predict_fn, static_argnames="config")
    with pytest.raises(ConfigError, match=r"attention_layer=9: config\.model\.text_depth=1 has the layers 0 to 0"):
        predict(params(made), rows, None, config=configs.Config(config.to_dict() | {"attention_layer": 9}))
    outputs = predict(params(made), rows, None, config=config)
    made_up = [{"choice": np.int32(config.model.answers.index(name))} for name in ("red", "green", "red")]
    examples = [test[i] for i in range(3)]
    assert outputs["choice"].shape == outputs["score"].shape == (3,)
    maps = np.asarray(outputs["maps"])
    rows_and_columns = np.array(config.model.shape) // config.model.patch
    assert maps.shape == (*rows["tokens"].shape, *rows_and_columns)
    assert maps.any() and not maps[rows["segment_ids"] == 0].any()
    likeliest = [{"choice": outputs["choice"][i], "maps": maps[i]} for i in range(3)]
    assert vqa.answers(examples, made_up, config) == [{"answer": "red"}, {"answer": "green"}, {"answer": "red"}]
    # The first and the third of three questions have the answers of four people, three alike: 3 of 4 times 1, else 2/3.
    assert vqa.score_fn(examples, made_up, config) == pytest.approx({"exact": 0, "vqa_accuracy": 37.5})
    assert json.loads(vqa.export_fn(examples, made_up, config)["vqa.json"])[1] == {"question_id": 1, "answer": "green"}
    drawn = vqa.show_fn(examples, likeliest, config)["maps"]
    assert drawn.shape[1] >= (2 + 4) * 96  # a picture, the mean, and the maps of four words and more
    shown = vqa.show_fn(examples, made_up, made.config)
    assert set(shown) == {"images", "answers"}
    assert "truly: red | green" in shown["answers"] and shown["images"].dtype == np.uint8
