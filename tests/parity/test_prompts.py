"""Where two prompts part, in words."""

from __future__ import annotations

from tests.prompts import around
from vlmexport.parity.compare.prompts import difference
from vlmexport.processing.prompt import Views, joined

RIGHT = around((1, 7, 8), (13, 9), 4, "USER: <image>\nWhat?")


def test_equal() -> None:
    assert difference(RIGHT, around((1, 7, 8), (13, 9), 4, "USER: <image>\nWhat?")) is None


def test_another_first_token() -> None:
    assert difference(RIGHT, around((2, 7, 8), (13, 9), 4, RIGHT.text)) == (
        "the prompt differs at token 0: 2, the float model's is 1"
    )


def test_a_token_less() -> None:
    assert difference(RIGHT, around((1, 7, 8), (13,), 4, RIGHT.text)) == (
        "the prompt differs at token 8: none, the float model's is 9"
    )


def test_another_text() -> None:
    assert difference(RIGHT, around((1, 7, 8), (9,), 4, "USER: <image>What?")) == (
        "the prompt differs at token 7: 9, the float model's is 13 ('What?' for '\\nWhat?')"
    )


def test_fewer_visual_tokens() -> None:
    assert difference(RIGHT, around((1, 7, 8), (13, 9), 3, RIGHT.text)) == (
        "the prompt differs at token 6: 13, the float model's is a visual token"
    )


def test_views_that_lie_otherwise() -> None:
    found = joined(RIGHT.text, [(1, 7, 8), (13, 9)], [Views(((2, 2),))])
    assert found.ids == RIGHT.ids
    assert difference(RIGHT, found) == "the images of the prompt lie otherwise than in the float model's at token 3"
