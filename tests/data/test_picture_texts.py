"""Claims about data.picture_texts: one or two pictures, a text and a class."""

import json

import numpy as np
import pytest
from PIL import Image

from jtasks import config as configs
from jtasks import task
from jtasks.data import picture_texts
from jtasks.errors import ConfigError, DataError

OWN = task.fields(task.load("jtasks.tasks.multimodal_classify"))


def config(folder, **data):
    full = configs.defaults(own=OWN)
    with full.unlocked():
        full.data.update({"dir": str(folder), **data})
    return configs.Config(full)


def pictures(folder, *names):
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.full((4, 6, 3), len(name), np.uint8)).save(folder / name)


def read(folder, content, name="train.json", **data):
    (folder / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    return picture_texts.read("train", config(folder, train=name, **data))


@pytest.mark.parametrize(
    ("name", "content", "pair"),
    [
        ("t.json", json.dumps([{"images": ["a b[1].png", "b.png"], "sentence": "one", "label": "True"}] * 2), True),
        (
            "t.csv",
            b"\xef\xbb\xbfimage,image2,text,label\r\na b[1].png,b.png,one,True\r\na b[1].png,b.png,one,True\r\n",
            True,
        ),
        ("t.tsv", "image\ttext\tlabel\na b[1].png\tone\tTrue\na b[1].png\tone\tTrue", False),
        ("t.jsonl", '{"image": "a b[1].png", "hypothesis": "one", "label": true}\n' * 2, False),
    ],
)
def test_forms_of_own_files(name, content, pair, tmp_path):
    pictures(tmp_path, "a b[1].png", "b.png")
    rows = read(tmp_path, content, name, valid_fraction=0.0)
    assert [(row["text"], row["label"]) for row in rows.entries] == [("one", "True")] * 2
    assert rows.entries[0]["file"] == (("a b[1].png", "b.png") if pair else ("a b[1].png",))
    assert rows[0]["image"].shape == (1 + pair, 4, 6, 3) and rows[0]["image"][0, 0, 0, 0] == len("a b[1].png")


def test_the_official_files_name_their_pictures_their_own_way(tmp_path):
    pictures(tmp_path, "images/train/85/train-10171-0-img0.png", "images/train/85/train-10171-0-img1.png", "f/34.jpg")
    nlvr = {"sentence": "two dogs", "label": "False", "identifier": "train-10171-0-2", "directory": 85}
    rows = read(tmp_path, json.dumps(nlvr) + "\n", pictures="images", valid_fraction=0.0)
    assert rows.entries[0]["file"] == ("train-10171-0-img0.png", "train-10171-0-img1.png")
    assert rows[0]["image"].shape[0] == 2 and rows.entries[0]["label"] == "False"
    line = {"Flickr30K_ID": 34, "sentence2": "a dog", "gold_label": "neutral", "sentence1": "left out"}
    rows = read(tmp_path, json.dumps(line), "snli_ve_train.jsonl", pictures="f", valid_fraction=0.0)
    assert (rows.entries[0]["text"], rows.entries[0]["label"], rows[0]["image"].shape[0]) == ("a dog", "neutral", 1)


@pytest.mark.parametrize(
    ("content", "error"),
    [
        ("", "is empty; expected pictures with a text and a class"),
        ("[]", "has no rows"),
        ("[3]", "item 0: expected an object"),
        ('[{"image": "b.png", "label": "a"}]', r"item 0 has 'image', 'label'; expected a picture, a text and a class"),
        ('[{"images": ["b.png", "b.png", "b.png"], "text": "x", "label": "a"}]', "has 3 pictures; expected one or two"),
        ('[{"image": "b.png", "text": "x"}]', "item 0 has no class; expected one of each example of train"),
        ('[{"image": "b.png", "text": " ", "label": "a"}]', "item 0, 'text' is empty"),
        ('[{"image": "none.png", "text": "x", "label": "a"}]', r"item 0: there is no picture 'none\.png'"),
        ('{"identifier": "train", "text": "x", "label": "a"}', "expected an identifier of NLVR2"),
        (
            '[{"image": "b.png", "text": "x", "label": "a"},'
            ' {"images": ["b.png", "b.png"], "text": "x", "label": "a"}]',
            "item 1 has 2 pictures, but the first row has 1",
        ),
    ],
)
def test_a_wrong_file_is_refused_with_its_place(content, error, tmp_path):
    pictures(tmp_path, "b.png")
    with pytest.raises(DataError, match=error):
        read(tmp_path, content, valid_fraction=0.0)
    with pytest.raises(ConfigError, match=r"no file or folder 'absent\.json'"):
        picture_texts.read("train", config(tmp_path, train="absent.json"))
