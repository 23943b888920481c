"""Claims about the configs of translation and summarization."""

import json

import made_pairs
import numpy as np
import pytest
from front_door import ROOT, run

from jtasks import config as configs
from jtasks.interop import model_config
from jtasks.run import job


@pytest.mark.parametrize("preset", ["translate.py:t5", "translate.py:marian", "summarize.py:bart"])
def test_a_preset_takes_its_model_from_the_folder(preset, shared, tmp_path):
    folder = shared / "golden" / preset.partition(":")[2]
    made_pairs.write(tmp_path)
    pairs = [f"data.dir={tmp_path}", "data.train=train.en,train.xx", "data.valid=", "data.test="]
    short = ["data.tokenizer=characters", "data.source_length=32", "data.target_length=32", "beam.max_len=16"]
    fields = [
        f"--config.{field}" for field in (f"init_from=hf:{folder}", "batch_size=8", "batch_tokens=0", *pairs, *short)
    ]
    model = job.prepare(configs.load(f"{ROOT}/configs/{preset}", fields)).config.model
    theirs = {k: v for k, v in model_config.model_fields(folder).items() if "dropout" not in k}
    assert {name: model[name] for name in theirs} == theirs


@pytest.mark.slow
def test_summarize_runs_through_the_front_door_on_eight_devices(tmp_path):
    for split in ("train", "dev"):
        rows = [{"source": text.split(), "target": [told, text]} for text, told in map(made_pairs.pair, range(9))]
        (tmp_path / f"{split}.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    tiny = [flag for flag in made_pairs.TINY if "data.t" not in flag and "data.valid" not in flag]
    result, errors = run(
        "--config=configs/summarize.py",
        f"--workdir={tmp_path / 'run'}",
        f"--config.data.dir={tmp_path}",
        "--config.data.tokenizer=bpe:300",
        *tiny,
        devices=8,
    )
    assert "train 18, valid 9" in errors  # each reference is an example
    assert result["step"] == 4 and {"valid/rouge1", "valid/rougeL"} < set(result)
    assert np.isfinite(list(result.values())).all()
