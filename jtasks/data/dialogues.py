"""Dialogues about videos: the files of AVSD (Alamri et al. 2019, arXiv:1901.09107) and the videos' features.

A file is `{"dialogs": [{"image_id", "caption", "summary", "dialog": [{"question", "answer"}, ...]}, ...]}`. The model
answers turns whose answer is `__UNDISCLOSED__`. A turn may have `references`, several answers to compare with. Features
are arrays `KIND/VIDEO.npy` [time, width], one folder per kind.
"""

import concurrent.futures
import dataclasses
import pathlib
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np

from jtasks.data import files, values
from jtasks.errors import ConfigError, DataError

UNDISCLOSED = "__UNDISCLOSED__"
CAPTION, QUESTIONER, ANSWERER = 1, 2, 3  # kinds of tokens in a context, 0 for padding

# File names of a split: those of the seventh and tenth Dialog System Technology Challenge, and a short one.
NAMES = {
    split: (*(f"{split}_set4DSTC{number}-AVSD.json" for number in (7, 10)), f"avsd_{split}.json")
    for split in ("train", "valid", "test")
}

Turn = tuple[dict[str, Any], int]  # a dialogue, and the index of a turn
Encode = Callable[[str], Sequence[int]]


def locate(split: str, name: str, folder: pathlib.Path) -> pathlib.Path | None:
    """Find the file of a split in `folder` and `folder`/avsd: `name`, or for "" the first of NAMES.

    Returns:
      The path, or None if "" finds no file for a split other than train.

    Raises:
      ConfigError: there is no such file.
    """
    names, folders = (name,) if name else NAMES[split], (folder, folder / "avsd")
    given = pathlib.Path(name).expanduser()
    path = given if name and given.is_file() else files.find(names, folders)
    if path is None and (name or split == "train"):
        raise ConfigError(
            f"no dialogues for the {split} split\n  looked for: {', '.join(names)}\n"
            f"  in: {', '.join(map(str, folders))}\n  what to do: put AVSD's file there (its challenge's repository is"
            " github.com/hudaAlamri/DSTC7-Audio-Visual-Scene-Aware-Dialog-AVSD-Challenge), or set config.data.dir to"
            f" its folder or config.data.{split} to its name"
        )
    return path


def read(path: pathlib.Path) -> list[dict[str, Any]]:
    """Read the dialogues of a file, without a byte order mark; captions and summaries may be null or absent.

    Raises:
      DataError: the file is not JSON or not of the form above; names dialogue and turn.
    """
    content = values.parse(files.decode(files.read(path), str(path)), str(path))
    dialogues = content.get("dialogs") if isinstance(content, dict) else None
    if not isinstance(dialogues, list) or not dialogues:
        raise DataError(f'{path} has no dialogues: expected {{"dialogs": [{{"image_id", "dialog", ...}}, ...]}}')
    for index, dialogue in enumerate(dialogues):
        _check(dialogue, f"{path}, dialogue {index}")
    return dialogues


def turns(dialogues: Iterable[dict[str, Any]], which: str) -> list[Turn]:
    """Select the turns to answer, in order.

    Args:
      which: "all"; "last" of each dialogue; or "asked", turns that are undisclosed or have references.

    Raises:
      ConfigError: `which` has another value.
    """
    if which not in ("all", "last", "asked"):
        raise ConfigError(f'config.data.turns={which!r} must be "all", "last" or "asked"')
    selected = []
    for dialogue in dialogues:
        exchanges = dialogue["dialog"]
        for turn, exchange in enumerate(exchanges):
            asked = exchange["answer"] == UNDISCLOSED or "references" in exchange
            if which == "all" or (which == "last" and turn == len(exchanges) - 1) or (which == "asked" and asked):
                selected.append((dialogue, turn))
    return selected


def texts(dialogues: Iterable[dict[str, Any]]) -> Iterable[str]:
    """Yield captions, questions and answers, one text at a time."""
    for dialogue in dialogues:
        yield caption(dialogue)
        for exchange in dialogue["dialog"]:
            yield exchange["question"]
            if exchange["answer"] != UNDISCLOSED:
                yield exchange["answer"]


def caption(dialogue: dict[str, Any]) -> str:
    """Join caption and summary of a video; either may be missing."""
    return " ".join(filter(None, (dialogue.get("caption"), dialogue.get("summary"))))


def references(turn: Turn) -> list[str]:
    """Return the answers to compare with: the references, else the answer; none if it is undisclosed."""
    exchange = turn[0]["dialog"][turn[1]]
    answer = [exchange["answer"]] if exchange["answer"] != UNDISCLOSED else []
    return list(exchange.get("references") or answer)


def context(
    turn: Turn, encode: Encode, mark: int, *, size: int, max_turns: int, use_caption: bool
) -> tuple[np.ndarray, np.ndarray]:
    """Encode the context of an answer: caption and summary, the last `max_turns` turns, the question.

    Each piece begins with `mark`. A context that is too long loses its oldest turns, then the end of its caption, then
    the beginning of its question.

    Returns:
      Ids int32 [size], and the kind of each, 0 for padding at the end.
    """
    dialogue, index = turn
    about = [mark, *encode(caption(dialogue))] if use_caption else []
    past = dialogue["dialog"][max(index - max_turns, 0) : index]
    question = [mark, *encode(dialogue["dialog"][index]["question"])][-size:]
    spoken = [
        ([mark, *encode(exchange["question"])], [mark, *encode(exchange["answer"])])
        for exchange in past
        if exchange["answer"] != UNDISCLOSED
    ]
    while spoken and len(about) + len(question) + sum(len(q) + len(a) for q, a in spoken) > size:
        spoken.pop(0)
    about = about[: size - len(question)]
    pieces = [(about, CAPTION), *(piece for q, a in spoken for piece in ((q, QUESTIONER), (a, ANSWERER)))]
    pieces.append((question, QUESTIONER))
    ids, kinds = np.zeros(size, np.int32), np.zeros(size, np.int32)
    flat = [i for piece, _ in pieces for i in piece]
    ids[: len(flat)] = flat
    kinds[: len(flat)] = [kind for piece, kind in pieces for _ in piece]
    return ids, kinds


def answer(turn: Turn, encode: Encode, mark: int, *, size: int) -> tuple[np.ndarray, int]:
    """Encode the answer with `mark` at both ends, cut to `size` ids after the first mark.

    Returns:
      Ids int32 [size + 1], padded with marks, and the number of ids after the first mark; 0 if undisclosed.
    """
    ids, text = np.full(size + 1, mark, np.int32), turn[0]["dialog"][turn[1]]["answer"]
    if text == UNDISCLOSED:
        return ids, 0
    spoken = [*encode(text), mark][:size]
    ids[1 : len(spoken) + 1] = spoken
    return ids, len(spoken)


@dataclasses.dataclass(frozen=True)
class Features:
    """Features of videos in a folder, `KIND/VIDEO.npy`, read on demand.

    Attributes:
      frames: maximum number of feature vectors of a video.
      threads: number of threads that read the videos of a batch.
    """

    folder: pathlib.Path
    kinds: tuple[str, ...]
    frames: int
    threads: int = 1

    def path(self, kind: str, video: str) -> pathlib.Path:
        """Return the path of one video's features of one kind."""
        return self.folder / kind / f"{video}.npy"

    def require(self, videos: Iterable[str]) -> None:
        """Raise a DataError that names missing files, or a ConfigError if the folder is missing."""
        wanted = [self.path(kind, video) for kind in self.kinds for video in dict.fromkeys(videos)]
        missing = [path for path in wanted if not path.is_file()]
        if missing:
            some = "".join(f"\n  {path}" for path in missing[:5])
            raise (DataError if self.folder.is_dir() else ConfigError)(
                f"{len(missing)} of {len(wanted)} files of features are missing, such as:{some}\n"
                "  what to do: put them there, set config.data.features_dir to the folder that holds"
                f" {', '.join(self.kinds)}, or train on text alone with --config.data.features='()'"
            )

    def width(self, video: str) -> int:
        """Return the number of features of a frame, all kinds together."""
        return sum(self._read(kind, video).shape[1] for kind in self.kinds)

    def batch(self, videos: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
        """Read features float32 [b, frames, width], zero after the last frame, and the number of frames [b]."""
        with concurrent.futures.ThreadPoolExecutor(self.threads) as pool:
            arrays = list(pool.map(self.aligned, videos))
        widths = {array.shape[1] for array in arrays}
        if len(widths) > 1:
            raise DataError(f"features of different widths, {sorted(widths)}, among the videos {', '.join(videos[:5])}")
        batch = np.zeros((len(arrays), self.frames, widths.pop()), np.float32)
        for row, array in zip(batch, arrays, strict=True):
            row[: len(array)] = array
        return batch, np.array([len(array) for array in arrays], np.int32)

    def aligned(self, video: str) -> np.ndarray:
        """Read features [time, width] of all kinds side by side, with at most `frames` frames.

        Kinds differ in frame rate. All are linearly interpolated at evenly spaced times, as many as the shortest kind
        has, at most `frames`; the first and the last frame of each are kept.
        """
        arrays = [self._read(kind, video) for kind in self.kinds]
        length = min(self.frames, *(len(array) for array in arrays))
        return np.concatenate([_resample(array, length) for array in arrays], axis=1)

    def _read(self, kind: str, video: str) -> np.ndarray:
        path = self.path(kind, video)
        array = files.array(path)  # maps the file, so only the needed parts are read
        if array.ndim != 2 or not array.size or array.dtype.kind != "f":
            raise DataError(f"{path} holds {array.dtype} {list(array.shape)}; expected floats [time, width]")
        return array


def _resample(array: np.ndarray, length: int) -> np.ndarray:
    times = np.linspace(0, len(array) - 1, length)
    before = np.floor(times).astype(int)
    after = np.minimum(before + 1, len(array) - 1)
    weight = (times - before)[:, None].astype(np.float32)
    return array[before].astype(np.float32) * (1 - weight) + array[after].astype(np.float32) * weight


def _check(dialogue: Any, where: str) -> None:
    if not isinstance(dialogue, dict) or not isinstance(dialogue.get("image_id"), str):
        raise DataError(f"{where} has no image_id; expected an object with image_id, caption, summary and dialog")
    video = values.text(dialogue["image_id"], f"{where}, 'image_id'")
    if not files.is_plain(video):
        raise DataError(f"{where}: the image_id {video!r} is not a file name, which features need")
    where += f" ({video})"
    for key in ("caption", "summary"):
        if dialogue.get(key) is not None:
            values.text(dialogue[key], f"{where}, {key!r}")
    exchanges = dialogue.get("dialog")
    if not isinstance(exchanges, list) or not exchanges:
        raise DataError(f"{where} has no turns; expected dialog: [{{question, answer}}, ...]")
    for turn, exchange in enumerate(exchanges):
        if not isinstance(exchange, dict) or not {"question", "answer"} <= exchange.keys():
            raise DataError(f"{where}, turn {turn}: expected a question and an answer")
        for key in ("question", "answer"):
            values.text(exchange[key], f"{where}, turn {turn}, {key!r}")
        if "references" in exchange:
            values.contents(exchange["references"], f"{where}, turn {turn}, 'references'")
