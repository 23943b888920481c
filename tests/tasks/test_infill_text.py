"""Claims about pre-training by text infilling: configs/infill_text.py, and config.data.noise of task seq2seq."""

import jax
import numpy as np
import pytest
from front_door import ROOT

from jtasks import config as configs
from jtasks.data import pipeline, tokenizers
from jtasks.data.batch_plan import BatchPlan
from jtasks.errors import ConfigError, DataError
from jtasks.ops import infilling
from jtasks.run import job
from jtasks.tasks import seq2seq

TINY = [
    *("--config.model.width=16", "--config.model.encoder_depth=1", "--config.model.decoder_depth=1"),
    *("--config.model.heads=2", "--config.model.mlp_dim=32", "--config.data.tokenizer=bpe:400"),
    *("--config.data.length=40", "--config.batch_size=4", "--config.model.dropout=0.0", "--config.data.files=own.txt"),
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("text")
    stories = [f"The {i} cats sat on mat {i * i}. They saw {i + 1} dogs. All ran." for i in range(60)]
    (path / "own.txt").write_bytes("\r\n\r\n".join(stories).encode("utf-8-sig"))
    return path


def prepared(folder, *overrides, preset="spans"):
    fields = [*TINY, f"--config.data.dir={folder}", *overrides]
    return job.prepare(configs.load(f"{ROOT}/configs/infill_text.py:{preset}", fields))


def test_a_split_has_each_token_once_and_the_trained_tokenizer_has_its_marks(folder):
    made = prepared(folder)
    tokenizer, model = tokenizers.of(made.config, seq2seq.texts), made.config.model
    assert tokenizer.token_to_id("<extra_id_0>") == model.hide
    assert tokenizer.token_to_id("<extra_id_99>") == model.hide - 99
    valid = made.require("valid")
    ids = [token for row, skip in zip(valid["tokens"], valid["skip"], strict=True) for token in row[skip:]]
    stories = tokenizer.decode(ids).count("All ran.")
    assert stories == ids.count(model.end) + 1 == 3  # a twentieth of them
    assert all((rows["tokens"] == model.end).sum(1).max() < model.documents for rows in (made.require("train"), valid))
    filled = prepared(folder, preset="infilling")
    tokenizer, model = tokenizers.of(filled.config, seq2seq.texts), filled.config.model
    assert (model.hide, model.stops) == (tokenizer.token_to_id("<mask>"), (tokenizer.token_to_id("."),))


def test_packed_documents_are_as_if_each_had_its_row(folder):
    made = prepared(folder)
    examples = made.require("train")
    batch = dict(pipeline.batch_at(examples, BatchPlan(pipeline.size(examples), 0, 4, False), 0, made.collate))
    shapes = jax.eval_shape(lambda b: seq2seq.init(jax.random.key(0), b, made.config), batch)
    random = np.random.default_rng(0)
    params = jax.tree.map(lambda x: (0.3 * random.normal(size=x.shape)).astype(np.float32), shapes)
    corrupted = jax.jit(infilling.corrupt, static_argnames="config")(batch, config=made.config)
    packed = {name: np.array(value) for name, value in corrupted.items() if name != "tokens"}
    packed["mask"] = np.array([1, 0, 0, 0], np.float32)
    count = packed["source_segment_ids"][0].max()
    assert 2 <= count <= 4
    apart = {name: np.zeros_like(value) for name, value in packed.items()}
    apart["mask"][:count] = 1
    for side in ("source", "target"):
        ids = packed[f"{side}_segment_ids"][0]
        for row in range(count):
            own = packed[side][0][ids == row + 1]
            assert own[-1] == made.config.model.end
            apart[side][row, : len(own)], apart[f"{side}_segment_ids"][row, : len(own)] = own, 1
    evaluate = jax.jit(seq2seq.eval_fn, static_argnames="config")
    together, alone = (evaluate(params, x, config=made.config)["loss"] for x in (packed, apart))
    assert together.count == alone.count > 0
    np.testing.assert_allclose(together.total, alone.total, rtol=1e-5)


def test_errors_say_what_to_do(folder):
    with pytest.raises(DataError, match="has no token <extra_id_0>, which this task needs"):
        prepared(folder, "--config.data.tokenizer=bytes")
    with pytest.raises(DataError, match=r"the valid part of the text has only 6. tokens, fewer than config"):
        prepared(folder, "--config.data.length=100")
    with pytest.raises(ConfigError, match="noise must be empty, spans or infilling, not 'span'"):
        prepared(folder, "--config.data.noise=span")
    made = prepared(folder, "--config.batch_tokens=400")
    with pytest.raises(ConfigError, match="does not give the lengths of its examples"):
        made.plan(made.require("train"), shuffle=True)
