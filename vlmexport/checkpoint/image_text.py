"""What a processor writes for an image where it makes the text of a prompt longer and then tokenizes it as one."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class ImageText:
    """The texts around the image tokens of each view.

    Attributes:
        tile: before the tokens of a tile; ``{row}`` and ``{column}`` in it are its place, from 1.
        row_end: behind the last tile of a row.
        whole: before the tokens of the whole picture, beside its tiles.
        alone: before the tokens of a picture that is one view.
        end: behind the last view.
        begin: before the first view of each image where a prompt has several; ``{image}`` in it is its number, from 0.
        whole_first: whether the whole picture stands before its tiles, else behind them.
        start: before the first view.
        token: what the tokenizer calls a visual token, which the chat template writes once for an image.
    """

    tile: str
    row_end: str
    whole: str
    alone: str
    end: str
    begin: str = ""
    whole_first: bool = False
    start: str = ""
    token: str = "<image>"


def token_of(image_text: ImageText | None) -> str:
    """What a tokenizer calls a visual token."""
    return image_text.token if image_text else ImageText.token
