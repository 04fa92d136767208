"""The table of phones, and what follows from it."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vlmexport.costs.phones import Range, choose_phones, phones
from vlmexport.errors import UsageError


@pytest.mark.parametrize("key", list(phones()))
def test_every_phone_is_possible_and_has_a_source(key: str) -> None:
    phone = phones()[key]
    assert phone.key == key
    assert phone.name
    assert phone.source
    assert 5e9 < phone.bandwidth < 300e9
    assert 1e11 < phone.operations < 1e13
    assert 0 < phone.token[0] < phone.token[1] < 1
    assert 0 < phone.product[0] < phone.product[1] < 1


def test_the_published_speed_lies_within_the_range() -> None:
    """MobileVLM 1.7B in q4_k_m (0.79 GB a token): 14.1 tokens/s in llama.cpp's table, 21.5 in the paper."""
    (phone,) = choose_phones(["snapdragon-888"])
    time = phone.read(790_000_000)
    assert time.low == pytest.approx(1 / 21.5, rel=0.03)
    assert time.high == pytest.approx(1 / 14.1, rel=0.03)


@given(st.integers(1, 10**13))
def test_twice_as_much_takes_twice_as_long(amount: int) -> None:
    for phone in phones().values():
        for time, twice in ((phone.read(amount), phone.read(2 * amount)),
                            (phone.multiply(amount), phone.multiply(2 * amount))):  # fmt: skip
            assert 0 < time.low < time.high
            assert twice.low == pytest.approx(2 * time.low)
            assert twice.high == pytest.approx(2 * time.high)


def test_units() -> None:
    assert str(Range(0.0154, 0.031)) == "15–31 ms"
    assert str(Range(0.8, 1.6)) == "0.8–1.6 s"
    assert str(Range(0.0623, 0.123)) == "62–120 ms"
    assert str(Range(0.9996, 1234.0)) == "1–1200 s"


def test_unknown() -> None:
    assert [phone.key for phone in choose_phones(None)] == list(phones())
    with pytest.raises(UsageError, match="unknown phone 'nokia': known: snapdragon-888"):
        choose_phones(["nokia"])
