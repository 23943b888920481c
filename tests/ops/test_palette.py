"""Claims about jtasks.ops.palette, against numpy."""

import pathlib
import pickle

import jax
import ml_collections
import numpy as np
import pytest
import tiny
from hypothesis import given, settings
from hypothesis import strategies as st

from jtasks.data import palettes
from jtasks.errors import ConfigError, DataError
from jtasks.ops import palette


def pictures(n=6, side=5, channels=3, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (n, side, side, channels)).astype(np.uint8)


def brute(images, palette):
    """Index of the nearest color and its squared distance, in float64."""
    pixels = images.reshape(len(images), -1, images.shape[-1]).astype(np.float64)
    distance = np.square(pixels[:, :, None] - np.asarray(palette, np.float64)).sum(-1)
    return distance.argmin(-1), distance.min(-1)


def distortion(images, palette):
    return brute(images, palette)[1].mean()


def options(folder, **changes):
    fields = {"name": "digits", "dir": str(folder), "size": None, "num_colors": 4, "palette": ""} | changes
    return ml_collections.FrozenConfigDict(fields)


# The nearest color


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 1000), channels=st.sampled_from([1, 3]))
def test_the_nearest_color_equals_brute_force(seed, channels):
    images = pictures(seed=seed, channels=channels)
    palette = np.random.default_rng(seed).uniform(0, 255, (8, channels)).astype(np.float32)
    found = nearest(images, tuple(map(tuple, palette.tolist())))
    expected, distance = brute(images, palette)
    assert found.shape == (6, 25) and found.dtype == np.int32
    at = np.square(images.reshape(6, 25, channels).astype(np.float64) - palette[found]).sum(-1)
    np.testing.assert_allclose(at, distance, rtol=1e-6)  # a near tie may fall either way
    assert (found == expected).mean() > 0.99


nearest = jax.jit(palette.nearest, static_argnums=1)


def test_pictures_of_the_nearest_colors_are_the_images_made_of_them():
    colors = ((0.0, 0.0, 0.0), (255.0, 0.0, 10.0), (3.0, 200.0, 255.0))
    tokens = np.random.default_rng(0).integers(0, 3, (4, 6))
    images = palette.pictures(tokens, colors, (2, 3))
    assert images.shape == (4, 2, 3, 3) and images.dtype == np.uint8
    np.testing.assert_array_equal(nearest(images, colors), tokens)
    np.testing.assert_array_equal(
        palette.pictures(tokens.reshape(2, 2, 6), colors, (2, 3)).reshape(images.shape), images
    )


def test_tokens_are_in_raster_order():
    image = np.arange(6, dtype=np.uint8).reshape(1, 2, 3, 1)
    np.testing.assert_array_equal(nearest(image, tuple((float(i),) for i in range(6))), [[0, 1, 2, 3, 4, 5]])


def test_a_dark_palette_is_stretched_for_the_eye():
    np.testing.assert_array_equal(palette.pictures(np.array([0, 8, 16]), tiny.GRAYS, (1, 3)).ravel(), [0, 128, 255])


# Fitting


def test_a_palette_is_deterministic_float32_and_from_dark_to_light():
    images = pictures(40)
    one, same = palettes.fit(images, 8), palettes.fit(images, 8)
    np.testing.assert_array_equal(one, same)
    assert one.shape == (8, 3) and one.dtype == np.float32
    assert (np.diff(one.sum(1)) >= 0).all()


def test_a_palette_of_a_sample_does_not_depend_on_numpys_generator(monkeypatch):
    images = np.arange(256, dtype=np.uint8).repeat(4).reshape(4, 16, 16, 1)
    monkeypatch.setattr(np.random, "default_rng", None)
    sampled = palettes.fit(images, 4, pixels=500)
    assert sampled.tolist() == palettes.fit(images, 4, pixels=500).tolist() != palettes.fit(images, 4).tolist()


def test_fitted_grays_distort_less_than_evenly_spaced_ones():
    images = tiny.digits(200, "train")["image"]
    even = np.linspace(0, 16, 4)[:, None]
    assert distortion(images, palettes.fit(images, 4)) < 0.9 * distortion(images, even)


def test_fitted_colors_distort_less_than_a_regular_grid():
    random = np.random.default_rng(0)
    images = np.clip(random.normal([60, 120, 200], [20, 40, 30], (20, 8, 8, 3)), 0, 255).astype(np.uint8)
    axis = np.array([64.0, 192.0])
    grid = np.stack(np.meshgrid(axis, axis, axis), -1).reshape(8, 3)
    assert distortion(images, palettes.fit(images, 8)) < 0.5 * distortion(images, grid)


def test_as_many_colors_as_there_are_is_no_distortion():
    images = np.array([0, 40, 90, 200], np.uint8).repeat(4).reshape(1, 4, 4, 1)
    np.testing.assert_allclose(palettes.fit(images, 4).ravel(), [0, 40, 90, 200], atol=1e-3)


def test_more_colors_than_the_images_hold_is_an_error():
    with pytest.raises(DataError, match=r"config\.data\.num_colors=5, but the images hold only 1 "):
        palettes.fit(np.zeros((2, 3, 3, 1), np.uint8), 5)


def test_levels_are_all_grays_up_to_the_highest():
    np.testing.assert_array_equal(palettes.levels(np.array([[[[3]]]], np.uint8)), [[0], [1], [2], [3]])
    with pytest.raises(DataError, match=r"config\.data\.num_colors=0 .* have color"):
        palettes.levels(pictures())


# Storing


def test_a_palette_is_prepared_once_beside_the_data(tmp_path):
    examples = tiny.digits(50, "train")
    palettes.prepare(lambda: examples, options(tmp_path), seed=3)
    path = palettes.palette_path(options(tmp_path), seed=3)
    assert path.is_relative_to(tmp_path) and path.exists()
    written = path.stat().st_mtime_ns
    palettes.prepare(lambda: examples, options(tmp_path), seed=3)
    assert path.stat().st_mtime_ns == written
    assert not [p for p in path.parent.iterdir() if p != path]
    found = palettes.model_args(examples, options(tmp_path), seed=3)
    assert (found["num_colors"], found["shape"], found["max_length"]) == (4, (8, 8), 64)
    np.testing.assert_array_equal(found["palette"], np.load(path))
    assert isinstance(hash(found["palette"]), int)


@pytest.mark.parametrize("change", [{"num_colors": 5}, {"size": 4}, {"name": "mnist"}])
def test_another_palette_has_another_file(tmp_path, change):
    assert palettes.palette_path(options(tmp_path), 0) != palettes.palette_path(options(tmp_path, **change), 0)
    assert palettes.palette_path(options(tmp_path), 0) != palettes.palette_path(options(tmp_path), 1)


def test_a_folder_of_data_that_cannot_be_written_leaves_the_palette_in_the_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "palettes").write_text("a file where the folder should be: nobody can write below it")
    asked = options(tmp_path / "data")
    palettes.prepare(lambda: tiny.digits(50, "train"), asked, seed=0)
    path = palettes.palette_path(asked, 0)
    assert path.is_relative_to(tmp_path / "cache" / "jtasks")
    assert palettes.load(path, 1)
    before = path.stat().st_mtime_ns
    palettes.prepare(lambda: tiny.digits(50, "train"), asked, seed=0)
    assert path.stat().st_mtime_ns == before


def test_no_place_for_the_palette_is_an_error(tmp_path, monkeypatch):
    for name in ("cache", "data"):
        (tmp_path / name).write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    with pytest.raises(DataError, match="set XDG_CACHE_HOME to a folder that can be written"):
        palettes.prepare(lambda: tiny.digits(50, "train"), options(tmp_path / "data"), seed=0)


def test_a_palette_file_of_ones_own_is_used_and_none_fitted(tmp_path):
    mine = tmp_path / "mine.npy"
    np.save(mine, np.array([[0.0], [7.5], [16.0]]))
    asked = options(tmp_path, palette=str(mine))
    palettes.prepare(lambda: tiny.digits(50, "train"), asked, seed=0)
    assert sorted(tmp_path.iterdir()) == [mine]
    assert palettes.model_args(tiny.digits(50, "train"), asked, 0)["palette"] == ((0.0,), (7.5,), (16.0,))


class Harmful:
    def __reduce__(self):
        return (pathlib.Path("unpickled-by-mistake").touch, ())


def harmful(path):
    path.write_bytes(pickle.dumps(Harmful()))


def truncated(path):
    np.save(path, np.zeros((4, 1)))
    path.write_bytes(path.read_bytes()[:-9])


def archive(path):
    with path.open("wb") as file:
        np.savez(file, palette=np.zeros((4, 1)))


DAMAGES = {
    "empty": lambda path: path.write_bytes(b""),
    "text": lambda path: path.write_text("0, 1, 2"),
    "truncated": truncated,
    "pickled": harmful,
    "archive": archive,
    "flat": lambda path: np.save(path, np.zeros(4)),
    "channels": lambda path: np.save(path, np.zeros((4, 3))),
    "none": lambda path: np.save(path, np.zeros((0, 1))),
    "nan": lambda path: np.save(path, np.array([[0.0], [np.nan]])),
    "words": lambda path: np.save(path, np.array([["a"], ["b"]])),
    "objects": lambda path: np.save(path, np.array([[object()]]), allow_pickle=True),
}


def test_a_palette_that_is_nowhere_is_a_mistake_of_the_config(tmp_path):
    with pytest.raises(ConfigError, match=r"no palette at .*palette\.npy: give another --config\.data\.palette"):
        palettes.load(tmp_path / "palette.npy", 1)


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES.keys())
def test_a_palette_that_is_none_says_what_was_expected(tmp_path, damage, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "palette.npy"
    damage(path)
    with pytest.raises(DataError, match=r"palette .*palette\.npy .*expected .*\[colors, 1\]"):
        palettes.load(path, 1)
    assert not pathlib.Path("unpickled-by-mistake").exists()
