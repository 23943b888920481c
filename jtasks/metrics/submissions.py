"""Generated sentences in the official formats for results, as plain data for `json.dump`."""

import copy
from collections.abc import Mapping, Sequence
from typing import Any

from jtasks.errors import DataError


def dstc7_results(dialogues: Mapping[str, Any], answers: Mapping[tuple[str, int], str]) -> dict[str, Any]:
    """Fill generated answers into an official file of the AVSD challenge (DSTC7 and later).

    Args:
      dialogues: contents of the file, `{"dialogs": [{"image_id", "dialog": [{"question", "answer"}]}]}`.
      answers: by video and turn, counted from 0; they replace the file's answers.

    Raises:
      DataError: a hidden turn (`__UNDISCLOSED__`) gets no answer, an answer has no turn, or a video occurs twice.
    """
    filled, left = copy.deepcopy(dict(dialogues)), dict(answers)
    names = [dialogue["image_id"] for dialogue in filled["dialogs"]]
    if len(set(names)) < len(names):
        raise DataError(f"a video occurs twice in the file: {max(names, key=names.count)}; expected one dialogue each")
    for dialogue in filled["dialogs"]:
        for turn, exchange in enumerate(dialogue["dialog"]):
            place = (dialogue["image_id"], turn)
            exchange["answer"] = left.pop(place, exchange["answer"])
            if exchange["answer"] == "__UNDISCLOSED__":
                raise DataError(f"no answer was given for turn {turn} of video {place[0]}, which the file hides")
    if left:
        raise DataError(f"{len(left)} answers belong to no turn of the file, such as {next(iter(left))} (video, turn)")
    return filled


def coco_results(ids: Sequence[Any], captions: Sequence[str]) -> list[dict[str, Any]]:
    """Return COCO's results: one `{"image_id", "caption"}` per item.

    >>> coco_results([7], ["a man sits"])
    [{'image_id': 7, 'caption': 'a man sits'}]
    """
    return [{"image_id": name, "caption": text} for name, text in zip(ids, captions, strict=True)]
