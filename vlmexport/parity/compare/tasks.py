"""What answers are worth: the scores of both models, and how certain the loss is."""

from __future__ import annotations

from collections.abc import Sequence

from vlmexport.measures.captions import bleu, cider_d
from vlmexport.measures.intervals import paired_drop, share
from vlmexport.measures.logits import agreement
from vlmexport.measures.scores import SCORES, f1, says_yes
from vlmexport.parity.result import Answer


def answer_metrics(rows: Sequence[Answer]) -> dict[str, float]:
    """agreement and equal (a share), each with its 95 % interval, and what the tasks of the answers that are known
    measure.

    ``reference_`` stands before what the float model reaches. task_drop is the loss of accuracy, or of CIDEr-D where
    there are captions only, with task_drop_low and task_drop_high, its paired 95 % interval.
    """
    metrics = agreement(sum(row.lost for row in rows), sum(row.decisions for row in rows))
    metrics |= share("equal", sum(row.equal for row in rows), len(rows))
    captions = [row for row in rows if row.expected and row.task == "caption"]
    short = [row for row in rows if row.expected and row.task != "caption"]
    if captions:
        metrics |= _captions(captions)
    if short:
        metrics |= _short(short)
    return metrics


def _short(rows: Sequence[Answer]) -> dict[str, float]:
    reference = [SCORES[row.task](row.reference, row.expected) for row in rows]
    bundle = [SCORES[row.task](row.bundle, row.expected) for row in rows]
    metrics = {"accuracy": sum(bundle) / len(rows), "reference_accuracy": sum(reference) / len(rows)}
    polar = [row for row in rows if row.task == "yes_no"]
    if polar:
        right = [says_yes(row.expected[0]) for row in polar]
        metrics |= f1([says_yes(row.bundle) for row in polar], right)
        metrics["reference_f1"] = f1([says_yes(row.reference) for row in polar], right)["f1"]
    return metrics | _drop(reference, bundle)


def _captions(rows: Sequence[Answer]) -> dict[str, float]:
    expected = [row.expected for row in rows]
    reference, bundle = [row.reference for row in rows], [row.bundle for row in rows]
    scores, reference_scores = cider_d(bundle, expected), cider_d(reference, expected)
    metrics = bleu(bundle, expected) | {"cider_d": float(scores.mean())}
    metrics |= {f"reference_{name}": value for name, value in bleu(reference, expected).items()}
    metrics["reference_cider_d"] = float(reference_scores.mean())
    return metrics | _drop(reference_scores.tolist(), scores.tolist())


def _drop(reference: Sequence[float], bundle: Sequence[float]) -> dict[str, float]:
    names = ("task_drop", "task_drop_low", "task_drop_high")
    return dict(zip(names, paired_drop(reference, bundle), strict=True))
