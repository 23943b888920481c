"""Claims about shards of records: random access to WebDataset, TFRecord and ArrayRecord files, and to their damage."""

import contextlib
import io
import json
import pickle
import struct
import tarfile

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from jtasks.data import arrow, images, records, table_files, tables, tf_example, values
from jtasks.data import crc as checksums
from jtasks.data.images import class_names
from jtasks.errors import ConfigError, DataError


def png(level):
    buffer = io.BytesIO()
    Image.fromarray(np.full((4, 4, 3), level, np.uint8)).save(buffer, "png")
    return buffer.getvalue()


def write_tar(path, members):
    with tarfile.open(path, "w") as tar:
        for name, content in members:
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return path


def varint(number):
    parts = []
    while number > 127:
        parts.append(number & 127 | 128)
        number >>= 7
    return bytes([*parts, number])


def message(number, content):
    return varint(number << 3 | 2) + varint(len(content)) + content


def example(**features):
    """A serialized tf.train.Example, by the definition of its wire format."""
    entries = b""
    for name, value in features.items():
        listed = value if isinstance(value, list) else [value]
        if isinstance(listed[0], int):
            feature = message(3, message(1, b"".join(varint(n % 2**64) for n in listed)))
        elif isinstance(listed[0], float):
            feature = message(2, message(1, struct.pack(f"<{len(listed)}f", *listed)))
        else:
            feature = message(1, b"".join(message(1, x if isinstance(x, bytes) else x.encode()) for x in listed))
        entries += message(1, message(1, name.encode()) + message(2, feature))
    return message(1, entries)


def crc(content):
    """The masked CRC-32C of TFRecord, bit by bit."""
    value = 0xFFFFFFFF
    for byte in content:
        value ^= byte
        for _ in range(8):
            value = value >> 1 ^ 0x82F63B78 * (value & 1)
    value ^= 0xFFFFFFFF
    return struct.pack("<I", ((value >> 15 | value << 17) + 0xA282EAD8) & 0xFFFFFFFF)


def write_tfrecord(path, contents):
    rows = ((struct.pack("<Q", len(content)), content) for content in contents)
    path.write_bytes(b"".join(length + crc(length) + content + crc(content) for length, content in rows))
    return path


def write_array_record(path, contents):
    from array_record.python import array_record_module

    writer = array_record_module.ArrayRecordWriter(str(path), "group_size:1")
    for content in contents:
        writer.write(content)
    writer.close()
    return path


def test_an_example_is_read_as_its_wire_format_says():
    numbers, text = [-(2**63), 0, 2**63 - 1], "für"
    row = tf_example.parse(example(ids=numbers, share=[0.5, -1.0], text=text, raw=[b"\xff\x00", b""]))
    assert row == {"ids": numbers, "share": [0.5, -1.0], "text": [text.encode()], "raw": [b"\xff\x00", b""]}
    unpacked = message(1, message(1, message(1, b"n") + message(2, message(3, b"\x08\x05\x08\x07"))))
    assert tf_example.parse(unpacked) == {"n": [5, 7]} and tf_example.parse(b"") == {}


@settings(max_examples=60, deadline=None)
@given(st.binary(max_size=40), st.integers(0, 60))
def test_other_bytes_are_refused_as_an_example(noise, cut):
    whole = example(text="some words", label=3)
    for content in (noise, whole[:cut]):
        with contextlib.suppress(DataError):  # any other error fails
            assert isinstance(tf_example.parse(content), dict)


@pytest.mark.parametrize("kind", ["tar", "tar.gz", "tfrecord", "array_record"])
def test_labeled_pictures_of_each_kind_of_shard(kind, tmp_path):
    folder = tmp_path / "a b[1]"
    folder.mkdir()
    for split, levels in (("train", range(7)), ("valid", range(7, 10))):
        for shard in range(2):
            name = f"made-{split}-{shard:03}"
            mine = [level for level in levels if level % 2 == shard]
            if kind.startswith("tar"):
                members = [
                    (f"./x/{i:04}.{end}", c) for i in mine for end, c in (("png", png(i)), ("cls", b"%d\n" % (i % 3)))
                ]
                plain = write_tar(folder / f"{name}.tar", members)
                if kind == "tar.gz":
                    import gzip

                    (folder / f"{name}.tar.gz").write_bytes(gzip.compress(plain.read_bytes()))
                    plain.unlink()
            else:
                rows = [example(**{"image/encoded": png(i), "image/class/label": i % 3}) for i in mine]
                write = write_tfrecord if kind == "tfrecord" else write_array_record
                write(folder / f"{name}.{kind}", rows)
    for source in (
        f"shards:{folder}",
        f"shards:{folder}/made-*.{kind}",
        f"shards:{folder}/made-{{train,valid}}-{{000..001}}.{kind}",
    ):
        train = images(source, "train", folder=str(tmp_path))
        assert class_names(source, folder=str(tmp_path)) == ("0", "1", "2")
        assert [int(train[i]["image"].max()) for i in range(len(train))] == [0, 2, 4, 6, 1, 3, 5]
        assert [int(train[i]["label"]) for i in range(len(train))] == [0, 2, 1, 0, 1, 0, 2]
        valid = pickle.loads(pickle.dumps(images(source, "valid", folder=str(tmp_path))))
        assert [int(row["image"].max()) for row in valid] == [8, 7, 9]
        assert images(source, "test", folder=str(tmp_path)) is None


def test_texts_in_shards_are_rows_of_a_table(tmp_path):
    write_tfrecord(
        tmp_path / "a.tfrecord-00000-of-00002", [example(sentence="one", label=1), example(sentence="two", label=0)]
    )
    write_tfrecord(tmp_path / "a.tfrecord-00001-of-00002", [example(sentence="three", label=1)])
    fields = {"sentence": values.content, "label": values.label}
    found = tables.rows(str(tmp_path / "a.tfrecord-*"), "valid", fields, folder=str(tmp_path))
    assert [row["sentence"] for row in found] == ["one", "two", "three"] and [row["label"] for row in found] == [
        "1",
        "0",
        "1",
    ]
    members = [
        ("1.json", b'{"sentence": "one", "label": 1}'),
        ("2.json", json.dumps({"sentence": "zwei", "label": 0}).encode()),
    ]
    write_tar(tmp_path / "b.tar", members)
    assert [row["sentence"] for row in tables.rows("b.tar", "train", fields, folder=str(tmp_path))] == ["one", "zwei"]


def test_records_keep_their_members_together_and_the_index_is_made_once(tmp_path, monkeypatch):
    write_tar(
        tmp_path / "x.tar", [("a/1.seg.png", b"s"), ("a/1.txt", b"eins"), ("a/.hidden", b""), ("b/1.txt", b"zwei")]
    )
    found = records.Records((tmp_path / "x.tar",), tmp_path)
    assert list(found) == [{"seg.png": b"s", "text": "eins"}, {"text": "zwei"}]
    monkeypatch.setattr(records, "_write_index", pytest.fail)
    again = records.Records((tmp_path / "x.tar",), tmp_path, ("text",))
    assert again[1] == {"text": "zwei"} and len(again) == 2


@pytest.mark.parametrize("size", [0, 8, 511, 512, 513, 4099, 70_001])
def test_the_checksum_of_any_length_is_that_of_its_bytes_one_by_one(size):
    content = np.random.default_rng(size).integers(0, 256, size).astype(np.uint8).tobytes()
    assert checksums.masked(content) == int.from_bytes(crc(content), "little")
    assert checksums.crc32c(b"123456789") == 0xE3069283


def test_damage_is_told_with_file_and_record(tmp_path):
    whole = write_tfrecord(tmp_path / "a.tfrecord", [example(text="one"), example(text="two")])
    content = whole.read_bytes()

    def read(name, content, columns=None):
        (tmp_path / name).write_bytes(content)
        return list(records.Records((tmp_path / name,), tmp_path, columns))

    with pytest.raises(DataError, match=r"b\.tfrecord is truncated: record 1 begins at byte \d+ of"):
        read("b.tfrecord", content[:-6])
    with pytest.raises(DataError, match=r"c\.tfrecord, record 0: its length is corrupt"):
        read("c.tfrecord", b"\x01" + content[1:])
    with pytest.raises(DataError, match=r"l\.tfrecord, record 1: its checksum is wrong, so its bytes are damaged"):
        read("l.tfrecord", content[:-5] + bytes([content[-5] ^ 1]) + content[-4:])
    with pytest.raises(DataError, match=r"d\.tfrecord holds no records \(0 bytes\)"):
        read("d.tfrecord", b"")
    other = write_tfrecord(tmp_path / "e.tfrecord", [b"\xff\xff"]).read_bytes()
    with pytest.raises(DataError, match=r"e\.tfrecord, record 0: not a tf\.train\.Example"):
        read("e.tfrecord", other)
    tar = write_tar(tmp_path / "f.tar", [("1.txt", b"one"), ("1.cls", b"1"), ("2.txt", b"two")])
    with pytest.raises(DataError, match=r"f\.tar, record 1 \(2\.txt\): it has no 'label', but text"):
        read("f.tar", tar.read_bytes(), ("text", "label"))
    with pytest.raises(DataError, match=r"g\.tar is truncated or corrupt"):
        read("g.tar", tar.read_bytes()[:700])
    with pytest.raises(DataError, match=r"h\.tar holds no"):
        read("h.tar", write_tar(tmp_path / "h.tar", []).read_bytes())
    with pytest.raises(DataError, match=r"i\.tar, record 0: its \.json"):
        read("i.tar", write_tar(tmp_path / "i.tar", [("1.json", b"{")]).read_bytes())
    for name in ("j.array_record", "k.array_record"):
        with pytest.raises(DataError, match=rf"{name} (is truncated or corrupt|holds no records)"):
            read(name, b"" if name[0] == "k" else b"no records" * 100)
    with pytest.raises(ConfigError, match=r"no file fits '.*none-\*\.tar'"):
        arrow.find(str(tmp_path / "none-*.tar"), "train", "config.data.train", tmp_path)


def test_patterns_find_shards_as_a_shell_does(tmp_path):
    for name in ("t-001.tar", "t-002.tar", "t-010.tar", "test/1.tar"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()

    def names(pattern, split="train", **options):
        found = table_files.locate(pattern, split, "config.data.train", tmp_path, **options)
        return found and [path.name for path in found]

    assert names("t-{001..010}.tar") == ["t-001.tar", "t-002.tar", "t-010.tar"]
    assert names("t-00?.tar") == names("t-{001,002}.tar") == ["t-001.tar", "t-002.tar"]
    assert names("t-*.tar", "valid") is None and names("t-00*.tar", "valid", own=True) == ["t-001.tar", "t-002.tar"]
    assert names("**/*.tar", "test") == ["1.tar"] and names(str(tmp_path), "test") == ["1.tar"]
