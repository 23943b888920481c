"""The learning rate of a run can be seen before it runs."""

import xml.etree.ElementTree as ElementTree

import numpy as np

from jtasks import optim
from jtasks.run import rates


def test_the_points_are_the_schedule_and_the_picture_is_an_svg():
    fields = {"lr": 0.5, "schedule": "wsd", "warmup": 10, "cooldown": 0.25}
    points = rates.points(fields, 10_000)
    assert len(points) <= rates.POINTS and points[0] == (1, 0.05000000074505806) and points[-1][0] == 10_000
    expected = [float(optim.schedule(fields, 10_000)(step - 1)) for step, _ in points[::50]]
    np.testing.assert_allclose([rate for _, rate in points[::50]], expected, rtol=1e-6)
    assert rates.points({"lr": 0.0}, 1) == [(1, 0.0)]
    picture = ElementTree.fromstring(rates.picture(points))
    assert picture.tag == "{http://www.w3.org/2000/svg}svg" and picture.find(".//*[@class='line c0']") is not None
    bars, _, text = rates.line(points).partition("  ")
    assert len(bars) == rates.COLUMNS and bars[20] == "█" and bars[-1] < bars[-6] < "█"
    assert text == "0.05, at most 0.5, at last 2e-04"
