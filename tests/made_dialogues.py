"""A made AVSD: dialogues whose second answer only the video's features tell."""

import json
import pathlib

import numpy as np

COLOURS = ("red", "green", "blue", "black")
WIDTHS = {"near": 3, "far": 2}  # kinds of features and their widths
FEATURES = "--config.data.features=('near', 'far')"
TINY = [
    "--config.data.tokenizer=characters",
    "--config.data.max_context_tokens=64",
    "--config.data.max_answer_tokens=12",
    "--config.data.frames=6",
    "--config.model.width=16",
    "--config.model.depth=2",
    "--config.model.heads=2",
    "--config.beam.num_beams=2",
    "--config.beam.max_len=8",
    "--config.beam.min_len=2",
    "--config.score.metrics=('bleu', 'cider')",
]


def dialogue(video: str, color: str, *, undisclosed: bool = False) -> dict:
    """Two turns about a video."""
    answer = {"answer": "__UNDISCLOSED__"} if undisclosed else {"answer": color, "references": [color, f"all {color}"]}
    exchanges = [{"question": "who is it ?", "answer": "a man"}, {"question": "which color ?", **answer}]
    return {"image_id": video, "caption": "a man .", "summary": "he sits .", "dialog": exchanges}


def write(folder: pathlib.Path, sizes: dict[str, int], *, features: bool = True) -> pathlib.Path:
    """Files of dialogues and features for the given number of videos a split; answers of test are undisclosed."""
    random = np.random.default_rng(0)
    for kind in WIDTHS:
        (folder / kind).mkdir(parents=True, exist_ok=True)
    for split, size in sizes.items():
        colors = [int(i) for i in random.integers(0, len(COLOURS), size)]
        content = [
            dialogue(f"{split}{i}", COLOURS[color], undisclosed=split == "test") for i, color in enumerate(colors)
        ]
        (folder / f"avsd_{split}.json").write_text(json.dumps({"dialogs": content}))
        for i, color in enumerate(colors if features else []):
            signs = np.array([color % 2, color // 2]) * 2.0 - 1
            near = np.column_stack([random.normal(size=(5 + i % 3, 2)) / 4, np.full(5 + i % 3, signs[0])])
            far = np.column_stack([np.full(9, signs[1]), random.normal(size=9) / 4])
            np.save(folder / "near" / f"{split}{i}.npy", near.astype(np.float32))
            np.save(folder / "far" / f"{split}{i}.npy", far.astype(np.float16))
    return folder
