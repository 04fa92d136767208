"""Text of users (names, paths, questions, answers) as each kind of output shows it: as it is, and never as markup."""

from __future__ import annotations

import re

_REPLACED = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f"  # control characters: they move the cursor, colour what follows, or break XML
    "\u202a-\u202e\u2066-\u2069"  # overrides of the direction, which show a text in another order than it has
    "\ud800-\udfff\ufffe\uffff]"  # half characters (names that are no UTF-8), and no characters
)
_SPECIAL = re.compile(r"[\\`*\[\]#|<>~&$]|^[-+=]|(?<=\d)[.)](?=\s|$)|(?<![A-Za-z0-9])_|_(?![A-Za-z0-9])")
_AUTOMATIC = re.compile(r"@(?=\w)|#(?=\d)|:(?=[\w+-]+:|//)|\bwww(?=[.])", re.IGNORECASE)
_PLAIN_CODE = re.compile(r"[\w./()-](?:[\w./() -]*[\w./()-])?")
_BREAK = "\u200b"  # zero-width space


def plain(text: str) -> str:
    """With nothing in it that a terminal, XML or a file in UTF-8 cannot show: such characters become U+FFFD. Tabs and
    line breaks stay."""
    return _REPLACED.sub("\N{REPLACEMENT CHARACTER}", text.replace("\r\n", "\n"))


def is_utf8(text: str) -> bool:
    """Whether it can be written at all: names and arguments that are no UTF-8 have half characters in Python."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def one_line(text: str) -> str:
    """``plain``, and on one line."""
    return plain(" ".join(text.split()))


def markdown(text: str) -> str:
    """As GitHub's Markdown, on one line. A backslash takes the meaning of what is markup; what GitHub makes a link, a
    mention or an emoji by itself is broken by a space of no width."""
    return _SPECIAL.sub(r"\\\g<0>", _AUTOMATIC.sub(rf"\g<0>{_BREAK}", one_line(text)))


def markdown_code(text: str) -> str:
    """As Markdown, in the type of code."""
    return f"`{text}`" if _PLAIN_CODE.fullmatch(text) else f"<code>{markdown(text)}</code>"
