"""Values of data files are read as what they are, or refused."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jtasks.data import values
from jtasks.errors import DataError


@given(st.floats(-1e30, 1e30))
def test_a_number_is_that_which_its_text_says(number):
    texts = [repr(number), f" {number!r}\t", f"{number:+.17E}", f"{number:.20f}"]
    assert all(math.isclose(values.number(text, "here"), number, abs_tol=1e-19) for text in texts)


@pytest.mark.parametrize("text", ["", ".", "1_000", "1,5", "٣", "0x10", "1e", "nan", "inf", "1e39", "-", "1 2", "--1"])
def test_no_number_is_guessed(text):
    with pytest.raises(DataError, match=r"^here: expected a (finite )?number"):
        values.number(text, "here")
