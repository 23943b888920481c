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
