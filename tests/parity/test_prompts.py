"""Where two prompts part, in words."""

from __future__ import annotations

from vlmexport.parity.compare.prompts import difference
from vlmexport.processing.tokenizer import Prompt

RIGHT = Prompt("USER: <image>\nWhat?", (1, 7, 8), (13, 9))


def test_equal() -> None:
    assert difference(RIGHT, Prompt("USER: <image>\nWhat?", (1, 7, 8), (13, 9))) is None


def test_another_first_token() -> None:
    assert difference(RIGHT, Prompt(RIGHT.text, (2, 7, 8), (13, 9))) == (
        "the prompt differs at token 0 before the image: 2, the float model's is 1"
    )


def test_a_token_less() -> None:
    assert difference(RIGHT, Prompt(RIGHT.text, (1, 7, 8), (13,))) == (
        "the prompt differs at token 1 after the image: none, the float model's is 9"
    )


def test_another_text() -> None:
    assert difference(RIGHT, Prompt("USER: <image>What?", (1, 7, 8), (9,))) == (
        "the prompt differs at token 0 after the image: 9, the float model's is 13 ('What?' for '\\nWhat?')"
    )
