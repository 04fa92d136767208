"""One answer beside the float model's: where they part, and what that loses."""

from __future__ import annotations

import numpy as np

from vlmexport.calibrate import Sample
from vlmexport.measures.logits import preference
from vlmexport.parity.reference.values import QuestionValues
from vlmexport.parity.result import Answer


def answered(sample: Sample, expected: QuestionValues, ids: list[int], text: str, divergence: float | None) -> Answer:
    """The row of an answer.

    Args:
        ids: its tokens.
        divergence: mean KL divergence over the positions of the float model's answer, in nats.
    """
    first, margins = _first_difference(ids, expected.answer), expected.margins
    return Answer(
        sample=sample.id, question=sample.question, expected=list(sample.answers), task=sample.task,
        reference=expected.text, bundle=text, equal=first is None, first_difference=first,
        margin=margins[first] if first is not None and first < len(margins) else None,
        decisions=len(ids) if first is None else first + 1, lost=_lost(ids, first, expected), kld=divergence,
    )  # fmt: skip


def other_end(ids: list[int], answer: list[int]) -> str | None:
    """Of two answers of which one is the beginning of the other: not a choice between tokens, another end."""
    if _first_difference(ids, answer) != min(len(ids), len(answer)):
        return None
    if len(ids) < len(answer):
        return f"the answer ends with token {ids[-1]}, behind which the float model goes on"
    return f"the answer goes on behind token {answer[-1]}, with which the float model's ends"


def _first_difference(ids: list[int], answer: list[int]) -> int | None:
    """Index of the first token that differs, or that one of them lacks."""
    length = max(len(ids), len(answer))
    return next((i for i in range(length) if ids[i : i + 1] != answer[i : i + 1]), None)


def _lost(ids: list[int], first: int | None, expected: QuestionValues) -> float:
    """How much the float model preferred its token to the other's, where the answers part; 1 where one only ends."""
    answer = expected.answer
    if first is None:
        return 0.0
    if first == min(len(ids), len(answer)):
        return 1.0
    logits = expected.logits[0, first - len(answer)]
    return float(preference(logits[None], np.array([answer[first]]), np.array([ids[first]]))[0])
