"""Claims about jtasks.tasks.caption, on made pictures whose captions name their color."""

import functools
import json

import jax
import jax.numpy as jnp
import made_captions
import numpy as np
import pytest
import tiny
from front_door import ROOT, run

from jtasks import config as configs
from jtasks.data import tokenizers
from jtasks.errors import ConfigError, DataError
from jtasks.run import job
from jtasks.tasks import caption

RNG = jax.random.key(0)
CONFIG = "configs/caption_emoji.py"


@pytest.fixture(scope="session")
def folder(tmp_path_factory):
    return made_captions.write(tmp_path_factory.mktemp("captions"))


def prepared(folder, *overrides):
    """The job of a tiny config."""
    fields = [*made_captions.TINY, f"--config.data.dir={folder}", "--config.model.dropout=0.0", *overrides]
    return job.prepare(configs.load(f"{ROOT}/{CONFIG}", fields))


def batch(made, split="valid", count=5):
    return tiny.first_batch(made, split, count)


@functools.cache
def params(made):
    """Parameters drawn so that every one of them shows."""
    return tiny.drawn(lambda b: caption.init(RNG, b, made.config), batch(made))


evaluated = jax.jit(caption.eval_fn, static_argnames="config")
predicted = jax.jit(caption.predict_fn, static_argnames="config")


@pytest.fixture(scope="module")
def made(folder):
    return prepared(folder)


PREFIX = "--config.model.fusion=prefix"


def test_each_training_caption_is_an_example_and_each_other_picture_is_one(made):
    train, valid = made.require("train"), made.require("valid")
    assert (len(train), len(valid)) == (18, 5)
    assert train[0]["tokens"].shape == (1, 6) and valid[0]["tokens"].shape == (2, 6)
    assert [row["captions"] for row in train[1:3]] == [("a green square", "something green")] * 2
    assert valid[0]["counts"].tolist() == [4, 0] and valid[1]["counts"].tolist() == [4, 3]


@pytest.mark.parametrize("fusion", ["cross", pytest.param("prefix", marks=pytest.mark.slow)])
def test_the_loss_of_a_picture_is_over_all_of_its_captions(folder, fusion):
    """As if each of the captions were alone with the picture."""
    made = prepared(folder, f"--config.model.fusion={fusion}", "--config.data.prompt=a")
    both = batch(made)
    whole = evaluated(params(made), both, config=made.config)["loss"]
    each = [
        evaluated(params(made), both | {k: both[k][:, i : i + 1] for k in ("tokens", "counts")}, config=made.config)
        for i in range(2)
    ]
    np.testing.assert_allclose(whole.total, sum(found["loss"].total for found in each), rtol=1e-5)
    assert int(whole.count) == 5 * 4 + 2 * 3 == sum(int(found["loss"].count) for found in each)


def test_what_comes_after_a_caption_and_captions_left_out_do_not_count(made):
    valid = batch(made)
    junk = np.where(np.arange(6) < valid["counts"][..., None], valid["tokens"], 7)
    assert (junk != valid["tokens"]).any()
    one, other = (evaluated(params(made), valid | {"tokens": x}, config=made.config) for x in (valid["tokens"], junk))
    np.testing.assert_array_equal(one["loss"].total, other["loss"].total)


def test_the_prompt_begins_captions_and_is_no_part_of_them(folder, made):
    prompted = prepared(folder, "--config.data.prompt=a picture of ")
    model = prompted.config.model
    tokenizer = tokenizers.of(prompted.config, caption.texts)
    assert model.prompt == tuple(tokenizer.encode("a picture of", add_special_tokens=False).ids)
    assert model.begin == tokenizer.token_to_id("[CLS]") and model.end == tokenizer.token_to_id("[SEP]")
    assert model.max_length == made.config.model.max_length + len(model.prompt)


def test_captions_are_scored_against_all_of_a_pictures(made):
    valid = made.require("valid")
    second = [made_captions.captions(i)[-1] for i in range(5)]
    ids = [row.ids for row in tokenizers.encode(tokenizers.of(made.config, caption.texts), second)]
    said = [{"tokens": np.array([*row, made.config.model.end, 3])} for row in ids]
    assert caption.caption_texts(said, made.config) == second
    scores = caption.score_fn(valid, said, made.config)
    assert scores["bleu_1"] > 0.99 and scores["cider_exchanged"] < scores["cider"] / 2
    assert json.loads(caption.export_fn(valid, said, made.config)["coco.json"])[1] == {
        "image_id": valid[1]["image_id"],
        "caption": "something green",
    }
    assert caption.score_fn([{"captions": ()}], said[:1], made.config) == {}
    constant = caption.score_fn(valid, said[:1] * 5, made.config)
    assert constant["cider_exchanged"] == pytest.approx(constant["cider"])


@pytest.mark.slow
def test_maps_show_on_which_patches_each_token_rests(folder):
    made = prepared(folder, "--config.attention_layer=-1")
    outputs = predicted(params(made), batch(made), RNG, config=made.config)
    assert outputs["maps"].shape == (5, 4, 2, 2)  # patches of 8 in pictures of 16
    after = np.cumsum(outputs["tokens"] == made.config.model.end, axis=1) > 1
    said = np.asarray(outputs["maps"]).max((2, 3)) > 0
    assert said.any() and not said[after].any()
    rows = [{name: np.asarray(value)[i] for name, value in outputs.items()} for i in range(2)]
    shown = caption.show_fn(made.require("valid")[:2], rows, made.config)
    assert set(shown) == {"images", "maps", "captions"} and shown["maps"].shape[1] > 3 * 96
    assert "    a red square" in shown["captions"]
    with pytest.raises(ConfigError, match="text_depth=1 has the layers 0 to 0"):
        evaluated(params(made), batch(made), config=prepared(folder, "--config.attention_layer=1").config)
    with pytest.raises(ConfigError, match="fusion='cross'"):
        evaluated(params(made), batch(made), config=prepared(folder, PREFIX, "--config.attention_layer=0").config)


def test_pictures_are_inputs(made, folder):
    path = folder / "valid" / "1.png"
    ours = caption.examples([str(path), {"image": str(path)}], made.config)
    np.testing.assert_array_equal(ours["image"], np.stack([made.require("valid")[1]["image"]] * 2))
    with pytest.raises(DataError, match="expected"):
        caption.examples([3], made.config)


@pytest.mark.slow
@pytest.mark.parametrize("fusion", ["cross", "prefix"])
def test_a_model_learns_to_name_the_color_and_says_it_of_a_new_picture(fusion, folder, tmp_path):
    arguments = [
        *made_captions.TINY,
        *(f"--config.data.dir={folder}", f"--workdir={tmp_path / 'run'}", f"--config.model.fusion={fusion}"),
        *("--config.steps=150", "--config.eval_every=0", "--config.optim.lr=0.01", "--config.data.augment="),
    ]
    result, _ = run(f"--config={CONFIG}", *arguments, devices=8)
    assert result["test/cider"] > 2 * result["test/cider_exchanged"] and result["test/bleu_1"] > 0.6
    said, _ = run(f"--workdir={tmp_path / 'run'}", "--mode=predict", f"--input={folder / 'test' / '0.png'}", devices=1)
    assert said


@pytest.mark.slow
def test_a_caption_is_the_likeliest_continuation_of_its_picture_and_prompt(folder):
    """Greedy search takes the likeliest id of the loss's own distribution, step by step."""
    made = prepared(folder, "--config.beam.num_beams=1", "--config.data.prompt=a", "--config.beam.min_len=0")
    valid, model = batch(made), made.config.model
    tokens = predicted(params(made), valid, RNG, config=made.config)["tokens"]
    padded = jnp.pad(tokens, ((0, 0), (0, 2)), constant_values=model.end)[:, None]
    counts = jnp.argmax(jnp.pad(tokens == model.end, ((0, 0), (0, 1)), constant_values=True), axis=1)[:, None]
    found = evaluated(params(made), valid | {"tokens": padded, "counts": counts}, config=made.config)
    assert found["accuracy"].value == 1.0
