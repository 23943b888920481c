"""Claims about jtasks.tasks.seq2seq, on made pairs of texts: each word has one translation, adjectives follow nouns."""

import functools
import json

import jax
import made_pairs
import numpy as np
import pytest
import tiny
from front_door import ROOT

from jtasks import cli
from jtasks import config as configs
from jtasks.data import pipeline, tokenizers
from jtasks.errors import ConfigError, DataError
from jtasks.metrics import translation
from jtasks.run import job
from jtasks.tasks import seq2seq

RNG = jax.random.key(0)
CONFIG = f"{ROOT}/configs/translate.py:small"


@pytest.fixture(scope="session")
def folder(tmp_path_factory):
    return made_pairs.write(tmp_path_factory.mktemp("pairs"))


def prepared(folder, *overrides):
    """The job of a tiny config."""
    fields = [*made_pairs.TINY, f"--config.data.dir={folder}", "--config.model.dropout=0.0", *overrides]
    return job.prepare(configs.load(CONFIG, fields))


def batch(made, split="test", count=5):
    return tiny.first_batch(made, split, count)


@functools.cache
def params(made):
    """Parameters drawn so that every one of them shows."""
    return tiny.drawn(lambda b: seq2seq.init(RNG, b, made.config), batch(made))


def rows(examples):
    return [pipeline.read(examples, i) for i in range(pipeline.size(examples))]


def said(made, texts):
    """Outputs of predict_fn that are these texts."""
    tokenizer, end = tokenizers.of(made.config, seq2seq.texts), made.config.model.end
    return [{"tokens": np.array([*row.ids, end, 3]), "score": -1.0} for row in tokenizers.encode(tokenizer, texts)]


evaluated = jax.jit(seq2seq.eval_fn, static_argnames="config")
predicted = jax.jit(seq2seq.predict_fn, static_argnames="config")


@pytest.fixture(scope="module")
def made(folder):
    return prepared(folder)


def test_each_training_reference_is_an_example_and_each_other_source_is_one(folder, made):
    more = prepared(folder, "--config.data.train=test.en,test.xx,other.xx")
    train, test = rows(more.require("train")), rows(made.require("test"))
    assert (len(train), len(test)) == (10, 5)
    assert [row["references"] for row in train[:2]] == [("el gato rot .",), ("un gato rot .",)]
    assert test[0]["references"] == ("el gato rot .", "un gato rot .")
    ids = test[0]["target"][test[0]["target_segment_ids"] > 0].tolist()  # the loss is that of the first reference
    assert ids == said(made, test[0]["references"])[0]["tokens"].tolist()[:-1]


def test_long_texts_lose_their_end_and_an_empty_target_is_the_end_mark(tmp_path, made):
    (tmp_path / "long.en").write_bytes("\ufeffthe cat\r\n".encode() + b"the old cat the old cat the old cat .\r\n")
    (tmp_path / "long.xx").write_bytes(b"\r\ngato gato gato gato gato gato gato gato gato gato .\r\n")
    files = ",".join(str(tmp_path / name) for name in ("long.en", "long.xx"))
    config = configs.Config(made.config.to_dict() | {"data": made.config.data.to_dict() | {"valid": files}})
    short, long = rows(seq2seq.dataset("valid", config))
    end = made.config.model.end
    assert short["source_text"] == "the cat" and short["source"].tolist()[2:] == [end] * 6
    assert short["source_segment_ids"].tolist() == [1] * 3 + [0] * 5
    assert short["target_segment_ids"].tolist() == [1] + [0] * 9 and short["target"][0] == end
    assert long["target_segment_ids"].all() and (long["target"] == end).tolist() == [False] * 9 + [True]


def test_the_likeliest_text_is_that_of_the_losses_own_distribution(folder):
    """Greedy search takes the likeliest id of the loss, step by step; what comes after the end does not count."""
    made = prepared(folder, "--config.beam.num_beams=1", "--config.beam.min_len=0", "--config.attention_layer=-1")
    given = batch(made)
    outputs = predicted(params(made), given, RNG, config=made.config)
    ended = np.cumsum(outputs["tokens"] == made.config.model.end, axis=1)
    real = np.pad(ended, ((0, 0), (1, 0)))[:, :-1] == 0
    junk = np.where(real, outputs["tokens"], 7)
    metrics = [
        evaluated(params(made), given | {"target": x, "target_segment_ids": real.astype(np.uint8)}, config=made.config)
        for x in (outputs["tokens"], junk)
    ]
    assert metrics[0]["accuracy"].value == 1.0 and metrics[0]["loss"].count == real.sum()
    assert metrics[0]["loss"].total == metrics[1]["loss"].total
    weights = outputs["attention"]
    np.testing.assert_allclose(weights.sum(-1), 1, rtol=1e-5)
    assert (weights[given["source_segment_ids"][:, None].repeat(10, 1) == 0] == 0).all()
    numbered = [{name: np.asarray(value)[i] for name, value in outputs.items()} for i in range(2)]
    shown = seq2seq.show_fn(rows(made.require("test"))[:2], numbered, made.config)
    assert shown["attention"].ndim == 3 and "0 source: 0:the" in shown["attention_tokens"]
    with pytest.raises(ConfigError, match="the decoder has 1 layers"):
        evaluated(params(made), given, config=prepared(folder, "--config.attention_layer=1").config)


def test_outputs_are_scored_against_all_references_and_written_one_a_line(folder, made):
    test, texts = made.require("test"), ["un gato rot .", "el gato azul .", "vogel", "", "chien"]
    outputs = said(made, texts)
    assert [answer["text"] for answer in seq2seq.answers(test, outputs, made.config)] == texts
    full = prepared(
        folder,
        "--config.score.metrics=('bleu','chrf','rouge','exact_match')",
        "--config.score.bleu_tokenize=none",
    )
    examples = rows(test)
    scores = seq2seq.score_fn(examples, outputs, full.config)
    expected, signature = translation.bleu(texts, [row["references"] for row in examples], tokenize="none")
    assert scores["bleu"] == expected and scores["exact_match"] == 0.4 and scores["rouge1"] > 0.4
    files = seq2seq.export_fn(examples, outputs, full.config)
    assert files["outputs.txt"].split("\n") == [*texts, ""]
    assert json.loads(files["scores.json"])["signatures"]["bleu"] == signature and "tok:none" in signature
    untold = [row | {"references": ()} for row in examples]
    assert seq2seq.score_fn(untold, outputs, full.config) == {}
    assert list(seq2seq.export_fn(untold, outputs, full.config)) == ["outputs.txt"]
    page = seq2seq.show_fn(examples[:1], outputs[:1], made.config)["texts"].splitlines()
    assert [line.split(": ", 1)[1].strip() for line in page] == ["the red cat .", texts[0], "el gato rot .", texts[0]]


def test_inputs_are_texts_and_rows(made):
    valid = rows(made.require("valid"))
    for inputs in ([row["source_text"] for row in valid], valid, [{"source": row["source_text"]} for row in valid]):
        ours = seq2seq.examples(inputs, made.config)
        for i, row in enumerate(rows(ours)):
            assert row.keys() == {"source", "source_segment_ids", "source_text"}
            np.testing.assert_array_equal(row["source"], valid[i]["source"])
    for bad in (3, {"a": "x", "b": "y"}, ["x"]):
        with pytest.raises(DataError, match="expected a text, or a dict with 'source'"):
            seq2seq.examples([bad], made.config)


def test_sources_and_targets_may_have_vocabularies_of_their_own(folder):
    made = prepared(folder, "--config.data.target_tokenizer=wordpiece:60", "--config.data.prefix=translate: ")
    model, test = made.config.model, rows(made.require("test"))
    target = tokenizers.parse(made.assets()["target_tokenizer.json"])
    assert model.target_vocab == tokenizers.tokenizer_files.size(target) != model.vocab
    assert model.end == target.token_to_id("[SEP]") and model.begin == target.token_to_id("[PAD]")
    source = tokenizers.of(made.config, seq2seq.texts)
    ids = test[0]["source"][test[0]["source_segment_ids"] > 0]
    assert source.decode(ids.tolist()) == "translate: the red cat ." or len(ids) == 8
    assert test[0]["source_text"] == "the red cat ."
    assert params(made)["target_tokens"]["embedding"].shape[0] == model.target_vocab


@pytest.mark.slow
def test_it_passes_the_conformance_kit_on_eight_devices_in_batches_by_length(folder, capsys):
    fields = [*made_pairs.TINY, f"--config.data.dir={folder}", "--config.batch_tokens=160", "--config.data.buckets="]
    assert cli.run([f"--config={CONFIG}", "--mode=check", *fields]) == 0, capsys.readouterr().err
