"""Pictures of one color with questions about it, as LAVIS's lists, and overrides of configs/vqa_easy.py for them."""

import json
import pathlib

import numpy as np
from PIL import Image

COLORS = {"red": (200, 0, 0), "lime green": (0, 200, 0), "blue": (0, 0, 200)}
TINY = [
    *(f"--config.model.{tower}_{name}" for tower in ("image", "text") for name in ("width=16", "depth=1", "heads=2")),
    *("--config.model.patch=8", "--config.data.size=None", "--config.batch_size=4", "--config.data.valid_fraction=0.3"),
    *("--config.data.train=vqa_train.json", "--config.data.test=vqa_test.json", "--config.data.max_answer_tokens=6"),
]


def write(folder: pathlib.Path) -> None:
    """Write two splits; every second question has the answers of four people."""
    for split, n in (("train", 12), ("test", 5)):
        rows = []
        for i in range(n):
            name, color = list(COLORS.items())[i % 3]
            Image.fromarray(np.full((16, 16, 3), color, np.uint8)).save(folder / f"{split}{i}.png")
            row = {"image": f"{split}{i}.png", "question": "what color is it?", "question_id": i}
            rows.append(row | {"answer": name if i % 2 else [name] * 3 + ["green"]})
        (folder / f"vqa_{split}.json").write_text(json.dumps(rows))
