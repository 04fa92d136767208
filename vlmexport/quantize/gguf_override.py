"""``REGEX=TYPE``: types given by hand for the tensors of a GGUF whose names match. Pure functions."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from difflib import SequenceMatcher, get_close_matches
from heapq import nlargest

from vlmexport.errors import UsageError
from vlmexport.quantize.ggml import TYPES
from vlmexport.quantize.gguf_mix import fit, quantizable

_SYNTAX = re.compile(r"\\[dDwWsSbB]|[\\^$*+?()\[\]{}|]")


@dataclass(frozen=True)
class Override:
    """One of them; ``text`` is as it was given."""

    text: str
    pattern: re.Pattern[str]
    type: str


def parse(text: str) -> Override:
    """Read ``REGEX=TYPE``; the last ``=`` parts them, so the expression may hold one.

    Raises:
        UsageError: there is no ``=``, the expression is broken, or the type is unknown.
    """
    expression, _, name = text.rpartition("=")
    if not expression or not name:
        raise UsageError(f"tensor type {text!r} is not REGEX=TYPE", "write it like 'ffn_down=q6_k'")
    try:
        pattern = re.compile(expression)
    except re.error as error:
        raise UsageError(
            f"tensor type {text!r}: the expression is broken ({error})", "correct the regular expression"
        ) from error
    key = name.strip().lower()
    if key not in TYPES:
        near = get_close_matches(key, TYPES, n=1)
        cure = f"did you mean {near[0]!r}?" if near else f"known: {', '.join(TYPES)}"
        raise UsageError(f"tensor type {text!r}: there is no type {name.strip()!r} of a tensor", cure)
    return Override(text, pattern, key)


def given_types(texts: Sequence[str], shapes: Mapping[str, tuple[int, ...]]) -> dict[str, str]:
    """GGUF name → type, for the tensors that an expression names. The first expression that is found anywhere in a
    name wins, as in ``llama-quantize``.

    Args:
        texts: ``REGEX=TYPE`` each.
        shapes: GGUF name → shape, rows first.

    Raises:
        UsageError: an expression names no tensor, or none that an earlier one has left, or a type does not fit a row.
    """
    found: dict[str, str] = {}
    for override in map(parse, texts):
        named = [name for name in shapes if override.pattern.search(name)]
        names = [name for name in named if quantizable(name, shapes[name])]
        left = [name for name in names if name not in found]
        if not named:
            near = ", ".join(nearest(override.pattern.pattern, list(shapes)))
            raise UsageError(f"tensor type {override.text!r} matches no tensor", f"the nearest are {near}")
        if not names:
            raise UsageError(
                f"tensor type {override.text!r} matches only norms and biases, such as {named[0]}", "they stay f32"
            )
        if not left:
            raise UsageError(
                f"tensor type {override.text!r} has no effect: earlier expressions match all of its tensors",
                "the first that matches wins: put it before them",
            )
        for name in left:
            _check_row(name, override.type, shapes[name][-1])
            found[name] = override.type
    return found


def _check_row(name: str, type_name: str, columns: int) -> None:
    block = TYPES[type_name].block
    if columns % block:
        raise UsageError(
            f"{name} has rows of {columns} values, {type_name} needs a multiple of {block}",
            f"give it {fit(type_name, columns)}",
        )


def nearest(expression: str, names: Sequence[str]) -> list[str]:
    """The three names that are most like a regular expression without its syntax."""
    plain = _SYNTAX.sub("", expression)

    def likeness(name: str) -> tuple[float, float]:
        short = name.removesuffix(".weight")
        ratios = [SequenceMatcher(None, plain, part).ratio() for part in (name, short, short.rpartition(".")[2])]
        return max(ratios), ratios[0]

    return nlargest(3, names, key=likeness)
