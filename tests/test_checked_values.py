"""Values of strangers: what is right comes back, what is wrong is a short ValueError, and none of it costs time or memory."""

from fractions import Fraction

import pytest
from test_safetensors_header import peak_below

from cvvae_cli.checked_values import fraction_of, number_of, quoted, ratio_of, text_of, whole_of

DEEP: list = []
for _ in range(100_000):
    DEEP = [DEEP]


def test_right_values_come_back():
    assert (whole_of(0, 0, 5), whole_of(5, 0, 5), whole_of(-(2**70), -(2**70), 0)) == (0, 5, -(2**70))
    assert (number_of(3), number_of(-0.5)) == (3.0, -0.5) and type(number_of(3)) is float
    for value in (Fraction(0), Fraction(-7, 3), Fraction(10**23, 10**22 + 1)):
        assert fraction_of(str(value)) == value
    assert ratio_of("30000/1001") == Fraction(30000, 1001) and ratio_of("2147483647") == 2**31 - 1
    assert text_of("") == "" and text_of("Ä 漢") == "Ä 漢"


@pytest.mark.parametrize("value", [None, True, 1.0, "1", -1, 6, 10**4000, float("nan"), [], DEEP, {}])
def test_whole_numbers(value):
    with pytest.raises(ValueError, match="is no whole number from 0 to 5") as caught:
        whole_of(value, 0, 5)
    assert len(str(caught.value)) < 120


@pytest.mark.parametrize("value", [None, True, "1", 10**301, -(10**400), float("nan"), float("inf"), DEEP])
def test_numbers(value):
    with pytest.raises(ValueError, match="is no finite number"):
        number_of(value)


WRONG = ["", "1e999999999", "1/0", "1/-2", "1/2/3", " 1", "1 ", "1\n", "0.5", "+1", "١", "1_0", "9" * 25, "1/" + "9" * 25]


@pytest.mark.parametrize("value", [None, 1, 0.5, *WRONG])
def test_fractions(value):
    with peak_below(2**16), pytest.raises(ValueError, match="is no fraction"):
        fraction_of(value)


@pytest.mark.parametrize("value", ["0", "-1/2", "2147483648", "1/2147483648"])
def test_ratios(value):
    with pytest.raises(ValueError, match="is no fraction above 0"):
        ratio_of(value)


@pytest.mark.parametrize("value", [None, 3, "a\nb", "\x1b[2J", "x" * 201, ["a"]])
def test_texts(value):
    with pytest.raises(ValueError, match="is no short text"):
        text_of(value)


def test_quotes_are_short():
    assert quoted("a\n" * 100) == repr("a\n" * 20) and quoted(1.5) == "1.5" and quoted(None) == "None" and quoted(True) == "True"
    assert quoted(-(2**63)) == str(-(2**63)) and quoted(10**5000) == "a huge number"
    assert quoted(DEEP) == "a list" and quoted({"a": DEEP}) == "a dict"
