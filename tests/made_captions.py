"""Made pictures with captions: squares in one of three colors."""

import pathlib

import numpy as np
from PIL import Image

COLORS = {"red": (220, 20, 20), "green": (20, 200, 20), "blue": (20, 20, 220)}
SIZES = {"train": 12, "valid": 5, "test": 3}
TINY = [
    *("--config.steps=4", "--config.batch_size=8", "--config.show_count=2"),
    *("--config.model.image_width=16", "--config.model.image_depth=1", "--config.model.image_heads=2"),
    *("--config.model.text_width=16", "--config.model.text_depth=1", "--config.model.text_heads=2"),
    *("--config.data.size=16", "--config.data.crop=1", "--config.data.tokenizer=wordpiece:80"),
    *("--config.data.max_caption_tokens=6", "--config.beam.max_len=4", "--config.log_every=2"),
]


def captions(i: int) -> list[str]:
    """One caption for each picture, a second one for the odd ones."""
    color = list(COLORS)[i % 3]
    return [f"a {color} square", *([f"something {color}"] if i % 2 else [])]


def write(folder: pathlib.Path, side: int = 16) -> pathlib.Path:
    """Write SPLIT/NUMBER.png and SPLIT/captions.txt."""
    for split, count in SIZES.items():
        (folder / split).mkdir(parents=True)
        for i in range(count):
            color = np.full((side, side, 3), COLORS[list(COLORS)[i % 3]], np.uint8)
            color[i % 4 : i % 4 + 2] = 128
            Image.fromarray(color).save(folder / split / f"{i}.png")
        lines = [f"{i}.png\t{text}\n" for i in range(count) for text in captions(i)]
        (folder / split / "captions.txt").write_text("".join(lines))
    return folder
