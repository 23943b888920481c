"""Claims about BERT's pre-training."""

import functools
import pathlib

import h5py
import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import pytest
import tiny
from front_door import ROOT, run

from jtasks import config as configs
from jtasks import models, optim, testing
from jtasks.data import pipeline
from jtasks.errors import ConfigError, DataError
from jtasks.run import job
from jtasks.tasks import bert

RNG = jax.random.key(0)
WORDS = ["the", "river", "runs", "over", "stones", "unbelievably", "while", "birds", "sing", "softly", "again"]
SMALL = ["--config.model.width=16", "--config.model.depth=2", "--config.model.heads=2", "--config.model.max_length=64"]
SMALL += ["--config.data.length=32", "--config.data.max_predictions=6", "--config.data.tokenizer=wordpiece:60"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> pathlib.Path:
    """A folder of data with a text of twenty documents."""
    folder, random = tmp_path_factory.mktemp("data"), np.random.default_rng(0)
    documents = [
        "\n".join(" ".join(random.choice(WORDS, random.integers(3, 9))) for _ in range(random.integers(8, 20)))
        for _ in range(20)
    ]
    (folder / "x.txt").write_text("\n\n".join(documents))
    return folder


@functools.cache
def filled(folder, preset="tiny", **changes):
    """A small config over that text, its placeholders filled."""
    fields = {"data__files": "x.txt", "data__dir": str(folder), "data__valid_fraction": 0.2, **changes}
    overrides = [f"--config.{name.replace('__', '.')}={value}" for name, value in fields.items()]
    return job.prepare(configs.load(f"{ROOT}/configs/bert.py:{preset}", [*SMALL, *overrides])).config


def batch(config, n=32, **entries):
    examples = bert.dataset("train", config)
    rows = pipeline.fetch(examples, np.arange(n), None)
    return rows | {"mask": np.ones(n, np.float32), "seed": np.arange(n, dtype=np.uint32)} | entries


@functools.cache
def params(config):
    """Parameters large enough that all of them show."""
    return tiny.drawn(lambda b: bert.init(RNG, b, config), batch(config))


evaluated = jax.jit(bert.eval_fn, static_argnames="config")
inputs = jax.jit(bert.masked_inputs, static_argnames="config")


def reference(config, tokens, token_types, segment_ids):
    """Log-probabilities of the tokens [b, t, vocab] and of the next sentence [b, 2]."""
    model = models.build(models.BERT, config)
    run = jax.jit(functools.partial(model.apply, method="masked_logits"))
    return [jax.nn.log_softmax(x) for x in run({"params": params(config)}, tokens, token_types, segment_ids)]


def check_metrics(config, rows):
    """The task's metrics against those of the logits at all positions."""
    tokens, token_types, segment_ids, places, labels, weights = map(np.asarray, inputs(rows, config=config))
    masked, follows = map(np.asarray, reference(config, tokens, token_types, segment_ids))
    found = jax.device_get(evaluated(params(config), rows, config=config))
    there = np.take_along_axis(masked, places[:, :, None], 1)
    nats = -np.take_along_axis(there, labels[:, :, None], 2)[..., 0]
    counted = (weights > 0) & (rows["mask"] > 0)[:, None]
    real = rows["mask"] > 0
    next_nats = -np.take_along_axis(follows, rows["next"][:, None], 1)[:, 0]
    assert float(found["masked"].count) == counted.sum() > 0
    assert float(found["next_sentence"].count) == real.sum()
    np.testing.assert_allclose(found["masked"].value, nats[counted].mean(), rtol=1e-4)
    np.testing.assert_allclose(found["perplexity"].value, np.exp(nats[counted].mean()), rtol=1e-4)
    np.testing.assert_allclose(found["next_sentence"].value, next_nats[real].mean(), rtol=1e-4)
    right = (there.argmax(-1) == labels) & counted
    assert float(found["masked_accuracy"].total) == right.sum()
    assert float(found["next_sentence_accuracy"].total) == ((follows.argmax(-1) == rows["next"]) & real).sum()
    return counted


def test_the_metrics_are_those_of_the_logits(folder):
    config = filled(folder)
    counted = check_metrics(config, batch(config, mask=np.array([1] * 30 + [0] * 2, np.float32)))
    assert (counted[:30].sum(1) >= 1).all() and not counted[30:].any()


def test_the_loss_is_the_sum_of_both_terms_and_reaches_every_parameter_but_unused_positions(folder):
    config, rows = filled(folder), batch(filled(folder))
    step = jax.jit(jax.value_and_grad(bert.loss_fn, has_aux=True), static_argnames="config")
    (loss, metrics), gradient = step(params(config), rows, RNG, config=config)
    terms = [metrics[name] for name in ("masked", "next_sentence")]
    np.testing.assert_allclose(loss, sum(float(term.total) / float(term.count) for term in terms), rtol=1e-6)
    assert [float(term.count) for term in terms] == [float(inputs(rows, config=config)[5].sum()), 32]
    assert all(np.abs(leaf).max() > 0 for leaf in jax.tree.leaves(gradient))
    assert np.abs(gradient["position"]["embedding"][32:]).max() == 0


def test_a_sixth_of_the_words_is_hidden_and_no_special_token(folder):
    config = filled(folder)
    rows = batch(config)
    tokens, _, _, places, labels, weights = map(np.asarray, inputs(rows, config=config))
    words = (rows["segment_ids"] > 0) & ~np.isin(rows["tokens"], [config.model.first_token, config.model.separator])
    assert weights.sum() / words.sum() == pytest.approx(0.15, abs=0.015)
    assert np.take_along_axis(words, places, 1)[weights > 0].all()
    np.testing.assert_array_equal(labels, np.take_along_axis(rows["tokens"], places, 1))
    np.testing.assert_array_equal(tokens[:, 0], config.model.first_token)
    assert (tokens == config.model.mask_token).sum() > 0.6 * weights.sum()
    again = np.asarray(inputs(rows | {"seed": rows["seed"] + 32}, config=config)[3])
    assert (again != places).any(1).mean() > 0.9  # another epoch's seeds hide others


def test_whole_words_are_hidden_together(folder):
    config = filled(folder, data__whole_words=True)
    rows = batch(config)
    _, _, _, places, _, weights = map(np.asarray, inputs(rows, config=config))
    hidden = np.zeros(rows["tokens"].shape, bool)
    np.put_along_axis(hidden, places, weights > 0, 1)
    words = (rows["segment_ids"] > 0) & ~np.isin(rows["tokens"], [config.model.first_token, config.model.separator])
    goes_on = (rows["begins"][:, 1:] == 0) & words[:, 1:] & words[:, :-1]
    assert goes_on.sum() > 100
    np.testing.assert_array_equal(hidden[:, 1:][goes_on], hidden[:, :-1][goes_on])


def test_valid_documents_are_kept_aside_and_shares_are_told_at_the_start(folder, capfd):
    config = filled.__wrapped__(folder)
    errors = capfd.readouterr().err
    train, valid = (bert.dataset(split, config) for split in ("train", "valid"))
    for name, examples in (("train", train), ("valid", valid)):
        used = sum(int(examples[i]["segment_ids"].sum()) for i in range(len(examples)))
        follows = np.mean([examples[i]["next"] == 0 for i in range(len(examples))])
        assert f"{name}: {len(examples):,} pairs of 32 tokens, {1 - used / (32 * len(examples)):.1%} of them" in errors
        assert f"in {follows:.1%} the second text follows the first" in errors
    assert bert.dataset("test", config) is None
    assert bert.dataset("valid", filled(folder, data__valid_fraction=0.0)) is None
    own = filled(folder, data__valid_files="x.txt")
    assert len(bert.dataset("valid", own)) > len(valid)
    assert len(train) > 3 * len(valid)


def write_shard(path: pathlib.Path, rows, inputs_) -> None:
    tokens, token_types, segment_ids, places, labels, weights = inputs_
    places, labels = np.where(weights > 0, places, 0), np.where(weights > 0, labels, 0)
    arrays = {
        "input_ids": tokens,
        "segment_ids": token_types,
        "input_mask": segment_ids,
        "next_sentence_labels": rows["next"],
    }
    with h5py.File(path, "w") as file:
        for name, array in {**arrays, "masked_lm_positions": places, "masked_lm_ids": labels}.items():
            file.create_dataset(name, data=array, compression="gzip")


def test_shards_of_prepared_examples_give_the_metrics_of_the_text_they_were_made_of(folder, tmp_path):
    config = filled(folder)
    rows = batch(config)
    write_shard(tmp_path / "0.hdf5", rows, map(np.asarray, inputs(rows, config=config)))
    (tmp_path / "tokenizer.json").write_text(job.Job(bert, config, None).assets()["tokenizer.json"])
    changes = {"data__files": f"{tmp_path}/0.hdf5", "data__tokenizer": tmp_path, "data__valid_fraction": 0.0}
    shards = filled(folder, **changes)
    assert shards.model == config.model
    prepared = batch(shards)
    made = {name: (x.dtype, x.shape) for name, x in bert.made_example(shards)[1].items()}
    assert made == {name: (x.dtype, x.shape[1:]) for name, x in prepared.items() if name not in ("mask", "seed")}
    expected = jax.device_get(evaluated(params(config), rows, config=config))
    found = jax.device_get(evaluated(params(config), prepared, config=shards))
    for name, mean in expected.items():
        assert float(found[name].count) == float(mean.count)
        np.testing.assert_allclose(found[name].total, mean.total, rtol=1e-5)
    other = evaluated(params(config), prepared | {"seed": prepared["seed"] + 5}, config=shards)
    np.testing.assert_array_equal(other["masked"].total, found["masked"].total)  # masks stand as they are


def test_wrong_data_is_told(folder, tmp_path):
    (tmp_path / "x.hdf5").write_text("")
    (tmp_path / "vocab.txt").write_text("\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS]))
    with pytest.raises(ConfigError, match="both text and HDF5 shards"):
        filled(folder, data__files=f"{folder}/x.txt,{tmp_path}/x.hdf5")
    with pytest.raises(ConfigError, match=r"'wordpiece:60' must be trained on text, and there is no text here"):
        filled(folder, data__files=f"{tmp_path}/x.hdf5")
    with pytest.raises(DataError, match=r"no token \[CLS\]|no token \[MASK\]"):
        filled(folder, data__tokenizer="bytes")
    whole = filled(folder, data__whole_words=True, data__tokenizer=tmp_path / "vocab.txt")
    with pytest.raises(DataError, match=r"whole words need WordPiece"):
        bert.dataset("train", whole)


PRESETS = ["tiny", "tiny_phase2", "base", "base_phase2", "large", "large_phase2"]


@pytest.mark.parametrize("preset", PRESETS)
def test_presets_decay_matrices_alone_and_end_at_a_rate_of_zero(preset, folder):
    config = configs.load(f"{ROOT}/configs/bert.py:{preset}")
    assert config.data.length == (512 if "phase2" in preset else 128) <= config.model.max_length == 512
    assert config.data.max_predictions >= 0.15 * config.data.length
    rate = optim.schedule(config.optim, config.steps)
    assert float(rate(config.steps)) == 0 and float(jnp.max(rate(jnp.arange(config.steps)))) > 0.99 * config.optim.lr
    decayed = optim.matching(config.optim.decay_mask, params(filled(folder)))
    for path, hit in zip(optim.paths(decayed), jax.tree.leaves(decayed), strict=True):
        assert hit == (path.rpartition("/")[2] not in ("bias", "scale")), path


def test_lamb_decays_what_the_mask_says(folder):
    """A gradient of zero leaves the decay alone: LAMB's update is then its trust ratio times the parameter."""
    fields = configs.load(f"{ROOT}/configs/bert.py:large").optim.to_dict() | {"schedule": "constant", "warmup": 0.0}
    tree = {name: leaf for name, leaf in params(filled(folder)).items() if name in ("tokens", "norm", "pooler")}
    transformation, _ = optim.optimizer(ml_collections.ConfigDict(fields), 10, tree)
    updates, _ = transformation.update(jax.tree.map(jnp.zeros_like, tree), transformation.init(tree), tree)
    for path, update, leaf in zip(optim.paths(tree), *map(jax.tree.leaves, (updates, tree)), strict=True):
        if path.endswith(("bias", "scale")):
            assert float(jnp.abs(update).max()) == 0
        else:
            np.testing.assert_allclose(update, -6e-3 * leaf, rtol=1e-4)


@pytest.mark.slow
def test_both_phases_through_the_front_door(folder, tmp_path):
    arguments = [
        *SMALL[:4],
        "--config.data.files=x.txt",
        f"--config.data.dir={folder}",
        "--config.data.valid_fraction=0.2",
    ]
    arguments += ["--config.steps=4", "--config.log_every=2", "--config.batch_size=8"]
    first = [f"--workdir={tmp_path / 'one'}", *SMALL[4:]]
    result, errors = run("--config=configs/bert.py", *arguments, *first, devices=8)
    assert result["step"] == 4 and "8 x cpu" in errors
    assert np.isfinite([result["valid/masked"], result["valid/next_sentence"]]).all()
    assert result["valid/loss"] == pytest.approx(result["valid/masked"] + result["valid/next_sentence"])
    second = [f"--config.init_from={tmp_path / 'one'}", f"--config.data.tokenizer={tmp_path / 'one'}"]
    second += ["--config.data.length=64", "--config.data.max_predictions=12", f"--workdir={tmp_path / 'two'}"]
    _, errors = run("--config=configs/bert.py:tiny_phase2", *arguments, *second)
    assert "init_from: 26 parameters taken" in errors
    assert "pairs of 64 tokens" in errors
    assert (tmp_path / "two" / "tokenizer.json").read_text() == (tmp_path / "one" / "tokenizer.json").read_text()


@pytest.mark.slow
def test_bert_passes_the_conformance_kit(folder):
    results = testing.check("jtasks.tasks.bert", filled(folder, data__whole_words=True))
    assert all(result.passed is not False for result in results), testing.table(results)
