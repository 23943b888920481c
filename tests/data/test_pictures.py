"""Claims about picture files: an array is what a person sees, or the file is refused by its name."""

import os
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from jtasks.data import images
from jtasks.data.pictures import decode
from jtasks.errors import DataError

RAMP = np.linspace(0, 65535, 64).astype(np.uint16).reshape(8, 8)
SMALL = np.arange(24, dtype=np.uint8).reshape(4, 6) * 10


def saved(path, picture, **options):
    picture.save(path, **options)
    return decode(str(path))


@pytest.mark.parametrize("name", ["x.png", "x.tif", "x.pgm"])
def test_sixteen_bits_are_scaled_to_eight(tmp_path, name):
    found = saved(tmp_path / name, Image.fromarray(RAMP))
    assert found.shape == (8, 8, 3)
    np.testing.assert_array_equal(found, np.repeat((RAMP >> 8)[..., None], 3, -1))
    assert found.min() == 0 and found.max() == 255


def test_the_case_of_pictures_of_sixteen_bits(shared):
    examples = images(f"folder:{shared / 'cases' / 'picture_16_bit' / 'pics'}", "train", valid=0)
    with pytest.raises(DataError, match=r"float\.tif \(floats have no meaning in 8 bits\)"):
        examples[0]
    for i in (1, 2, 3):
        assert examples[i]["image"][0, [0, 1, 2, -1], 0].tolist() == [0, 4, 8, 255]


def test_levels_of_netpbm_are_scaled_from_their_own_maximum(tmp_path):
    for content, expected in (
        (b"P5 2 1 1023\n" + struct.pack(">2H", 0, 1023), [[0] * 3, [255] * 3]),
        (b"P5 2 1 15\n\x00\x0f", [[0] * 3, [255] * 3]),
        (b"P2 2 1 65535\n0 65535\n", [[0] * 3, [255] * 3]),
        (b"P6 1 1 65535\n" + struct.pack(">3H", 0, 65535, 0), [[0, 255, 0]]),
    ):
        (tmp_path / "x.ppm").write_bytes(content)
        assert decode(str(tmp_path / "x.ppm"))[0].tolist() == expected


@pytest.mark.parametrize("name", ["x.jpg", "x.png", "x.tif", "deflated.tif", "x.webp"])
@pytest.mark.parametrize(("orientation", "turned"), [(1, 0), (3, 2), (6, -1), (8, 1)])
@pytest.mark.parametrize("kind", [np.uint8, np.uint16])
def test_a_picture_is_turned_as_its_camera_says(tmp_path, name, orientation, turned, kind):
    if kind == np.uint16 and name in ("x.jpg", "x.webp"):
        pytest.skip("has 8 bits")
    exif = Image.Exif()
    exif[274] = orientation
    levels = SMALL if kind == np.uint8 else SMALL.astype(np.uint16) * 257
    picture = Image.fromarray(levels)
    options = {"x.jpg": {"quality": 100}, "x.webp": {"lossless": True}, "deflated.tif": {"compression": "tiff_deflate"}}
    found = saved(tmp_path / name, picture, exif=exif, **options.get(name, {}))
    np.testing.assert_allclose(found[..., 0].astype(int), np.rot90(SMALL, turned), atol=2)


def palette(transparency=None):
    picture = Image.new("P", (4, 4), 1)
    picture.putpalette([0, 0, 0, 9, 8, 7])
    return picture, {} if transparency is None else {"transparency": transparency}


@pytest.mark.parametrize(
    ("name", "picture", "options", "color"),
    [
        ("x.png", Image.new("RGBA", (4, 4), (10, 20, 30, 0)), {}, (255, 255, 255)),
        ("x.png", Image.new("RGBA", (4, 4), (0, 0, 0, 128)), {}, (127, 127, 127)),
        ("x.webp", Image.new("RGBA", (4, 4), (9, 9, 9, 0)), {"lossless": True}, (255, 255, 255)),
        ("x.png", Image.new("LA", (4, 4), (10, 0)), {}, (255, 255, 255)),
        ("x.png", *palette(), (9, 8, 7)),
        ("x.png", *palette(1), (255, 255, 255)),
        ("x.png", *palette(bytes([255, 0])), (255, 255, 255)),
        ("x.gif", *palette(), (9, 8, 7)),
        ("x.gif", *palette(1), (255, 255, 255)),
        ("x.png", Image.new("L", (4, 4), 9), {"transparency": 9}, (255, 255, 255)),
        ("x.png", Image.fromarray(np.full((4, 4), 9, np.uint16)), {"transparency": 9}, (255, 255, 255)),
        ("x.png", Image.new("RGB", (4, 4), (1, 2, 3)), {"transparency": (1, 2, 3)}, (255, 255, 255)),
        ("x.png", Image.new("1", (4, 4), 1), {}, (255, 255, 255)),
        ("x.jpg", Image.new("CMYK", (4, 4), (0, 0, 0, 0)), {}, (255, 255, 255)),
        ("x.tif", Image.new("CMYK", (4, 4), (0, 255, 255, 0)), {}, (255, 0, 0)),
        ("x.tif", Image.new("YCbCr", (4, 4), (255, 128, 128)), {"compression": "jpeg"}, (255, 255, 255)),
        ("x.tif", Image.new("L", (4, 4), 10), {"tiffinfo": {262: 0}}, (10, 10, 10)),
        ("x.tif", Image.fromarray(np.full((4, 4), 2570, np.uint16)), {"tiffinfo": {262: 0}}, (245, 245, 245)),
        ("x.gif", Image.new("L", (4, 4), 7), {"save_all": True, "append_images": [Image.new("L", (4, 4))]}, (7, 7, 7)),
        ("x.tif", Image.new("L", (4, 4), 7), {"save_all": True, "append_images": [Image.new("L", (4, 4))]}, (7, 7, 7)),
    ],
)
def test_colors_are_those_of_a_viewer_on_white(tmp_path, name, picture, options, color):
    found = saved(tmp_path / name, picture, **options)
    assert found.shape == (4, 4, 3) and (found == color).all()


def test_lab_becomes_rgb(tmp_path):
    assert saved(tmp_path / "x.tif", Image.new("LAB", (4, 4), (255, 128, 128))).min() >= 254


@pytest.mark.parametrize("bits", [8, 16])
def test_signed_numbers_are_refused(tmp_path, bits):
    levels = np.full((4, 4), 200, f"uint{bits}")
    with pytest.raises(DataError, match=r"x\.tif \(signed integers have no meaning in 8 bits\)"):
        saved(tmp_path / "x.tif", Image.fromarray(levels), tiffinfo={339: 2})


@pytest.mark.parametrize("mode", ["F", "I"])
def test_numbers_without_a_meaning_in_8_bits_are_refused(tmp_path, mode):
    with pytest.raises(DataError, match=r"cannot decode .*x\.tif .*have no meaning in 8 bits"):
        saved(tmp_path / "x.tif", Image.new(mode, (4, 4), 1))


def huge_png(side):
    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">2I5B", side, side, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")


@pytest.mark.filterwarnings("ignore:Image size:PIL.Image.DecompressionBombWarning")
@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("x.png", b"", "cannot identify"),
        ("x.jpg", b"<html>", "cannot identify"),
        ("x.jpg", b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\n", "cannot identify"),
        ("x.png", huge_png(13_000), "13000 x 13000 pixels are more than"),
        ("x.png", huge_png(70_000), "pixels"),
    ],
)
def test_what_is_no_picture_is_refused_by_its_name(tmp_path, name, content, message):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=rf"cannot decode {tmp_path}/{name} \(.*{message}"):
        decode(str(tmp_path / name))


@pytest.mark.filterwarnings("ignore:Corrupt EXIF data")
@pytest.mark.parametrize("name", ["x.png", "x.jpg", "x.tif", "x.gif", "x.bmp", "x.ppm", "x.webp"])
def test_a_picture_that_is_cut_short_is_refused(tmp_path, name):
    noise = np.random.default_rng(0).integers(0, 255, (40, 40, 3), np.uint8)
    saved(tmp_path / name, Image.fromarray(noise))
    whole = (tmp_path / name).read_bytes()
    for end in (3, 20, len(whole) // 2):
        (tmp_path / name).write_bytes(whole[:end])
        with pytest.raises(DataError, match="cannot decode"):
            decode(str(tmp_path / name))


def test_a_pipe_among_pictures_is_refused_and_waits_for_nobody(tmp_path):
    (tmp_path / "a").mkdir()
    os.mkfifo(tmp_path / "a" / "x.png")
    with pytest.raises(DataError, match=r"x\.png is not a regular file"):
        images(f"folder:{tmp_path}", "train")
