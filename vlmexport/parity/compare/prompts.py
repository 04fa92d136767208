"""Whether a bundle makes the float model's prompt: tokens are exact, so there is no nearly."""

from __future__ import annotations

from vlmexport.processing.tokenizer import Prompt

_SHOWN = 12


def difference(expected: Prompt, found: Prompt) -> str | None:
    """Where the first token differs, and what the texts say there; None where all are equal."""
    for part, ours, theirs in (
        ("before", expected.before, found.before),
        ("after", expected.after, found.after),
    ):
        if ours != theirs:
            place = next((i for i, pair in enumerate(zip(ours, theirs, strict=False)) if pair[0] != pair[1]), -1)
            at = place if place >= 0 else min(len(ours), len(theirs))
            return (
                f"the prompt differs at token {at} {part} the image: {_token(theirs, at)}, "
                f"the float model's is {_token(ours, at)}{_texts(expected.text, found.text)}"
            )
    return None


def _token(ids: tuple[int, ...], at: int) -> str:
    return str(ids[at]) if at < len(ids) else "none"


def _texts(expected: str, found: str) -> str:
    """The texts from where they part on; nothing where they are one text, and the tokenizers differ."""
    if expected == found:
        return ""
    same = next((i for i, pair in enumerate(zip(expected, found, strict=False)) if pair[0] != pair[1]), None)
    start = min(len(expected), len(found)) if same is None else same
    return f" ({found[start : start + _SHOWN]!r} for {expected[start : start + _SHOWN]!r})"
