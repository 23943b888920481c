"""Claims about jtasks.metrics.submissions: files that the challenges' own evaluators read."""

import copy
import json

import pytest

from jtasks.errors import DataError
from jtasks.metrics.submissions import coco_results, dstc7_results

FILE = {
    "type": "scene_aware_dialog",
    "version": "0.1",
    "dialogs": [
        {
            "image_id": "A1",
            "caption": "a man sits",
            "dialog": [
                {"question": "who ?", "answer": "a man"},
                {"question": "where ?", "answer": "__UNDISCLOSED__"},
            ],
        },
        {"image_id": "B2", "dialog": [{"question": "how many ?", "answer": "__UNDISCLOSED__"}]},
    ],
}
ANSWERS = {("A1", 1): "in a room", ("B2", 0): "two"}


def test_hidden_answers_are_filled_in_and_all_else_stays():
    before = copy.deepcopy(FILE)
    filled = json.loads(json.dumps(dstc7_results(FILE, ANSWERS)))
    assert [[turn["answer"] for turn in d["dialog"]] for d in filled["dialogs"]] == [["a man", "in a room"], ["two"]]
    for dialogue in filled["dialogs"]:
        for turn in dialogue["dialog"]:
            del turn["answer"]
    for dialogue in before["dialogs"]:
        for turn in dialogue["dialog"]:
            del turn["answer"]
    assert filled == before
    assert FILE["dialogs"][1]["dialog"][0]["answer"] == "__UNDISCLOSED__"


def test_an_answer_that_is_known_can_be_replaced_too():
    filled = dstc7_results(FILE, ANSWERS | {("A1", 0): "a woman"})
    assert filled["dialogs"][0]["dialog"][0]["answer"] == "a woman"


def test_errors_name_the_turn():
    with pytest.raises(DataError, match="no answer was given for turn 0 of video B2"):
        dstc7_results(FILE, {("A1", 1): "in a room"})
    with pytest.raises(DataError, match=r"1 answers belong to no turn of the file, such as \('B2', 5\)"):
        dstc7_results(FILE, ANSWERS | {("B2", 5): "what"})
    with pytest.raises(DataError, match="a video occurs twice in the file: A1"):
        dstc7_results({"dialogs": [FILE["dialogs"][0]] * 2}, ANSWERS)


def test_results_of_coco_are_one_record_an_item():
    assert coco_results([3, "x"], ["he sits", ""]) == [
        {"image_id": 3, "caption": "he sits"},
        {"image_id": "x", "caption": ""},
    ]
    with pytest.raises(ValueError, match="longer"):
        coco_results([3], ["he sits", "two"])
