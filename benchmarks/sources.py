"""Both sides of reading data: batches from each kind of source, through our pipeline and through a DataLoader."""

import itertools
import os
import pathlib
import tempfile
from typing import Any

import numpy as np


class Rows:
    """Examples read one by one, as from a file; picklable."""

    def __init__(self, images: np.ndarray):
        self.images = images

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return {"image": self.images[index], "label": np.int32(0)}


class Windows(Rows):
    """Windows of a stream of tokens."""

    def __init__(self, tokens: np.ndarray, length: int):
        self.tokens, self.length = tokens, length

    def __len__(self) -> int:
        return len(self.tokens) - self.length

    def __getitem__(self, index: int) -> dict[str, Any]:
        return {"tokens": self.tokens[index : index + self.length + 1].astype(np.int64)}


class Pictures(Rows):
    """Pictures of a folder, decoded and made smaller."""

    def __init__(self, folder: pathlib.Path, size: int):
        self.paths, self.size = sorted(folder.glob("*/*.jpg")), size

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> dict[str, Any]:
        from PIL import Image, ImageOps

        with Image.open(self.paths[index]) as picture:
            small = ImageOps.fit(picture.convert("RGB"), (self.size, self.size), Image.Resampling.BICUBIC)
        return {"image": np.array(small), "label": np.int32(0)}


def images(size: dict[str, Any]) -> np.ndarray:
    shape = (size["images"], size["size"], size["size"], 1)
    return np.random.default_rng(0).integers(0, 256, shape, np.uint8)


def stream(size: dict[str, Any], folder: pathlib.Path) -> np.ndarray:
    """Tokens mapped from a file."""
    path = folder / "tokens.bin"
    np.random.default_rng(0).integers(0, 512, size["tokens"]).astype(np.uint16).tofile(path)
    return np.memmap(path, np.uint16, "r")


def write_pictures(size: dict[str, Any], folder: pathlib.Path) -> None:
    """JPEG files with some structure: photographs do not compress like noise."""
    from PIL import Image

    random, side = np.random.default_rng(0), size["side"]
    for i in range(size["images"]):
        coarse = Image.fromarray(random.integers(0, 256, (8, 8, 3), np.uint8))
        path = folder / f"class{i % 2}" / f"{i:04d}.jpg"
        path.parent.mkdir(exist_ok=True)
        coarse.resize((side, side), Image.Resampling.BICUBIC).save(path, quality=90)


def ours(case: str, size: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
    """Return a function that draws batches on the device as the loop does, and facts about it."""
    import jax

    from jtasks import data
    from jtasks.data import pipeline, tokens
    from jtasks.data.batch_plan import BatchPlan
    from jtasks.distributed import sharding

    folder = tempfile.TemporaryDirectory()
    path = pathlib.Path(folder.name)
    if case == "arrays":
        examples: Any = {"image": images(size), "label": np.zeros(size["images"], np.int32)}
    elif case == "sequence":
        examples = Rows(images(size))
    elif case == "windows":
        examples = tokens.windows(stream(size, path), size["tokens"], size["length"], 1)
    else:
        write_pictures(size, path)
        examples = data.images(f"folder:{path}", "train", valid=0.0, size=size["size"])
    mesh = sharding.make_mesh({"data": -1})
    plan = BatchPlan(pipeline.size(examples), 0, size["batch"], shuffle=True)
    batches = pipeline.batches(examples, plan, range(1_000_000), sharding.batch_sharding(mesh))

    def work(count: int) -> None:
        for _ in range(count):
            jax.block_until_ready(next(batches))

    work(3)
    return work, {"batch": size["batch"], "folder": hold(folder)}


def theirs(case: str, size: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
    """Return a function that draws batches from a DataLoader, with a worker per core unless the data is in memory."""
    import torch

    folder = tempfile.TemporaryDirectory()
    path = pathlib.Path(folder.name)
    workers = len(os.sched_getaffinity(0))
    if case == "arrays":
        parts = torch.from_numpy(images(size)), torch.zeros(size["images"], dtype=torch.int32)
        examples: Any = torch.utils.data.TensorDataset(*parts)
        workers = 0
    elif case == "sequence":
        examples = Rows(images(size))
    elif case == "windows":
        examples = Windows(stream(size, path), size["length"])
    else:
        write_pictures(size, path)
        examples = Pictures(path, size["size"])
    loader = torch.utils.data.DataLoader(
        examples, size["batch"], shuffle=True, num_workers=workers, persistent_workers=workers > 0, drop_last=True
    )
    batches = itertools.chain.from_iterable(itertools.repeat(loader))

    def work(count: int) -> None:
        for _ in range(count):
            next(batches)

    work(3)
    return work, {"batch": size["batch"], "folder": hold(folder)}


FOLDERS: list[tempfile.TemporaryDirectory] = []


def hold(folder: tempfile.TemporaryDirectory) -> str:
    """Keep a temporary folder until the process ends."""
    FOLDERS.append(folder)
    return folder.name
