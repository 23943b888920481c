"""Dialogues about videos: the files of AVSD (Alamri et al. 2019, arXiv:1901.09107).

A file is `{"dialogs": [{"image_id", "caption", "summary", "dialog": [{"question", "answer"}, ...]}, ...]}`. The model
answers turns whose answer is `__UNDISCLOSED__`. A turn may have `references`, several answers to compare with.
"""

import functools
import json
import pathlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from jtasks import storage
from jtasks.data import files, values
from jtasks.errors import ConfigError, DataError
from jtasks.metrics import submissions

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
    given = storage.local(name)
    path = given if name and given.is_file() else files.find(names, folders)
    if path is None and (name or split == "train"):
        raise ConfigError(
            f"no dialogues for the {split} split\n  looked for: {', '.join(names)}\n"
            f"  in: {', '.join(map(str, folders))}\n  what to do: put AVSD's file there (its challenge's repository is"
            " github.com/hudaAlamri/DSTC7-Audio-Visual-Scene-Aware-Dialog-AVSD-Challenge), or set config.data.dir to"
            f" its folder or config.data.{split} to its name"
        )
    return path


def read_cached(path: pathlib.Path) -> list[dict[str, Any]]:
    """Read the dialogues of a file, or return those read before if the file has not changed since."""
    return _read_cached(path, path.stat().st_mtime_ns)


@functools.lru_cache(maxsize=4)
def _read_cached(path: pathlib.Path, changed: int) -> list[dict[str, Any]]:
    return read(path)


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


def parse_turn(given: Any) -> Turn:
    """Return the question that an input asks in a dialogue, as a turn whose answer is undisclosed.

    Args:
      given: a question; or a dict with `dialog`, turns of question and answer, perhaps `question` for one more turn,
        perhaps `caption`, `summary`, `image_id`, and other entries. Without `question` the last turn is asked.

    Raises:
      DataError: the input is none of these; names the turn.
    """
    given = {"question": given} if isinstance(given, str) else given
    if not isinstance(given, Mapping) or not ("question" in given or given.get("dialog")):
        raise DataError(
            f"expected a question, or a dict with 'question' or 'dialog': [{{question, answer}}, ...],"
            f" not {values.describe(given)}"
        )
    exchanges = list(given.get("dialog") or [])
    last = {"question": given["question"]} if "question" in given else exchanges.pop()
    if not isinstance(last, Mapping) or "question" not in last:
        raise DataError(f"the last turn has no question; expected {{question}}, not {values.describe(last)}")
    exchanges.append({"question": values.content(last["question"], "the question"), "answer": UNDISCLOSED})
    dialogue = {"image_id": "input", **given, "dialog": exchanges}
    _check(dialogue, "the dialogue")
    return dialogue, len(exchanges) - 1


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


def arrays(
    turns: Sequence[Turn],
    encode: Encode,
    mark: int,
    *,
    context_size: int,
    answer_size: int,
    max_turns: int,
    use_caption: bool,
) -> dict[str, np.ndarray]:
    """Encode turns as arrays: `context` and `kinds` [n, context_size], `answer` [n, answer_size + 1], `answered` [n].

    `dialogue` [n] and `turn` [n] are the numbers of the source of each row.
    """
    encode = functools.lru_cache(None)(encode)
    contexts = [
        context(turn, encode, mark, size=context_size, max_turns=max_turns, use_caption=use_caption) for turn in turns
    ]
    answers = [answer(turn, encode, mark, size=answer_size) for turn in turns]
    whole = np.empty(len(turns), object)
    whole[:] = [dialogue for dialogue, _ in turns]
    return {
        "context": np.array([ids for ids, _ in contexts], np.int32),
        "kinds": np.array([kinds for _, kinds in contexts], np.int32),
        "answer": np.array([ids for ids, _ in answers], np.int32),
        "answered": np.array([count for _, count in answers], np.int32),
        "turn": np.array([turn for _, turn in turns], np.int32),
        "dialogue": whole,
    }


def page(turn: Turn, generated: str) -> str:
    """Format a turn for people: caption, the turns before, and the generated answer beside the references."""
    dialogue, index = turn
    lines = [f"=== {dialogue['image_id']}, turn {index + 1}"]
    lines += [f"{name:9} {dialogue[name]}" for name in ("caption", "summary") if dialogue.get(name)]
    for exchange in dialogue["dialog"][:index]:
        lines += [f"Q         {exchange['question']}", f"A         {exchange['answer']}"]
    lines += [f"question  {dialogue['dialog'][index]['question']}", f"generated {generated}"]
    lines += [f"reference {text}" for text in references(turn)]
    return "\n".join(lines) + "\n"


def answer_files(turns: Sequence[Turn], generated: Sequence[str]) -> dict[str, str]:
    """Return answers in the official formats: `dstc7.json`, the file of dialogues with answers, and `coco.json`.

    If the dialogues have undisclosed answers, only these are filled in. If a video repeats, there is no `dstc7.json`.
    """
    whole = list({id(dialogue): dialogue for dialogue, _ in turns}.values())
    by_place = {(dialogue["image_id"], turn): text for (dialogue, turn), text in zip(turns, generated, strict=True)}
    hidden = [
        (dialogue["image_id"], turn)
        for dialogue in whole
        for turn, exchange in enumerate(dialogue["dialog"])
        if exchange["answer"] == UNDISCLOSED
    ]
    by_place = {place: by_place[place] for place in hidden} if hidden else by_place
    names = [f"{video}_{turn}" for video, turn in by_place]
    contents: dict[str, Any] = {"coco": submissions.coco_results(names, list(by_place.values()))}
    if len({dialogue["image_id"] for dialogue in whole}) == len(whole):
        contents["dstc7"] = submissions.dstc7_results({"dialogs": whole}, by_place)
    return {f"{name}.json": json.dumps(content, indent=1) + "\n" for name, content in contents.items()}


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
