"""Claims about pictures with captions: each picture once, with all its captions, from whatever file people have."""

import json
import pickle
import tarfile

import numpy as np
import pytest
from PIL import Image

from jtasks.config import Config
from jtasks.data import captioned, picture_rows, pipeline
from jtasks.data.examples import Resize
from jtasks.errors import ConfigError, DataError


def settings(folder="", *, resize=None, seed=0, **data):
    fields = {name.removeprefix("data."): field.default for name, field in captioned.FIELDS.items()}
    return Config(
        {"seed": seed, "data": fields | {"dir": str(folder)} | data, "model": {"resize": resize, "shape": None}}
    )


def draw(folder, *names, size=(6, 4)):
    """Pictures whose levels are their number."""
    for number, name in enumerate(names):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", size, (number,) * 3).save(folder / name)


def pack(archive, folder, mode="w"):
    with tarfile.open(archive, mode) as tar:
        for path in sorted(folder.rglob("*")):
            tar.add(path, f"images/{path.relative_to(folder)}", recursive=False)


def levels(rows):
    return [int(row["image"].max()) for row in rows]


def read(folder, split="train", **data):
    return captioned.read(split, settings(folder, **{"valid_fraction": 0.0} | data))


NAMES = ["b.png", "a b[1].png", "c, d.png"]
CAPTIONS = [("a dog", "it runs, fast"), ("un café",), ('say "hi"',)]
COCO = {
    "images": [{"id": i + 7, "file_name": name} for i, name in enumerate(NAMES)],
    "annotations": [
        {"id": n, "image_id": 7 + i, "caption": CAPTIONS[i][k]}
        for n, (i, k) in enumerate([(0, 0), (2, 0), (1, 0), (0, 1)])
    ],
}  # fmt: skip
FLAT = [(name, text) for name, texts in zip(NAMES, CAPTIONS, strict=True) for text in texts]
FILES = {
    "coco.json": json.dumps(COCO),
    "list.json": json.dumps(
        [{"image": NAMES[i], "caption": list(texts), "image_id": i + 7} for i, texts in enumerate(CAPTIONS)]
    ),
    "each.json": json.dumps([{"image": name, "caption": text} for name, text in FLAT]),
    "karpathy.json": json.dumps(
        {
            "images": [
                {"filename": NAMES[i], "split": "restval", "sentences": [{"raw": text} for text in texts]}
                for i, texts in enumerate(CAPTIONS)
            ]
        }
    ),
    "x.csv": 'image,caption\nb.png,a dog\nb.png,"it runs, fast"\na b[1].png,un café\n"c, d.png","say ""hi"""\n',
    "x.tsv": 'filepath\ttitle\nb.png\ta dog\nb.png\tit runs, fast\na b[1].png\tun café\nc, d.png\tsay "hi"\n',
    "x.jsonl": "".join(
        json.dumps({"file_name": name, "text": list(texts)}) + "\n" for name, texts in zip(NAMES, CAPTIONS, strict=True)
    ),
    "captions.txt": 'image,caption\nb.png,a dog\nb.png#1\tit runs, fast\n\na b[1].png\tun café\nc, d.png,say "hi"\n',
    "quoted.txt": 'b.png,"a dog"\nb.png,"it runs, fast"\na b[1].png,un café\n"c, d.png","say ""hi"""\n',
}  # fmt: skip


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("windows", [False, True])
def test_every_kind_of_file_gives_the_same_pictures_and_captions(tmp_path, name, windows):
    draw(tmp_path / "images", *NAMES)
    content = FILES[name].replace("\n", "\r\n") if windows else FILES[name]
    (tmp_path / name).write_bytes(b"\xef\xbb\xbf" * windows + content.encode())
    rows = read(tmp_path, train=name)
    assert [row["captions"] for row in rows.entries] == CAPTIONS
    assert levels(rows) == [0, 1, 2] and rows[0]["image"].shape == (4, 6, 3)
    assert list(captioned.texts(settings(tmp_path, train=name, valid_fraction=0.0))) == [text for _, text in FLAT]


def test_pictures_lie_in_a_folder_its_subfolders_or_an_archive(tmp_path):
    (tmp_path / "x.tsv").write_text(FILES["x.tsv"])
    draw(tmp_path / "far" / "deep" / "er", *NAMES)
    pack(tmp_path / "images.tar", tmp_path / "far" / "deep" / "er")
    pack(tmp_path / "other.tar.xz", tmp_path / "far" / "deep" / "er", "w:xz")
    for pictures in ("far/deep/er", "far", "", "images.tar", "other.tar.xz", str(tmp_path / "other.tar.xz")):
        rows = read(tmp_path, train="x.tsv", pictures=pictures)
        again = pickle.loads(pickle.dumps(rows))
        assert levels(rows) == levels(again) == [0, 1, 2]
    assert len(list((tmp_path / "prepared").iterdir())) == 1


def test_two_pictures_of_one_name_need_their_folders(tmp_path):
    draw(tmp_path / "far", "x/a.png", "y/a.png")
    (tmp_path / "captions.txt").write_text("a.png,one\n")
    with pytest.raises(DataError, match=r"captions\.txt, line 1: 2 pictures are called 'a\.png', such as [xy]/a\.png"):
        read(tmp_path, pictures="far")
    (tmp_path / "captions.txt").write_text("y/a.png,one\n")
    assert levels(read(tmp_path, pictures="far")) == [1]


def test_splits_have_files_of_their_own_or_a_part_of_train(tmp_path):
    names = [f"{i}.png" for i in range(10)]
    draw(tmp_path / "images", *names)

    def write(path, chosen):
        path.parent.mkdir(exist_ok=True)
        path.write_text("".join(f"{name}\ta picture\n" for name in chosen))

    write(tmp_path / "captions.txt", names)
    parts = [read(tmp_path, split, valid_fraction=0.3) for split in ("train", "valid", "test")]
    assert [part and len(part) for part in parts] == [7, 3, None]
    assert sorted(levels(parts[0]) + levels(parts[1])) == list(range(10))
    assert levels(read(tmp_path, "valid", valid_fraction=0.3)) == levels(parts[1])
    assert read(tmp_path, "valid") is None and len(read(tmp_path)) == 10

    write(tmp_path / "captions_train.txt", names[:8])
    write(tmp_path / "captions_val.txt", names[8:])
    for train in ("", "captions_train.txt", str(tmp_path)):
        options = {"train": train, "valid_fraction": 0.5}
        assert levels(read(tmp_path, **options)) == list(range(8))
        assert levels(read(tmp_path, "valid", **options)) == [8, 9]
        assert read(tmp_path, "test", **options) is None
    assert levels(read(tmp_path, "test", test="captions_val.txt")) == [8, 9]


def test_karpathys_file_holds_all_splits(tmp_path):
    draw(tmp_path, *(f"{i}.png" for i in range(4)))
    kinds = ("train", "restval", "val", "test")
    images = [{"filename": f"{i}.png", "split": kind, "sentences": [{"raw": kind}]} for i, kind in enumerate(kinds)]
    (tmp_path / "dataset_coco.json").write_text(json.dumps({"images": images}))
    assert [levels(read(tmp_path, split)) for split in ("train", "valid", "test")] == [[0, 1], [2], [3]]


def test_a_folder_of_the_hub_has_metadata_or_parquet(tmp_path):
    import pyarrow
    import pyarrow.parquet

    for split in ("train", "test"):
        draw(tmp_path / "folder" / split, "0.png", "1.png")
        lines = [{"file_name": f"{i}.png", "text": f"{split} {i}"} for i in range(2)]
        (tmp_path / "folder" / split / "metadata.jsonl").write_text("\n".join(map(json.dumps, lines)))
    assert [row["captions"] for row in read(tmp_path, "test", train="folder").entries] == [("test 0",), ("test 1",)]
    draw(tmp_path, "0.png", "1.png")
    cells = [{"bytes": (tmp_path / f"{i}.png").read_bytes(), "path": None} for i in range(2)]
    (tmp_path / "table").mkdir()
    table = pyarrow.table({"image": cells, "caption": [["a", "b"], ["c"]]})
    pyarrow.parquet.write_table(table, tmp_path / "table" / "train-0.parquet")
    rows = read(tmp_path, train="table")
    assert levels(rows) == [0, 1] and [row["captions"] for row in rows.entries] == [("a", "b"), ("c",)]
    assert captioned.read("test", settings(tmp_path, train="table")) is None


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("x.json", "", r"x\.json is empty"),
        ("x.csv", "\ufeff\r\n", r"x\.csv is empty"),
        ("x.csv", "image,caption\n", "has no pictures"),
        ("x.json", "{", r"x\.json is not JSON: .* line 1 column 2"),
        ("x.json", '{"a": 1}', "expected COCO's .* not an object without images"),
        ("x.json", '{"images": []}', "has no pictures"),
        ("x.json", '[{"image": "b.png", "caption": 3}]', r"x\.json, item 0, 'caption': expected text, not the number"),
        ("x.json", '[{"image": "b.png", "caption": ["a", " "]}]', "item 0, 'caption', item 1 is empty"),
        ("x.json", '[{"caption": "a"}]', "item 0 has no 'image'"),
        ("x.csv", "image,caption\nb.png,a\nb.png,\n", r"x\.csv, line 3, column 'caption' is empty"),
        ("x.csv", "image,caption\nz.png,a\n", r"x\.csv, line 2: there is no picture 'z\.png'"),
        ("x.csv", "image,caption\nb.png\n", r"x\.csv, line 2: 1 columns, expected 2"),
        ("x.csv", "image,label\nb.png,1\n", "the columns are 'image', 'label'; expected"),
        ("x.csv", "image,caption,image_id\nb.png,a,1\nc.png,b,1\n", "line 3: the id '1' belongs to 'b.png' in"),
        ("x.jsonl", '{"image": "b.png", "caption": null}', r"line 1, column 'caption': expected text, not null"),
        ("x.jsonl", '{"image": "b.png", "caption": "a"}\n{"image": "b.png"}', "line 2: there is no 'caption'"),
        ("x.txt", "b.png a dog\n", r"x\.txt, line 1: expected FILE<TAB or comma>caption"),
        ("x.txt", "b.png,a\nb.png\t\n", r"x\.txt, line 2, the caption is empty"),
        ("x.txt", b"b.png,a\nb.png,caf\xe9\n", r"x\.txt, line 2: byte 9 is not UTF-8"),
    ],
)  # fmt: skip
def test_a_wrong_file_is_refused_where_it_is_wrong(tmp_path, name, content, message):
    draw(tmp_path, "b.png", "c.png")
    (tmp_path / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(DataError, match=message):
        read(tmp_path, train=name)


def test_ids_of_coco_belong_to_one_picture(tmp_path):
    draw(tmp_path / "images", *NAMES)
    for change, message in (
        (lambda coco: coco["images"].append({"id": 7, "file_name": "x.png"}), "image 3: the id 7 occurs twice"),
        (lambda coco: coco["annotations"][2].update(image_id=99), "annotation 2: no picture has the id 99"),
        (lambda coco: coco["annotations"][1].pop("caption"), "annotation 1 has no 'caption'"),
        (lambda coco: coco["images"][1].pop("id"), "image 1, 'id': expected an id, a number or a text, not null"),
    ):
        coco = json.loads(FILES["coco.json"])
        change(coco)
        (tmp_path / "x.json").write_text(json.dumps(coco))
        with pytest.raises(DataError, match=message):
            read(tmp_path, train="x.json")


def test_pictures_without_captions_are_for_tests_only(tmp_path):
    draw(tmp_path, *NAMES)
    (tmp_path / "captions_train.json").write_text(json.dumps(COCO | {"annotations": COCO["annotations"][:1]}))
    (tmp_path / "captions_test.json").write_text(json.dumps({"images": COCO["images"]}))
    assert levels(read(tmp_path)) == [0] and levels(read(tmp_path, "test")) == [0, 1, 2]
    assert {row["captions"] for row in read(tmp_path, "test").entries} == {()}
    with pytest.raises(DataError, match="has no captions for the train split"):
        read(tmp_path, train="captions_test.json")


def test_absent_files_are_named(tmp_path):
    with pytest.raises(ConfigError, match=r"no pictures with captions for config\.data\.train"):
        read(tmp_path)
    with pytest.raises(ConfigError, match=r"no file or folder 'x\.json' \(config\.data\.train\)"):
        read(tmp_path, train="x.json")
    (tmp_path / "captions.txt").write_text("b.png,a\n")
    with pytest.raises(ConfigError, match=r"config\.data\.pictures='far': there is no such folder or archive"):
        read(tmp_path, pictures="far")


def test_damaged_archives_and_pictures_are_named(tmp_path):
    draw(tmp_path / "x", "b.png")
    (tmp_path / "x" / "c.png").write_bytes(b"<html>")
    (tmp_path / "captions.txt").write_text("b.png,a\nc.png,b\n")
    pack(tmp_path / "x.tar", tmp_path / "x")
    for pictures in ("x", "x.tar"):
        rows = read(tmp_path, pictures=pictures)
        assert rows[1]["captions"] == ("b",)
        with pytest.raises(DataError, match=r"example 1 of .*captions\.txt: cannot decode .*c\.png"):
            rows[1]["image"]
        reports = []
        replaced = pipeline.Tolerant(rows, 1, reports.append)[1]
        assert replaced["captions"] == ("a",) and "c.png" in reports[0]
    for content in (b"", b"no archive", (tmp_path / "x.tar").read_bytes()[:1400]):
        (tmp_path / "y.tar").write_bytes(content)
        with pytest.raises(DataError, match=r"y\.tar (is truncated or corrupt|holds no files)"):
            read(tmp_path, pictures="y.tar")
    (tmp_path / "y.tar.gz").write_bytes(b"\x1f\x8b\x08no")
    with pytest.raises(DataError, match=r"y\.tar\.gz is truncated or corrupt"):
        read(tmp_path, pictures="y.tar.gz")


def test_pictures_are_resized_and_batched(tmp_path):
    draw(tmp_path, *NAMES, size=(9, 5))
    (tmp_path / "captions.csv").write_text(FILES["x.csv"])
    config = settings(tmp_path, resize=(3, 4, 0, 4, 4), valid_fraction=0.0)
    rows = captioned.read("train", config).add(tokens=np.arange(6).reshape(3, 2))
    assert rows.size == Resize(3, 4, 0, 4, 4)
    batch = picture_rows.collate([pipeline.read(rows, i) for i in (2, 0)])
    assert {name: value.shape for name, value in batch.items()} == {"image": (2, 4, 4, 3), "tokens": (2, 2)}
    assert batch["tokens"].tolist() == [[4, 5], [0, 1]] and batch["image"][:, 0, 0, 0].tolist() == [2, 0]
    assert levels(rows.take(np.array([2, 1]))) == [2, 1] == levels(rows[1:])[::-1]
    draw(tmp_path, NAMES[0], size=(2, 2))
    with pytest.raises(DataError, match=r"do not fit into one batch: set config\.data\.size"):
        picture_rows.collate([dict(row) for row in read(tmp_path)])


def test_captions_are_read_without_decoding(tmp_path, monkeypatch):
    draw(tmp_path, *NAMES)
    (tmp_path / "captions.csv").write_text(FILES["x.csv"])
    rows = read(tmp_path)
    monkeypatch.setattr(picture_rows, "fit", None)  # decoding ends here
    assert [pipeline.read(rows, i, whole=False)["captions"] for i in range(3)] == CAPTIONS


def test_small_pictures_are_decoded_once(tmp_path, monkeypatch):
    draw(tmp_path, *NAMES)
    (tmp_path / "captions.csv").write_text(FILES["x.csv"])
    rows = read(tmp_path)
    first = [row["image"] for row in rows]
    for name in NAMES:
        (tmp_path / name).unlink()
    assert [row["image"].tolist() for row in rows.take(np.arange(3))] == [image.tolist() for image in first]
    assert len(pickle.dumps(rows)) < 2000 and not first[0].flags.writeable
    monkeypatch.setattr(picture_rows, "KEPT", 71)  # bytes of one picture and less
    with pytest.raises(DataError, match=r"cannot decode .*b\.png"):
        pickle.loads(pickle.dumps(rows))[0]["image"]
