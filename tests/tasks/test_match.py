"""Claims about the task match: contrastive and matching losses with hard negatives, and retrieval of a whole split."""

import functools
import json

import jax
import jax.numpy as jnp
import made_captions
import numpy as np
import optax
import pytest
import tiny
from front_door import ROOT
from jax.sharding import AxisType
from PIL import Image

from jtasks import cli, models
from jtasks import config as configs
from jtasks import task as tasks
from jtasks.data import pipeline
from jtasks.distributed import sharding
from jtasks.errors import DataError
from jtasks.metrics import retrieval
from jtasks.ops import negatives, pixels
from jtasks.run import evaluate
from jtasks.run import job as jobs
from jtasks.run.gradient import gradient_fn
from jtasks.run.job import Job
from jtasks.tasks import match

N = made_captions.SIZES["train"]
SIZES = {f"{tower}_{name}": value for tower in ("image", "text") for name, value in (("width", 8), ("depth", 1))}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return made_captions.write(tmp_path_factory.mktemp("a b[1]"))


def config(folder, **fields):
    full = configs.defaults(own=tasks.fields(match))
    with full.unlocked():
        full.update({"task": "jtasks.tasks.match", "steps": 2, "batch_size": N, **fields})
        full.data.update({"dir": str(folder), "tokenizer": "wordpiece:60", "length": 8})
        full.model.update(SIZES | {"image_heads": 2, "text_heads": 2, "patch": 8, "embed_dim": 6})
    return configs.Config(full)


@functools.cache
def made(folder, devices=1, **fields):
    prepared = jobs.prepare(config(folder, **fields))
    mesh = jax.make_mesh((devices,), ("data",), axis_types=(AxisType.Auto,), devices=jax.devices()[:devices])
    return Job(match, prepared.config, mesh)


@functools.cache
def params(folder):
    own = made(folder)
    return tiny.drawn(lambda b: match.init(jax.random.key(0), b, own.config), batch(folder))


def batch(folder, own=None):
    own = own or made(folder)
    examples = own.require("train")
    return pipeline.batch_at(examples, own.plan(examples, shuffle=True), 0, own.collate)


def measured(folder, own):
    measure = jax.jit(gradient_fn(match, own.config, own.mesh), out_shardings=sharding.replicated_sharding(own.mesh))
    held = jax.device_put(params(folder), own.shardings(params(folder), params(folder)))
    examples = own.require("train")
    return jax.device_get(measure(held, own.batch_at(examples, own.plan(examples, shuffle=True), 0), jax.random.key(0)))


def expected(folder):
    """Both losses by plain JAX, one pair at a time."""
    own = made(folder)
    rows = batch(folder)
    model = models.build(models.BLIP, own.config)
    run = jax.jit(functools.partial(model.apply, {"params": params(folder)}, method="retrieve"))
    chosen = rows["seed"] % rows["count"]
    tokens, ids = (rows[name][np.arange(N), chosen].astype(np.int32) for name in ("tokens", "segment_ids"))
    images = pixels.normalize(jnp.asarray(rows["image"]), own.config)
    image, text, own_logits = run(images, tokens, ids)
    similar = np.exp(params(folder)["contrast"]["scale"]) * image @ text.T
    labels = jnp.arange(N)
    cross_entropy = optax.softmax_cross_entropy_with_integer_labels
    contrastive = (cross_entropy(similar, labels) + cross_entropy(similar.T, labels)) / 2
    hard_text, _ = negatives.draw(similar, rows["seed"], jnp.ones(N))
    hard_image, _ = negatives.draw(similar.T, rows["seed"], jnp.ones(N))
    logits = [own_logits, run(images[hard_image], tokens, ids)[2], run(images, tokens[hard_text], ids[hard_text])[2]]
    matching = [cross_entropy(x, jnp.full(N, label)).mean() for x, label in zip(logits, (1, 0, 0), strict=True)]
    return contrastive.mean(), np.mean(matching)


def test_the_terms_are_those_of_plain_jax(folder):
    own = made(folder)
    compute = jax.jit(lambda p, b: tasks.loss_fn(match)(p, b, None, own.config))
    loss, metrics = compute(params(folder), batch(folder))
    contrastive, matching = expected(folder)
    np.testing.assert_allclose(metrics["contrastive"].value, contrastive, rtol=1e-5)
    np.testing.assert_allclose(metrics["matching"].value, matching, rtol=1e-5)
    np.testing.assert_allclose(loss, contrastive + matching, rtol=1e-5)
    assert metrics["matching"].count == 3 * N and metrics["contrastive"].count == N


@pytest.mark.slow
@pytest.mark.parametrize(
    ("devices", "fields"), [(1, {"accumulate": 3}), (8, {}), (2, {"shares": (2, 1)}), (2, {"accumulate": 5})]
)
def test_neither_microbatches_nor_devices_nor_shares_nor_padding_change_the_gradient(devices, fields, folder):
    alike(measured(folder, made(folder, devices, **fields))[0], measured(folder, made(folder))[0])


def alike(ours, theirs):
    largest = max(np.abs(leaf).max() for leaf in jax.tree.leaves(theirs))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5 * largest), ours, theirs)


def test_inputs_are_rows_of_the_data_and_answers_are_of_each_caption(folder):
    own = made(folder)
    rows = own.require("valid")
    inputs = [{"image": str(folder / "valid" / f"{i}.png"), "captions": rows[i]["captions"]} for i in range(2)]
    ours = match.examples(inputs, own.config)
    for name in ("image", "tokens", "segment_ids", "count"):
        np.testing.assert_array_equal(ours[name], np.stack([rows[i][name] for i in range(2)]))
    alone = match.examples([dict(rows[0])], own.config)
    assert alone["tokens"].shape[1] == rows[0]["tokens"].shape[0] > len(rows[0]["captions"])
    lines = match.examples([f"{folder}/valid/0.png\t{rows[0]['captions'][0]}"], own.config)
    np.testing.assert_array_equal(lines["tokens"][0, 0], rows[0]["tokens"][0])
    outputs = jax.jit(match.predict_fn, static_argnames="config")(params(folder), arrays(ours), None, config=own.config)
    found = [jax.tree.map(lambda x, i=i: np.asarray(x[i]), outputs) for i in range(2)]
    answers = match.answers([rows[0], rows[1]], found, own.config)
    assert json.loads(json.dumps(answers)) == answers
    assert len(answers[0]["belongs"]) == len(rows[0]["captions"]) and 0 < answers[0]["belongs"][0] < 1
    np.testing.assert_allclose(answers[0]["similarity"][0], found[0]["image"] @ found[0]["texts"][0], rtol=1e-6)
    scores = match.score_fn([rows[0], rows[1]], found, own.config)
    assert scores["text_to_image_r5"] == 1 and {"image_to_text_r1", "mean_recall"} <= scores.keys()
    shown = match.show_fn([rows[0], rows[1]], found, own.config)
    assert rows[0]["captions"][0] in shown["retrieved"] and shown["pictures"].dtype == np.uint8
    for bad in ({"image": inputs[0]["image"]}, "a text", {"image": inputs[0]["image"], "captions": [" "]}):
        with pytest.raises(DataError, match="expected"):
            match.examples([bad], own.config)


def arrays(rows):
    return {name: jnp.asarray(array) for name, array in rows.items() if array.dtype != object}


def scored(folder, devices, k):
    """The scores of the valid split, and the ranks by brute force from all pairs."""
    own = made(folder, devices, k_test=k, report_metric=True, batch_size=8)
    rows = own.require("valid")
    values = evaluate.measurer(own)(jax.device_put(params(folder)), rows, "valid")
    model = models.build(models.BLIP, own.config)
    run = jax.jit(functools.partial(model.apply, {"params": params(folder)}, method="retrieve"))
    texts = [(i, slot) for i in range(len(rows)) for slot in range(len(rows[i]["captions"]))]
    similar, matching = np.zeros((2, len(rows), len(texts)))
    tokens, ids = (
        np.stack([rows[i][name][s] for i, s in texts]).astype(np.int32) for name in ("tokens", "segment_ids")
    )
    for i in range(len(rows)):
        images = pixels.normalize(jnp.asarray(rows[i]["image"])[None], own.config)
        image, text, logits = run(jnp.broadcast_to(images, (len(texts), *images.shape[1:])), tokens, ids)
        similar[i], matching[i] = image[0] @ text.T, logits[:, 1]
    return values, similar, matching, np.array([i for i, _ in texts])


@pytest.mark.parametrize("devices", [1, 8])
def test_ranking_all_again_is_ranking_by_similarity_and_match_of_all_pairs(devices, folder):
    values, similar, matching, owners = scored(folder, devices, 1000)
    assert values["text_to_image_r1"] == retrieval.scores(*retrieval.matrix_ranks(similar, owners))["text_to_image_r1"]
    expected = retrieval.scores(*retrieval.matrix_ranks(similar + matching, owners))
    assert {name: values[f"reranked_{name}"] for name in expected} == expected


def test_what_is_not_among_the_nearest_stays_behind_them(folder):
    values, similar, matching, owners = scored(folder, 1, 2)
    again = [np.full(similar.shape, -100.0) + similar for _ in range(2)]  # LAVIS's rule, with its order behind the best
    for i, row in enumerate(similar):
        best = np.argsort(-row)[:2]
        again[0][i, best] = (row + matching[i])[best]
    for j, column in enumerate(similar.T):
        best = np.argsort(-column)[:2]
        again[1][best, j] = (column + matching[:, j])[best]
    ranks = retrieval.matrix_ranks(again[0], owners)[0], retrieval.matrix_ranks(again[1], owners)[1]
    expected = retrieval.scores(*ranks)
    assert {name: values[f"reranked_{name}"] for name in expected} == expected


def test_without_k_test_nothing_is_ranked_again(folder):
    def predict(pairs):
        raise AssertionError("no pairs are needed")

    assert match.rescore_fn([], [], predict, made(folder).config) == {}


def test_parts_of_the_pairs_have_the_matching_loss_of_all(folder):
    losses = [
        jax.jit(lambda p, b, own=own: tasks.loss_fn(match)(p, b, None, own.config))(params(folder), batch(folder))[0]
        for own in (made(folder), made(folder, accumulate=3))
    ]
    np.testing.assert_allclose(*losses, rtol=1e-6)


@pytest.mark.slow
def test_show_draws_the_map_of_every_word_of_a_caption(folder, tmp_path, capsys):
    """A picture, the mean map, and those of the words of `a red square`, which the tokenizer has whole."""
    tiny = [f"--config.model.{tower}_{size}" for tower in ("image", "text") for size in ("width=8", "heads=2")]
    data = [f"--config.data.{field}" for field in (f"dir={folder}", "tokenizer=wordpiece:60", "length=8", "size=16")]
    train = ["--config.steps=1", "--config.batch_size=4", "--config.show_count=2", "--config.model.image_depth=1"]
    own = [f"--config={ROOT}/configs/blip_retrieval.py:small", *tiny, *data, *train, "--config.eval_every=0"]
    show = [f"--workdir={tmp_path}", "--mode=show"]
    assert cli.run([*own, f"--workdir={tmp_path}"]) == 0, capsys.readouterr().err
    assert cli.run([*show, "--config.attention_layer=0"]) == 0, capsys.readouterr().err
    maps = np.asarray(Image.open(next(tmp_path.glob("show/*maps*.png"))))
    assert maps.shape[0] > 2 * 96 and maps.shape[1] > 5 * 96
    assert cli.run([*show, "--config.attention_layer=-1"]) != 0
    assert "is the last of config.model.text_depth=2 layers" in capsys.readouterr().err
