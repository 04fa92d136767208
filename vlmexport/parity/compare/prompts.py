"""Whether a bundle makes the float model's prompt: tokens are exact, so there is no nearly."""

from __future__ import annotations

from vlmexport.processing.prompt import PLACEHOLDER, Prompt

_SHOWN = 12


def difference(expected: Prompt, found: Prompt) -> str | None:
    """Where the first token differs, and what the texts say there; None where all are equal."""
    ours, theirs = expected.ids, found.ids
    if ours != theirs:
        place = next((i for i, pair in enumerate(zip(ours, theirs, strict=False)) if pair[0] != pair[1]), None)
        at = min(len(ours), len(theirs)) if place is None else place
        return (
            f"the prompt differs at token {at}: {_token(theirs, at)}, "
            f"the float model's is {_token(ours, at)}{_texts(expected.text, found.text)}"
        )
    pairs = zip(expected.spans, found.spans, strict=False)
    different = next(((ours, theirs) for ours, theirs in pairs if ours != theirs), None)
    if different is not None or len(expected.spans) != len(found.spans):
        where = f" at token {different[0].start}" if different else ""
        return f"the images of the prompt lie otherwise than in the float model's{where}"
    return None


def _token(ids: tuple[int, ...], at: int) -> str:
    if at >= len(ids):
        return "none"
    return "a visual token" if ids[at] == PLACEHOLDER else str(ids[at])


def _texts(expected: str, found: str) -> str:
    """The texts from where they part on; nothing where they are one text, and the tokenizers differ."""
    if expected == found:
        return ""
    same = next((i for i, pair in enumerate(zip(expected, found, strict=False)) if pair[0] != pair[1]), None)
    start = min(len(expected), len(found)) if same is None else same
    return f" ({found[start : start + _SHOWN]!r} for {expected[start : start + _SHOWN]!r})"
