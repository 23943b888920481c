"""Claims about jtasks.ops.grid."""

import numpy as np
import pytest

from jtasks.ops import grid

GAP, HEADER = 4, 16


def image(value, h=2, w=3, channels=1):
    return np.full((h, w, channels), value, np.uint8)


def cell(canvas, i, j, h, w, header=0):
    top, left = header + GAP + i * (h + GAP), GAP + j * (w + GAP)
    return canvas[top : top + h, left : left + w]


@pytest.mark.parametrize("channels", [1, 3])
def test_pictures_stand_in_rows_and_columns_on_white(channels):
    rows = [[image(10 * (3 * i + j), channels=channels) for j in range(3)] for i in range(2)]
    canvas = grid.grid(rows, least=1)
    assert canvas.shape == (GAP + 2 * (2 + GAP), GAP + 3 * (3 + GAP), 3) and canvas.dtype == np.uint8
    for i in range(2):
        for j in range(3):
            assert (cell(canvas, i, j, 2, 3) == 10 * (3 * i + j)).all()
    inside = 6 * 2 * 3
    assert (canvas == 255).all(-1).sum() == canvas.shape[0] * canvas.shape[1] - inside


def test_small_pictures_are_enlarged_pixel_by_pixel():
    one = np.arange(6, dtype=np.uint8).reshape(2, 3, 1)
    canvas = grid.grid([[one]], least=7)  # 3 times, the first multiple with a side of at least 7
    np.testing.assert_array_equal(cell(canvas, 0, 0, 6, 9)[..., 0], one[..., 0].repeat(3, 0).repeat(3, 1))
    assert canvas.shape[:2] == (6 + 2 * GAP, 9 + 2 * GAP)


def test_large_pictures_are_not_enlarged():
    assert grid.grid([[image(0, 80, 70)]]).shape == (80 + 2 * GAP, 70 + 2 * GAP, 3)


def test_shorter_rows_leave_room():
    canvas = grid.grid([[image(0)], [image(0), image(0)]], least=1)
    assert (cell(canvas, 0, 1, 2, 3) == 255).all() and (cell(canvas, 1, 1, 2, 3) == 0).all()


def test_titles_stand_above_the_first_of_their_columns():
    row = [image(255, 64, 64)] * 3
    canvas = grid.grid([row], [("a", 2), ("b", 1)])
    dark = (canvas < 128).any((0, 2))
    assert canvas.shape[0] == HEADER + 64 + 2 * GAP
    columns = np.flatnonzero(dark)
    second = GAP + 2 * (64 + GAP)
    assert dark[GAP : GAP + 20].any() and dark[second : second + 20].any()
    assert not dark[GAP + 20 : second].any() and columns.max() < second + 20
    assert (canvas[HEADER:] == 255).all()


def test_colors_keep_their_channels():
    red = np.zeros((2, 2, 3), np.uint8)
    red[..., 0] = 255
    np.testing.assert_array_equal(cell(grid.grid([[red]], least=1), 0, 0, 2, 2), red)


def captions(labels, predictions, names=("cat", "dog")):
    """The picture and the text of one white image each, with these true and predicted classes."""
    images = [image(255, 64, 64)] * len(predictions)
    examples = [{} if label is None else {"label": np.int32(label)} for label in labels]
    outputs = [{"label": np.int32(label), "probability": np.float32(0.75)} for label in predictions]
    return grid.show_classes(images, examples, outputs, names)


def test_a_classified_picture_has_both_classes_below_it_green_if_equal_and_red_if_not():
    shown = captions([0, 1, None], [0, 0, 1])
    picture = shown["images"]
    assert shown["labels"].splitlines() == ["cat (0.750), truly cat", "cat (0.750), truly dog", "dog (0.750)"]
    below = picture[HEADER + GAP + 64 :].astype(int)
    ink = below.min(-1) < 200
    for j, strongest in ((0, 1), (1, 0)):
        here = below[:, GAP + j * (64 + GAP) :][:, :64]
        color = here[here.min(-1) < 200].mean(0)
        assert color.argmax() == strongest and ink[:, GAP + j * (64 + GAP) :][:, :64].any()
    assert picture[:HEADER].min() < 128  # the title says which class is which
    assert (picture[HEADER + GAP : HEADER + GAP + 64] == 255).all()


def test_many_pictures_have_rows_of_eight():
    one, nine = captions([0] * 8, [0] * 8)["images"], captions([0] * 9, [0] * 9)["images"]
    assert nine.shape[1] == one.shape[1] and nine.shape[0] > one.shape[0] + 64


@pytest.mark.parametrize("name", ["sea slug " * 40, "two\nlines", "\u732b", ""])
def test_a_name_of_any_length_fits(name):
    picture = captions([0], [1], (name, "dog"))["images"]
    assert picture.shape[1] < 200 and picture.shape[0] == HEADER + GAP + 64 + HEADER + GAP
