"""Claims about language models over text."""

import functools
import json
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
from front_door import ROOT, records, run

from jtasks import config as configs
from jtasks import models, testing
from jtasks.data import pipeline
from jtasks.errors import ConfigError, DataError
from jtasks.interop import huggingface
from jtasks.run import job
from jtasks.tasks import lm

RNG = jax.random.key(0)
SENTENCES = ["the cat sat on the mat", "a dog ran over the hill", "birds sing in the tall green tree"]
SMALL = ["--config.model.width=16", "--config.model.depth=2", "--config.model.heads=2", "--config.data.length=16"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> pathlib.Path:
    """A folder of data with a text of blank-separated documents, and one of its own to evaluate on."""
    folder, random = tmp_path_factory.mktemp("data"), np.random.default_rng(0)
    lines = [SENTENCES[i] for i in random.integers(0, 3, 120)]
    (folder / "x.txt").write_text("".join(f"{line}\n" + "\n" * (i % 3 == 0) for i, line in enumerate(lines)))
    (folder / "y.txt").write_text("the bird ran in the green hill\n" * 3)
    return folder


@functools.cache
def filled(folder, **changes):
    """The small config over that text, its placeholders filled."""
    fields = {"data__files": "x.txt", "data__dir": str(folder), "sample__length": 24, **changes}
    overrides = [f"--config.{name.replace('__', '.')}={value}" for name, value in fields.items()]
    return job.prepare(configs.load(str(ROOT / "configs/shakespeare_char.py"), [*SMALL, *overrides])).config


@functools.cache
def params(config):
    """Parameters large enough that all of them show."""
    return tiny.drawn(lambda b: lm.init(RNG, b, config), batch(config))


def batch(config, rows=slice(0, 4), split="valid", **entries):
    arrays = {name: np.asarray(array[rows]) for name, array in lm.dataset(split, config).items()}
    n = len(arrays["tokens"])
    return arrays | {"mask": np.ones(n, np.float32), "seed": np.arange(n, dtype=np.uint32)} | entries


evaluated = jax.jit(lm.eval_fn, static_argnames="config")
predicted = jax.jit(lm.predict_fn, static_argnames="config")


def logits(config, inputs):
    model = models.build(models.GPT, config, outputs=config.model.vocab)
    return np.asarray(jax.jit(model.apply)({"params": params(config)}, jnp.asarray(inputs, jnp.int32)))


def reference(config, rows):
    """Nats [b, t] of the labels, in numpy."""
    scores = logits(config, rows["tokens"][:, :-1]).astype(np.float64)
    scores -= np.log(np.exp(scores).sum(-1, keepdims=True))
    return -np.take_along_axis(scores, rows["tokens"][:, 1:, None].astype(int), 2)[..., 0], scores


def test_the_metrics_are_those_of_the_logits(folder):
    config = filled(folder)
    skip = np.array([0, 5, 16, 1], np.int32)
    rows = batch(config, skip=skip, mask=np.array([1, 1, 1, 0], np.float32))
    nats, scores = reference(config, rows)
    counted = (np.arange(16) >= skip[:, None]) & (rows["mask"] > 0)[:, None]
    found = jax.device_get(evaluated(params(config), rows, config=config))
    assert float(found["loss"].count) == counted.sum() == 27
    np.testing.assert_allclose(found["loss"].value, nats[counted].mean(), rtol=1e-5)
    np.testing.assert_allclose(found["perplexity"].value, np.exp(nats[counted].mean()), rtol=1e-5)
    right = scores.argmax(-1) == rows["tokens"][:, 1:]
    assert float(found["accuracy"].total) == right[counted].sum()
    bits = nats[counted].sum() / np.log(2) / rows["bytes"][:3].sum()
    np.testing.assert_allclose(found["bits_per_byte"].value, bits, rtol=1e-5)


def test_the_loss_is_that_of_evaluation_without_dropout_and_another_with_it(folder):
    config, rows = filled(folder), batch(filled(folder))
    loss, _ = jax.jit(lm.loss_fn, static_argnames="config")(params(config), rows, RNG, config=config)
    np.testing.assert_allclose(loss, evaluated(params(config), rows, config=config)["loss"].value, rtol=1e-6)
    wet = filled(folder, model__dropout=0.5)
    dropped, _ = jax.jit(lm.loss_fn, static_argnames="config")(params(config), rows, RNG, config=wet)
    assert abs(float(dropped) - float(loss)) > 1e-3


@pytest.mark.parametrize(("tokenizer", "per_token"), [("bytes", 1.0), ("characters", 1.0), ("bpe:280", 1.5)])
def test_bits_a_byte_are_of_the_whole_text_whatever_its_tokens(folder, tokenizer, per_token):
    config = filled(folder, data__tokenizer=tokenizer, data__valid_files="y.txt")
    rows = batch(config, slice(None))
    text = (folder / "y.txt").read_bytes()
    counted = (np.arange(16) >= rows["skip"][:, None]).sum()
    tokens = counted + 1
    assert rows["bytes"].sum() == pytest.approx(len(text) * counted / tokens, rel=1e-6)
    assert len(text) / tokens >= per_token


def test_splits_are_parts_of_the_text_or_files_of_their_own(folder):
    config = filled(folder)
    train, valid = (lm.dataset(split, config)["tokens"] for split in ("train", "valid"))
    size = len((folder / "x.txt").read_bytes())
    assert len(train) == int(0.9 * size) - 16
    assert len(valid) == -(-(size - int(0.9 * size) - 1) // 16)
    assert lm.dataset("test", config) is None
    own = filled(folder, data__valid_files="y.txt", data__test_files="y.txt")
    assert len(lm.dataset("train", own)["tokens"]) == size - 16
    for name, array in lm.dataset("test", own).items():
        np.testing.assert_array_equal(array, lm.dataset("valid", own)[name])
    assert lm.dataset("valid", filled(folder, data__valid_fraction=0.0)) is None


def test_windows_overlap_by_the_stride(folder):
    config = filled(folder, data__stride=16)
    stream = lm.dataset("train", filled(folder))["tokens"][:, 0]
    tokens = lm.dataset("train", config)["tokens"]
    np.testing.assert_array_equal(tokens[:, 0], stream[::16])
    np.testing.assert_array_equal(tokens[:-1, -1], tokens[1:, 0])


@pytest.fixture(scope="module")
def packed(folder):
    return filled(folder, data__packed=True, data__documents="blank", data__tokenizer="bytes")


def window(config, *documents):
    """One window that holds the documents, an end before each but the first."""
    ids = [*documents[0]]
    for document in documents[1:]:
        ids += [config.model.end, *document]
    tokens = np.array([ids[:17]], np.uint16)
    assert tokens.shape == (1, 17)
    entries = {"tokens": tokens, "skip": np.zeros(1, np.int32), "bytes": np.full(1, 16, np.float32)}
    return entries | {"mask": np.ones(1, np.float32), "seed": np.zeros(1, np.uint32)}


def last_nats(config, rows, count):
    skipped = rows | {"skip": np.array([16 - count], np.int32)}
    return float(evaluated(params(config), skipped, config=config)["loss"].value)


def test_packed_documents_do_not_see_each_other_and_count_from_their_start(packed):
    assert packed.model.end == 256
    one, two = (window(packed, first, b"green tree") for first in (b"a dog ", b"birds "))
    assert last_nats(packed, one, 10) == pytest.approx(last_nats(packed, two, 10), rel=1e-6)
    shifted = window(packed, b"a ", b"b c", b"green tree")  # at the same place behind other documents
    assert last_nats(packed, shifted, 10) == pytest.approx(last_nats(packed, one, 10), rel=1e-6)
    assert last_nats(packed, one, 16) != pytest.approx(last_nats(packed, two, 16), rel=1e-3)


def test_without_packing_they_do(folder, packed):
    config = filled(folder, data__documents="blank", data__tokenizer="bytes")
    assert config.model.end == -1
    one, two = (window(packed, first, b"green tree") for first in (b"a dog ", b"birds "))
    assert last_nats(config, one, 10) != pytest.approx(last_nats(config, two, 10), rel=1e-5)


def test_the_stream_of_packed_documents_has_their_ends(packed, folder):
    tokens = np.asarray(lm.dataset("train", packed)["tokens"])
    assert (tokens[:, 0] == 256).sum() > 5
    found = bytes(t if t < 256 else ord("|") for t in tokens[:, 0].tolist()).decode()
    assert all(line in SENTENCES for document in found.split("|")[1:-1] for line in document.split("\n"))


def test_packing_needs_an_end_of_documents(folder, tmp_path):
    (tmp_path / "vocab.txt").write_text("[UNK]\ncat\n")
    with pytest.raises(DataError, match=r"no token <\|endoftext\|> or \[SEP\] or </s>"):
        filled(folder, data__packed=True, data__tokenizer=tmp_path / "vocab.txt")


def test_sampling_goes_on_from_half_a_window_for_as_long_as_asked(folder):
    config = filled(folder)
    rows = batch(config, slice(0, 3))
    tokens = np.asarray(predicted(params(config), rows, RNG, config=config)["tokens"])
    assert tokens.shape == (3, 8 + 24)
    np.testing.assert_array_equal(tokens[:, :8], rows["tokens"][:, :8])
    assert tokens.min() >= 0 and tokens.max() < config.model.vocab
    other = predicted(params(config), rows | {"seed": rows["seed"] + 9}, RNG, config=config)["tokens"]
    assert (np.asarray(other)[:, 8:] != tokens[:, 8:]).any()
    reverse = {name: value[::-1] for name, value in rows.items()}
    np.testing.assert_array_equal(predicted(params(config), reverse, RNG, config=config)["tokens"], tokens[::-1])


def test_the_likeliest_continuation_is_what_the_model_thinks_of_its_last_tokens(folder):
    """Eight new tokens at a time follow from the eight before them and each other."""
    config = filled(folder, sample__temperature=0.0)
    tokens = np.asarray(predicted(params(config), batch(config, slice(0, 3)), RNG, config=config)["tokens"])
    for start in (0, 8, 16):
        best = logits(config, tokens[:, start : start + 16]).argmax(-1)
        np.testing.assert_array_equal(best[:, 7:15], tokens[:, start + 8 : start + 16])


def test_packed_sampling_reads_the_last_document_alone(packed):
    greedy = {"config": filled_like(packed, sample__temperature=0.0)}
    one, two = (window(packed, first, b"a green tree") for first in (b"a do", b"bird"))
    found = [np.asarray(predicted(params(packed), rows, RNG, **greedy)["tokens"])[:, 8:] for rows in (one, two)]
    np.testing.assert_array_equal(*found)


def filled_like(config, **changes):
    fields = config.to_dict()
    for name, value in changes.items():
        parent, _, field = name.partition("__")
        fields[parent][field] = value
    return configs.Config(fields)


def test_what_is_shown_is_text(folder):
    config = filled(folder)
    rows = batch(config, slice(0, 3))
    outputs = [{"tokens": row} for row in predicted(params(config), rows, RNG, config=config)["tokens"]]
    (shown,) = lm.show_fn(None, outputs, config).values()
    text = (folder / "x.txt").read_text()
    start = text[int(0.9 * len(text)) :][:8]
    assert shown.startswith(f"--- given\n{start}\n--- sampled\n")
    assert shown.count("--- given") == 3


SHORT = ["--config.steps=4", "--config.batch_size=8", "--config.log_every=2", "--config.show_count=2"]


def front(config, folder, workdir, *more, **options):
    """main.py with a small model on the text of `folder`."""
    arguments = [*SMALL, *SHORT, "--config.data.files=x.txt", f"--config.data.dir={folder}", *more]
    return run(f"--config=configs/{config}", *arguments, f"--workdir={workdir}", **options)


@pytest.fixture(scope="module")
def trained(folder, tmp_path_factory) -> pathlib.Path:
    workdir = tmp_path_factory.mktemp("run") / "run"
    front("lm_text.py", folder, workdir, "--config.data.tokenizer=bpe:265", "--config.sample.length=12")
    return workdir


def test_shakespeare_trains_evaluates_and_shows_on_eight_devices(folder, tmp_path):
    result, errors = front("shakespeare_char.py", folder, tmp_path, devices=8)
    assert result["step"] == 4 and "8 x cpu" in errors
    assert result["valid/perplexity"] == pytest.approx(np.exp(result["valid/loss"]), rel=1e-5)
    assert (tmp_path / "show" / "samples-valid-4.txt").read_text().count("--- sampled") == 2


def test_a_run_has_its_tokenizer_which_serves_another_run(trained, folder):
    from jtasks.data import tokenizers

    assert json.loads((trained / "tokenizer.json").read_text())["model"]["type"] == "BPE"
    config = filled(folder, data__tokenizer=trained)
    assert config.model.vocab == 265
    assert job.Job(lm, config, None).assets() == {"tokenizer.json": tokenizers.load(str(trained)).to_str(pretty=True)}


def test_resuming_with_another_text_behind_a_trained_tokenizer_is_refused(trained, folder, tmp_path):
    (tmp_path / "x.txt").write_text("something else entirely, with other words\n\n" * 40)
    _, errors = front("lm_text.py", tmp_path, trained, "--config.data.tokenizer=bpe:265", code=2)
    assert f"{trained}/tokenizer.json is not what this config makes" in errors
    assert [record["step"] for record in records(trained) if record["split"] == "valid"] == [4]


def test_a_gpt2_of_hugging_face_goes_on_with_its_own_sizes(folder, tmp_path, shared):
    golden = shared / "golden" / "gpt2_lm"
    given = [f"--config.init_from=hf:{golden}", "--config.data.tokenizer=characters", "--config.data.length=16"]
    given += ["--config.data.files=x.txt", f"--config.data.dir={folder}"]
    config = job.prepare(configs.load(str(ROOT / "configs/lm_text.py:gpt2"), given)).config
    theirs = json.loads((golden / "config.json").read_text())
    assert config.model.vocab == theirs["vocab_size"] == 101 and config.model.width == theirs["n_embd"]
    found = lm.init(RNG, batch(config), config)
    taken, names = huggingface.import_params(str(golden), found, config.model, lm.HF_ARCHITECTURE, pytest.fail)
    assert names["left"] == [] and len(names["taken"]) == len(jax.tree.leaves(taken))


@pytest.mark.slow
def test_lm_passes_the_conformance_kit(folder):
    for changes in ({}, {"data__packed": True, "data__documents": "blank", "data__tokenizer": "bytes"}):
        results = testing.check("jtasks.tasks.lm", filled(folder, **changes))
        assert all(result.passed is not False for result in results), testing.table(results)


def test_a_wrong_field_of_the_text_is_told(folder):
    with pytest.raises(ConfigError, match=r"config.data.documents must be file, blank or line, not 'page'"):
        filled(folder, data__documents="page")
    with pytest.raises(DataError, match=r"config.data.length=4000 needs at least 4001"):
        lm.dataset("valid", filled(folder, data__length=4000))
    assert pipeline.size(lm.dataset("train", filled(folder))) > 1000
