"""Short answers scored as their benchmarks do: exact match, VQA accuracy, yes or no (POPE)."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence

_NUMBERS = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten"]
_DIGITS = {word: str(number) for number, word in enumerate(_NUMBERS)}
_ARTICLES = {"a", "an", "the"}


def exact(text: str, answers: Sequence[str]) -> float:
    """1 where the text is one of the answers, apart from case, blanks and a full stop."""
    return float(_plain(text) in {_plain(answer) for answer in answers})


def _plain(text: str) -> str:
    return " ".join(text.casefold().split()).removesuffix(".").strip()


def vqa(text: str, answers: Sequence[str]) -> float:
    """VQA accuracy (Antol et al. 2015): min(1, annotators who agree / 3), averaged over leaving each annotator out.

    Articles, punctuation and case do not count, and numbers are digits, as in the official evaluation; its table of
    contractions is replaced by leaving apostrophes out.
    """
    said, given = _words(text), [_words(answer) for answer in answers]
    agree = given.count(said)
    return sum(min(1.0, (agree - (answer == said)) / 3) for answer in given) / len(given)


def _words(text: str) -> str:
    words = re.sub(r"[^\w\s.]|\.(?!\d)", " ", text.lower().replace("'", "")).split()
    return " ".join(_DIGITS.get(word, word) for word in words if word not in _ARTICLES)


def says_yes(text: str) -> bool:
    """POPE's rule (Li et al. 2023): the first sentence says no where it has the word no or not, and yes elsewhere."""
    return not {"no", "not"} & set(text.lower().partition(".")[0].replace(",", "").split())


def yes_no(text: str, answers: Sequence[str]) -> float:
    """1 where the text says what the first answer says."""
    return float(says_yes(text) == says_yes(answers[0]))


SCORES: dict[str, Callable[[str, Sequence[str]], float]] = {"exact": exact, "vqa": vqa, "yes_no": yes_no}
"""Task → score of a text against the answers that are right."""


def f1(said: Sequence[bool], right: Sequence[bool]) -> dict[str, float]:
    """Precision, recall and F1 of yes, and how often yes was said: a model that always says yes has recall 1."""
    hits = sum(a and b for a, b in zip(said, right, strict=True))
    precision, recall = hits / max(sum(said), 1), hits / max(sum(right), 1)
    return {
        "precision": precision,
        "recall": recall,
        "f1": 2 * hits / max(sum(said) + sum(right), 1),
        "yes_share": sum(said) / len(said),
    }
