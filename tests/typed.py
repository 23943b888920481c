"""Checked by mypy, never run: each shipped task is a `Task`, and the fields of a config have types."""

from typing import Any, assert_type

from jtasks.config import Config
from jtasks.task import MixingTask, Task
from jtasks.tasks import (
    avsd,
    bert,
    caption,
    choice,
    classify,
    contrast,
    igpt,
    lm,
    match,
    mnist,
    multimodal_classify,
    qa,
    seq2seq,
    tag,
    vit,
    vqa,
)

TASKS: list[Task] = [avsd, bert, caption, choice, classify, igpt, lm, mnist, multimodal_classify, qa, seq2seq, tag]
TASKS += [vit, vqa]
MIXING: list[MixingTask] = [contrast, match]


def fields(config: Config) -> None:
    assert_type((config.task, config.seed, config.ema), tuple[str, int, float])
    assert_type((config.data.threads, config.mesh.fsdp), tuple[int, int])
    assert_type((config.data.length, config.model.width, config.sample), tuple[Any, Any, Any])
    assert config.mesh.fdsp  # type: ignore[attr-defined]
