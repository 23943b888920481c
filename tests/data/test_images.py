"""Claims about the sources of labeled images."""

import functools
import gzip
import hashlib
import http.server
import io
import json
import pathlib
import pickle
import shutil
import socket
import struct
import subprocess
import sys
import tarfile
import threading

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from jtasks.data import cifar10, class_names, examples, for_display, images, mnist
from jtasks.data.images import split_rows
from jtasks.errors import ConfigError, DataError

# --- names and splits


def test_importing_the_package_brings_nothing_heavy():
    code = "import sys, jtasks.data; print([m for m in ('jax', 'sklearn', 'PIL', 'pooch') if m in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout == "[]\n"


@pytest.mark.parametrize(
    ("name", "near"),
    [("cifr10", "cifar10"), ("foldr:x", "folder:PATH"), ("folder:", "folder:PATH"), ("mnist:3", "mnist")],
)
def test_an_unknown_name_is_answered_with_the_nearest(name, near):
    for call in (lambda: images(name, "train"), lambda: class_names(name)):
        with pytest.raises(ConfigError, match=f"unknown data set '{name}'.*did you mean '{near}'"):
            call()


def test_wrong_arguments_are_config_errors():
    with pytest.raises(ConfigError, match=r"unknown split 'validation'.*did you mean 'valid'"):
        images("digits", "validation")
    with pytest.raises(ConfigError, match=r"unknown split 'xyzzy'; expected one of train, valid, test$"):
        images("digits", "xyzzy")
    for arguments in ({"valid": 1.0}, {"valid": -0.1}, {"valid": float("nan")}, {"seed": -1}, {"size": 0}):
        with pytest.raises(ConfigError, match="expected"):
            images("digits", "train", **arguments)


@given(
    count=st.integers(1, 3000),
    seed=st.integers(0, 2**64),
    valid=st.floats(0, 1, exclude_max=True),
)
def test_train_and_valid_are_disjoint_complete_and_decided_by_the_seed(count, seed, valid):
    held, kept = (split_rows(count, split, seed, valid) for split in ("valid", "train"))
    np.testing.assert_array_equal(np.sort(np.concatenate([held, kept])), np.arange(count))
    assert len(kept) > 0
    assert abs(len(held) - count * valid) <= 1
    for rows, split in ((held, "valid"), (kept, "train")):
        assert (np.diff(rows) > 0).all()
        np.testing.assert_array_equal(rows, split_rows(count, split, seed, valid))


def test_the_parting_depends_on_the_seed_and_never_changes():
    assert not np.array_equal(split_rows(1000, "valid", 0, 0.1), split_rows(1000, "valid", 1, 0.1))
    assert split_rows(20, "valid", 0, 0.25).tolist() == [0, 3, 8, 9, 19]


# --- digits


def test_digits_have_their_values_and_a_test_split_that_no_seed_moves():
    train, valid, test = (images("digits", split) for split in ("train", "valid", "test"))
    assert [len(data["label"]) for data in (train, valid, test)] == [1293, 144, 360]
    assert train["image"].shape == (1293, 8, 8, 1)
    assert (train["image"].dtype, train["label"].dtype) == (np.uint8, np.int32)
    assert (train["image"].min(), train["image"].max()) == (0, 16)
    assert test["label"][:10].tolist() == [4, 6, 2, 3, 3, 0, 9, 1, 0, 7]
    assert min(np.bincount(test["label"], minlength=10)) >= 25
    np.testing.assert_array_equal(images("digits", "test", seed=7)["image"], test["image"])
    assert not np.array_equal(images("digits", "valid", seed=7)["image"], valid["image"])
    assert class_names("digits") == tuple("0123456789")


def test_no_valid_share_means_no_valid_split():
    assert images("digits", "valid", valid=0) is None
    assert len(images("digits", "train", valid=0)["label"]) == 1437


def test_arrays_are_resized_when_asked():
    assert images("digits", "test", size=4)["image"].shape == (360, 4, 4, 1)


# --- MNIST


def idx(array: np.ndarray) -> bytes:
    return struct.pack(f">4B{array.ndim}I", 0, 0, 8, array.ndim, *array.shape) + array.tobytes()


def mnist_files(count: int = 20) -> dict[str, np.ndarray]:
    random = np.random.default_rng(0)
    return {
        f"{stem}-{kind}-idx{len(shape) + 1}-ubyte": random.integers(0, 10, (count, *shape), np.uint8)
        for stem in ("train", "t10k")
        for kind, shape in (("images", (28, 28)), ("labels", ()))
    }


@pytest.fixture
def mnist_folder(tmp_path):
    for name, array in mnist_files().items():
        (tmp_path / name).write_bytes(idx(array))
    return tmp_path


@pytest.mark.parametrize("place", [".", "mnist", "MNIST/raw"])
@pytest.mark.parametrize("spelling", ["-idx", ".idx"])
@pytest.mark.parametrize("compressed", [False, True])
def test_mnist_is_read_in_every_usual_form(tmp_path, place, spelling, compressed):
    (tmp_path / place).mkdir(parents=True, exist_ok=True)
    for name, array in mnist_files().items():
        data, name = idx(array), name.replace("-idx", spelling)
        (tmp_path / place / (name + ".gz" * compressed)).write_bytes(gzip.compress(data) if compressed else data)
    train = images("mnist", "train", folder=str(tmp_path), valid=0)
    np.testing.assert_array_equal(train["image"], mnist_files()["train-images-idx3-ubyte"][..., None])
    np.testing.assert_array_equal(train["label"], mnist_files()["train-labels-idx1-ubyte"])
    assert train["label"].dtype == np.int32
    test = images("mnist", "test", folder=str(tmp_path))
    np.testing.assert_array_equal(test["image"], mnist_files()["t10k-images-idx3-ubyte"][..., None])


def test_mnist_is_found_by_the_variable_and_parted(mnist_folder, monkeypatch):
    monkeypatch.setenv("JTASKS_DATA", str(mnist_folder))
    whole, train, valid = (
        images("mnist", split, valid=share) for split, share in [("train", 0), ("train", 0.1), ("valid", 0.1)]
    )
    assert [len(data["label"]) for data in (whole, train, valid)] == [20, 18, 2]
    rows = {image.tobytes() for image in whole["image"]}
    assert {image.tobytes() for image in (*train["image"], *valid["image"])} == rows
    assert class_names("mnist") == tuple("0123456789")


def test_an_uncompressed_file_under_a_compressed_name_is_read(mnist_folder):
    path = mnist_folder / "t10k-labels-idx1-ubyte"
    path.rename(path.with_name(path.name + ".gz"))
    assert len(images("mnist", "test", folder=str(mnist_folder))["label"]) == 20


IMAGES, LABELS = "t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte"


@pytest.mark.parametrize(
    ("name", "damage", "expected"),
    [
        (IMAGES, lambda data: data[:-1], "15695 bytes.*15696"),
        (IMAGES, lambda data: data + b"x", "15697 bytes.*15696"),
        (IMAGES, lambda data: data[:10], "truncated.*header of 16"),
        (IMAGES, lambda data: b"", "starts with ; expected 00000803"),
        (IMAGES, lambda data: b"<html>", "starts with 3c68746d; expected 00000803"),
        (LABELS, lambda data: b"\0\0\x08\x03" + data[4:], "expected 00000801"),
        (LABELS, lambda data: data[:-2] + b"\x0a\x01", "label 18 is 10; expected 0 to 9"),
        (LABELS, lambda data: idx(np.zeros(19, np.uint8)), "20 images but .* 19 labels"),
        (IMAGES, lambda data: idx(np.zeros((20, 27, 28), np.uint8)), "27 x 28; expected 28 x 28"),
        (IMAGES, lambda data: gzip.compress(data)[:-20], "truncated or corrupt"),
        (IMAGES, lambda data: gzip.compress(data)[:500] + b"\0" * 600, "truncated or corrupt"),
        (IMAGES, lambda data: b"\x1f\x8b", "truncated or corrupt"),
    ],
)
def test_damaged_mnist_is_named_with_what_was_expected(mnist_folder, name, damage, expected):
    path = mnist_folder / name
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(DataError, match=expected) as caught:
        images("mnist", "test", folder=str(mnist_folder))
    assert str(path) in str(caught.value)


@pytest.fixture
def refused(monkeypatch):
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        yield f"http://127.0.0.1:{bound.getsockname()[1]}/"


@pytest.mark.parametrize(
    ("source", "names"),
    [
        (mnist, ["train-images-idx3-ubyte.gz", "train-images.idx3-ubyte", "MNIST/raw"]),
        (cifar10, [*cifar10.NAMES, "/cifar10"]),
    ],
)
def test_absent_and_offline_names_files_folders_and_ways_out(tmp_path, refused, source, names):
    with pytest.raises(DataError) as caught:
        source.read(tmp_path, "train", mirrors=[refused])
    for part in [*names, str(tmp_path), refused, "config.data.dir", "$JTASKS_DATA"]:
        assert part in str(caught.value)


class Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *args):
        pass


@pytest.fixture
def mnist_server(tmp_path_factory, monkeypatch):
    """Serves the fakes, compressed, as if they were the official files."""
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    folder = tmp_path_factory.mktemp("served")
    for name, array in mnist_files().items():
        data = gzip.compress(idx(array))
        (folder / f"{name}.gz").write_bytes(data)
        monkeypatch.setitem(mnist.HASHES, name, "md5:" + hashlib.md5(data).hexdigest())
    handler = functools.partial(Quiet, directory=folder)
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}/"
        finally:
            server.shutdown()
            thread.join()


def test_absent_mnist_is_downloaded_once(tmp_path, mnist_server, refused):
    first = mnist.read(tmp_path, "test", [mnist_server])
    second = mnist.read(tmp_path, "test", [refused])
    np.testing.assert_array_equal(first["image"], second["image"])
    np.testing.assert_array_equal(first["label"], mnist_files()[LABELS])
    assert sorted(path.name for path in (tmp_path / "mnist").iterdir()) == [f"{IMAGES}.gz", f"{LABELS}.gz"]


def test_the_real_mnist(shared):
    train, valid, test = (images("mnist", split, folder=str(shared / "data")) for split in ("train", "valid", "test"))
    assert train["image"].shape == (54_000, 28, 28, 1)
    assert valid["image"].shape == (6_000, 28, 28, 1)
    counts = np.bincount(train["label"]) + np.bincount(valid["label"])
    assert counts.tolist() == [5923, 6742, 5958, 6131, 5842, 5421, 5918, 6265, 5851, 5949]
    assert np.bincount(test["label"]).tolist() == [980, 1135, 1032, 1010, 982, 892, 958, 1028, 974, 1009]
    whole = images("mnist", "train", folder=str(shared / "data" / "mnist"), valid=0)
    assert whole["label"][:5].tolist() == [5, 0, 4, 1, 9]
    assert test["label"][:3].tolist() == [7, 2, 1]
    assert round(float(whole["image"].mean()) / 255, 4) == 0.1307


# --- CIFAR-10: official files hold 10,000 records, so one set of fakes serves all tests


def cifar_batch(number: int) -> tuple[np.ndarray, np.ndarray]:
    """Pixels [10000, 3072] that tell batch, record, channel, row and column apart, and labels."""
    rows = np.arange(10_000)
    pixels = np.zeros((10_000, 3, 32, 32), np.uint8)
    pixels[:, 0, 0, 0], pixels[:, 0, 1, 2], pixels[:, 1, 0, 0], pixels[:, 2, 31, 30] = rows % 251, 12, number, 7
    return pixels.reshape(10_000, 3072), ((rows + number) % 10).astype(np.uint8)


def binary_records(pixels: np.ndarray, labels: np.ndarray) -> bytes:
    return np.concatenate([labels[:, None], pixels], axis=1).tobytes()


@pytest.fixture(scope="session")
def cifar_binary(tmp_path_factory):
    folder = tmp_path_factory.mktemp("cifar") / "cifar-10-batches-bin"
    folder.mkdir()
    for number in range(1, 7):
        name = f"data_batch_{number}.bin" if number < 6 else "test_batch.bin"
        (folder / name).write_bytes(binary_records(*cifar_batch(number)))
    yield folder
    shutil.rmtree(folder.parent)


@pytest.fixture
def cifar_test_file(tmp_path):
    """The place of one binary test batch that a test may damage."""
    path = tmp_path / "cifar-10-batches-bin" / "test_batch.bin"
    path.parent.mkdir()
    yield path
    shutil.rmtree(path.parent)


def assert_cifar(data, numbers):
    planes = np.concatenate([cifar_batch(number)[0] for number in numbers]).reshape(-1, 3, 32, 32)
    assert (data["image"].dtype, data["label"].dtype) == (np.uint8, np.int32)
    assert data["image"].shape == (10_000 * len(numbers), 32, 32, 3)
    assert (data["image"][0, 1, 2, 0], data["image"][0, 31, 30, 2]) == (12, 7)
    assert np.array_equal(data["image"].transpose(0, 3, 1, 2), planes)
    np.testing.assert_array_equal(data["label"], np.concatenate([cifar_batch(number)[1] for number in numbers]))


def test_extracted_binary_cifar_keeps_the_official_order(cifar_binary):
    folder = str(cifar_binary.parent)
    assert_cifar(images("cifar10", "train", folder=folder, valid=0), range(1, 6))
    assert_cifar(images("cifar10", "test", folder=folder), [6])
    assert len(images("cifar10", "valid", folder=folder)["label"]) == 5_000
    assert class_names("cifar10")[:3] == ("airplane", "automobile", "bird")


@pytest.mark.parametrize("name", ["cifar-10-batches-py", "cifar10/cifar-10-python.tar.gz"])
def test_the_pickled_form_is_refused_and_the_other_named(tmp_path, name, cifar_binary):
    (tmp_path / name).mkdir(parents=True)
    with pytest.raises(DataError, match=rf"{name} is .* pickled form.* get cifar-10-binary\.tar\.gz from https"):
        images("cifar10", "test", folder=str(tmp_path))
    (tmp_path / "cifar-10-batches-bin").symlink_to(cifar_binary)
    assert_cifar(images("cifar10", "test", folder=str(tmp_path)), [6])


def test_archived_cifar_gives_the_same_and_is_not_unpacked(tmp_path):
    archive, data = "cifar-10-binary.tar.gz", binary_records(*cifar_batch(6))
    info = tarfile.TarInfo("cifar-10-batches-bin/test_batch.bin")
    info.size = len(data)
    with tarfile.open(tmp_path / archive, "w:gz", compresslevel=1) as tar:
        tar.addfile(info, io.BytesIO(data))
    assert_cifar(images("cifar10", "test", folder=str(tmp_path)), [6])
    with pytest.raises(DataError, match=f"{archive} lacks .*data_batch_1.*data_batch_5"):
        images("cifar10", "train", folder=str(tmp_path))
    assert [path.name for path in tmp_path.iterdir()] == [archive]


def test_a_binary_file_of_another_length_is_truncated(cifar_test_file):
    for length in (0, 3073 * 9_999, 3073 * 10_000 - 1):
        cifar_test_file.write_bytes(bytes(length))
        with pytest.raises(DataError, match=rf"test_batch\.bin holds {length} bytes; expected 30730000"):
            images("cifar10", "test", folder=str(cifar_test_file.parents[1]))


def test_a_label_above_nine_is_named_with_its_record(cifar_test_file):
    records = np.zeros((10_000, 3073), np.uint8)
    records[123, 0] = 10
    cifar_test_file.write_bytes(records.tobytes())
    with pytest.raises(DataError, match=r"test_batch\.bin: the label of record 123 is 10; expected 0 to 9"):
        images("cifar10", "test", folder=str(cifar_test_file.parents[1]))


def test_a_batch_that_is_absent_is_named(cifar_test_file):
    with pytest.raises(DataError, match=r"cannot read .*test_batch\.bin"):
        images("cifar10", "test", folder=str(cifar_test_file.parents[1]))


@pytest.mark.slow
def test_the_real_cifar_is_the_same_in_binary_and_in_pictures(shared, tmp_path):
    subprocess.run([sys.executable, shared / "data" / "build_cifar10.py", tmp_path], check=True, capture_output=True)
    assert class_names(f"folder:{tmp_path}/images") == class_names("cifar10")
    for split, count in (("train", 50_000), ("test", 10_000)):
        binary = images("cifar10", split, folder=str(tmp_path), valid=0)
        folder = images("folder:images", split, folder=str(tmp_path), valid=0)
        assert len(binary["label"]) == len(folder) == count
        for label in range(10):
            rows = np.flatnonzero(binary["label"] == label)
            for rank in (0, 1, 2):
                example = folder[label * count // 10 + rank]
                assert example["label"] == label
                np.testing.assert_array_equal(example["image"], binary["image"][rows[rank]])
    shutil.rmtree(tmp_path)


# --- folders of pictures


def picture(path: pathlib.Path, color: object, size: tuple[int, int] = (6, 4), mode: str = "RGB") -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new(mode, size, color).save(path)


@pytest.fixture
def pets(tmp_path):
    """Ten cats of red 0 to 9 and ten dogs of red 10 to 19, with the notes that other programs leave."""
    for i in range(10):
        picture(tmp_path / "pets" / "cat" / f"{i}.png", (i, 0, 0))
        picture(tmp_path / "pets" / "dog" / f"{i}.PNG", (10 + i, 0, 0))
    (tmp_path / "pets" / "cat" / "._0.png").write_bytes(b"not a picture")
    (tmp_path / "pets" / "cat" / "notes.txt").touch()
    (tmp_path / "pets" / ".cache").mkdir()
    (tmp_path / "pets" / "empty").mkdir()
    return tmp_path / "pets"


def reds(examples) -> list[int]:
    return [int(example["image"][0, 0, 0]) for example in examples]


def test_a_folder_without_splits_is_train_in_sorted_order(pets):
    data = images(f"folder:{pets}", "train", valid=0)
    assert reds(data) == list(range(20))
    assert [int(example["label"]) for example in data] == [0] * 10 + [1] * 10
    assert (data[0]["image"].shape, data[0]["image"].dtype, data[0]["label"].dtype) == ((4, 6, 3), np.uint8, np.int32)
    assert class_names(f"folder:{pets}") == ("cat", "dog")
    assert images(f"folder:{pets}", "test") is None
    assert images(f"folder:{pets}", "valid", valid=0) is None


def test_pictures_without_a_train_split_say_what_they_need(tmp_path):
    (tmp_path / "test" / "a").mkdir(parents=True)
    Image.new("L", (4, 4)).save(tmp_path / "test" / "a" / "x.png")
    assert len(images(f"folder:{tmp_path}", "test")) == 1
    with pytest.raises(DataError, match=r"has no train split, .* has train/CLASS/ beside test/CLASS/"):
        images(f"folder:{tmp_path}", "train")


def test_a_folder_without_splits_gives_up_a_valid_split(pets):
    train, valid = (images(f"folder:{pets}", split, seed=3) for split in ("train", "valid"))
    assert (len(train), len(valid)) == (18, 2)
    assert sorted(reds(train) + reds(valid)) == list(range(20))


def test_a_relative_folder_is_looked_for_here_and_then_in_the_folder_of_data(pets, monkeypatch, tmp_path):
    assert len(images("folder:pets", "train", folder=str(tmp_path), valid=0)) == 20
    monkeypatch.chdir(tmp_path)
    assert len(images("folder:pets", "train", folder="/nowhere", valid=0)) == 20
    with pytest.raises(ConfigError, match=r"no folder of pictures at .*/cats or /nowhere/cats; expected"):
        images("folder:cats", "train", folder="/nowhere")


@pytest.mark.parametrize("name", ["valid", "val", "validation"])
def test_folders_of_splits_are_kept_and_share_their_classes(tmp_path, name):
    for split, animals in (("train", ("cat", "dog")), (name, ("dog",)), ("test", ("dog", "eel"))):
        for animal in animals:
            picture(tmp_path / split / animal / "0.jpg", 100)
    assert class_names(f"folder:{tmp_path}") == ("cat", "dog", "eel")
    labels = {
        split: [int(example["label"]) for example in images(f"folder:{tmp_path}", split)]
        for split in ("train", "valid", "test")
    }
    assert labels == {"train": [0, 1], "valid": [1], "test": [1, 2]}


def test_a_class_may_be_called_test(tmp_path):
    picture(tmp_path / "control" / "0.png", 0)
    picture(tmp_path / "test" / "0.png", 1)
    assert class_names(f"folder:{tmp_path}") == ("control", "test")


def test_every_picture_is_rgb_and_cropped_around_its_centre(tmp_path):
    picture(tmp_path / "a" / "gray.png", 9, mode="L")
    picture(tmp_path / "a" / "alpha.png", (1, 2, 3, 0), mode="RGBA")
    wide = Image.new("RGB", (30, 10), "red")
    wide.paste("blue", (10, 0, 20, 10))
    wide.save(tmp_path / "a" / "wide.png")
    data = images(f"folder:{tmp_path}", "train", valid=0, size=5)
    assert [example["image"].shape for example in data] == [(5, 5, 3)] * 3
    assert data[0]["image"][0, 0].tolist() == [255, 255, 255]  # transparent, on white
    assert data[1]["image"][0, 0].tolist() == [9, 9, 9]
    assert data[2]["image"][2, 2].tolist() == [0, 0, 255]


def test_examples_can_be_pickled_sliced_and_indexed_from_the_end(pets):
    data = images(f"folder:{pets}", "train", valid=0)
    assert reds(pickle.loads(pickle.dumps(data))[5:15:3]) == [5, 8, 11, 14]
    assert int(data[np.int64(-1)]["image"][0, 0, 0]) == 19
    with pytest.raises(IndexError):
        data[20]
    assert len(repr(data)) < 200


@pytest.mark.parametrize("damage", [lambda data: data[: len(data) // 2], lambda data: b"", lambda data: b"GIF89a"])
def test_a_corrupt_picture_is_named_with_its_index(pets, damage):
    path = pets / "cat" / "7.png"
    Image.effect_noise((64, 64), 50).save(path)
    path.write_bytes(damage(path.read_bytes()))
    data = images(f"folder:{pets}", "train", valid=0)
    with pytest.raises(DataError, match=r"example 7 of folder:.*cat/7\.png"):
        data[7]
    assert data[8]["label"] == 0


def test_a_folder_without_pictures_says_what_was_expected(tmp_path):
    picture(tmp_path / "flat.png", 0)
    with pytest.raises(DataError, match=r"no pictures for train in .*expected FOLDER/CLASS/picture\.jpg"):
        images(f"folder:{tmp_path}", "train")
    (tmp_path / "test" / "cat").mkdir(parents=True)
    picture(tmp_path / "train" / "cat" / "0.png", 0)
    with pytest.raises(DataError, match="no pictures for test"):
        images(f"folder:{tmp_path}", "train")


# --- TensorFlow Datasets


def as_png(value: int) -> io.BytesIO:
    file = io.BytesIO()
    Image.new("RGB", (5, 4), (value, 0, 0)).save(file, "png")
    file.seek(0)
    return file


@pytest.fixture(scope="session")
def tfds_folder(tmp_path_factory):
    """Two small data sets, prepared as ArrayRecord without TensorFlow: PNG bytes need no encoding."""
    tfds = pytest.importorskip("tensorflow_datasets")

    class TinyPets(tfds.core.GeneratorBasedBuilder):
        VERSION = tfds.core.Version("1.0.0")
        SPLITS = {"train": range(20), "test": range(20, 25)}  # noqa: RUF012

        def _info(self):
            features = {"image": tfds.features.Image(), "label": tfds.features.ClassLabel(names=["cat", "dog"])}
            return tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict(features))

        def _split_generators(self, dl_manager):
            return {split: self._generate_examples(numbers) for split, numbers in self.SPLITS.items()}

        def _generate_examples(self, numbers):
            for i in numbers:
                yield i, {"image": as_png(i), "label": i % 2}

    class TinyFlowers(TinyPets):
        SPLITS = {"train": range(20), "validation": range(30, 33)}  # noqa: RUF012

    folder = tmp_path_factory.mktemp("tfds")
    for builder in (TinyPets, TinyFlowers):
        builder(data_dir=folder, file_format="array_record").download_and_prepare()
    return folder


@pytest.mark.parametrize("key", ["pythonClassName", "python_class_name", "type"])
@pytest.mark.parametrize("depth", ["top", "nested", "text"])
def test_tfds_metadata_names_no_other_classes(tfds_folder, tmp_path, monkeypatch, key, depth):
    shutil.copytree(tfds_folder / "tiny_pets", tmp_path / "tiny_pets")
    (path,) = (tmp_path / "tiny_pets").rglob("features.json")
    content = json.loads(path.read_text())
    poison = {key: "poison.Feature"}
    content |= {"top": poison, "nested": {"x": [poison]}, "text": {"content": json.dumps({"a": poison})}}[depth]
    path.write_text(json.dumps(content))
    (tmp_path / "poison.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(DataError, match=r"features\.json names the class 'poison\.Feature', whose module would run"):
        images("tfds:tiny_pets", "train", folder=str(tmp_path))
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("name", ["tfds:tiny_pets", "tfds:tiny_pets:1.0.0"])
def test_prepared_tfds_data_is_read_without_tensorflow(tfds_folder, name):
    train, valid, test = (images(name, split, folder=str(tfds_folder)) for split in ("train", "valid", "test"))
    assert [len(data) for data in (train, valid, test)] == [18, 2, 5]
    assert sorted(reds(train) + reds(valid)) == list(range(20))
    for example in pickle.loads(pickle.dumps(test)):
        assert (example["image"].shape, example["image"].dtype) == ((4, 5, 3), np.uint8)
        assert example["label"].dtype == np.int32
        assert example["label"] == example["image"][0, 0, 0] % 2
    assert images(name, "test", folder=str(tfds_folder), size=2)[0]["image"].shape == (2, 2, 3)
    assert class_names(name, folder=str(tfds_folder)) == ("cat", "dog")
    assert "tensorflow" not in sys.modules


def test_the_validation_split_of_tfds_is_valid_and_train_stays_whole(tfds_folder):
    arguments = {"name": "tfds:tiny_flowers", "folder": str(tfds_folder)}
    assert sorted(reds(images(split="valid", valid=0, **arguments))) == [30, 31, 32]
    assert sorted(reds(images(split="train", **arguments))) == list(range(20))
    assert images(split="test", **arguments) is None


def test_tfds_has_a_default_folder_which_is_searched_last(tfds_folder, tmp_path, monkeypatch):
    monkeypatch.setenv("JTASKS_DATA", str(tmp_path))
    monkeypatch.setattr("tensorflow_datasets.core.constants.DATA_DIR", str(tfds_folder))
    assert len(images("tfds:tiny_pets", "test")) == 5
    with pytest.raises(DataError, match="is not prepared in"):
        images("tfds:tiny_pets", "test", folder=str(tmp_path))


@pytest.mark.parametrize("name", ["mnist", "tiny_pets:2.0.0", "no_such_thing"])
def test_unprepared_tfds_data_says_how_to_prepare_it(tfds_folder, name):
    with pytest.raises(DataError) as caught:
        images(f"tfds:{name}", "train", folder=str(tfds_folder))
    command = f"tfds build {name} --file_format=array_record --data_dir={tfds_folder}"
    for part in (command, "pip install tensorflow tensorflow-datasets", f"not prepared in {tfds_folder}"):
        assert part in str(caught.value)


def test_tfds_data_without_random_access_says_so(tfds_folder, tmp_path):
    shutil.copytree(tfds_folder / "tiny_pets", tmp_path / "tiny_pets")
    path = tmp_path / "tiny_pets" / "1.0.0" / "dataset_info.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"fileFormat": "tfrecord"}))
    for record in path.parent.glob("*array_record*"):
        record.rename(str(record).replace("array_record", "tfrecord"))
    with pytest.raises(
        DataError, match=r"prepared as tfrecord, which has no random access.*--file_format=array_record"
    ):
        images("tfds:tiny_pets", "train", folder=str(tmp_path))


def test_tfds_data_that_is_not_of_images_is_refused(tfds_folder, tmp_path):
    shutil.copytree(tfds_folder / "tiny_pets", tmp_path / "tiny_pets")
    path = tmp_path / "tiny_pets" / "1.0.0" / "features.json"
    path.write_text(path.read_text().replace('"label"', '"species"'))
    with pytest.raises(DataError, match=r"has the features \['image', 'species'\]; expected image and label"):
        images("tfds:tiny_pets", "train", folder=str(tmp_path))


def test_without_tfds_the_error_says_what_is_missing(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "tensorflow_datasets", None)
    with pytest.raises(DataError, match="tfds:mnist needs tensorflow-datasets, which cannot be imported"):
        images("tfds:mnist", "train", folder=str(tmp_path))


def processed(image, resize):
    """What transformers' Pillow processors make of a picture: their resize, then their center_crop."""
    if resize.height:
        h, w = image.shape[:2]
        short, long = min(h, w), max(h, w)
        new = (resize.height, int(resize.height * long / short))
        size = (resize.height, resize.width) if resize.width else new[::-1] if w <= h else new
        image = np.array(Image.fromarray(image).resize(size[::-1], resample=resize.filter))
    if not resize.crop_height:
        return image
    (h, w), (ch, cw) = image.shape[:2], resize[3:]
    padded = np.zeros((max(h, ch), max(w, cw), 3), np.uint8)
    top, left = -(-(len(padded) - h) // 2), -(-(padded.shape[1] - w) // 2)
    padded[top : top + h, left : left + w] = image
    top, left = top + (h - ch) // 2, left + (w - cw) // 2
    return padded[max(0, top) : min(len(padded), top + ch), max(0, left) : min(padded.shape[1], left + cw)]


@settings(deadline=None, max_examples=150)
@given(
    shape=st.tuples(st.integers(1, 24), st.integers(1, 24)),
    edges=st.tuples(st.integers(1, 20), st.integers(0, 20)) | st.just((0, 0)),
    crop=st.tuples(st.integers(1, 20), st.integers(1, 20)) | st.just((0, 0)),
    kind=st.integers(0, 5),
)
def test_pictures_are_resized_and_cropped_as_transformers_does_with_pillow(shape, edges, crop, kind):
    image = np.random.default_rng(0).integers(0, 256, (*shape, 3), dtype=np.uint8)
    resize = examples.Resize(kind, *edges, *crop)
    np.testing.assert_array_equal(examples.fit(image, resize), processed(image, resize))
    assert resize.shape in ((0, 0), examples.fit(image, resize).shape[:2])


def test_images_to_look_at_have_the_levels_0_to_255():
    levels = np.array([0, 8, 16], np.uint8)
    assert [image.tolist() for image in for_display([levels], "digits")] == [[0, 128, 255]]
    assert [image.tolist() for image in for_display([levels], "folder:pets")] == [[0, 8, 16]]
