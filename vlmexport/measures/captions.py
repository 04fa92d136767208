"""Captions scored: BLEU-1 to BLEU-4 (sacrebleu) and CIDEr-D, not PTB-tokenised: words are letters and digits.

Numbers are therefore not those of papers, whose tokenizer needs Java; they compare two models on the same captions.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Callable, Sequence
from itertools import zip_longest

import numpy as np
import numpy.typing as npt

Grams = Counter[tuple[str, ...]]
_ORDERS = 4
_SIGMA = 6.0


def words(text: str) -> list[str]:
    """Lower-case words without punctuation."""
    return re.findall(r"[^\W_]+", text.lower())


def bleu(captions: Sequence[str], references: Sequence[Sequence[str]]) -> dict[str, float]:
    """bleu1 … bleu4 of the whole set, 0 to 1, without smoothing.

    Args:
        references: one or more of each caption.
    """
    from sacrebleu.metrics.bleu import BLEU

    spoken = [" ".join(words(caption)) for caption in captions]
    columns = [
        [None if text is None else " ".join(words(text)) for text in column] for column in zip_longest(*references)
    ]
    found = {}
    for order in range(1, _ORDERS + 1):
        metric = BLEU(max_ngram_order=order, tokenize="none", smooth_method="none")
        # None where a caption has fewer references than another: taken, whatever sacrebleu's types say.
        found[f"bleu{order}"] = metric.corpus_score(spoken, columns).score / 100  # type: ignore[arg-type]
    return found


def cider_d(captions: Sequence[str], references: Sequence[Sequence[str]]) -> npt.NDArray[np.float64]:
    """CIDEr-D (Vedantam et al. 2015) of each caption, 0 to 10: [captions].

    n-grams are weighted by how few images' references hold them, counts are clipped to the reference's, and captions
    of another length are punished (σ = 6). A set of one image scores 0: nothing is rare in it.
    """
    of_references = [[_grams(words(text)) for text in texts] for texts in references]
    holding = Counter(gram for grams in of_references for gram in set().union(*grams))
    images = math.log(len(references))

    def weight(gram: tuple[str, ...]) -> float:
        return images - math.log(max(1, holding[gram]))

    return np.array(
        [
            10 * np.mean([_similarity(_grams(words(caption)), grams, weight) for grams in own])
            for caption, own in zip(captions, of_references, strict=True)
        ]
    )


def _grams(text: list[str]) -> Grams:
    return Counter(
        tuple(text[start : start + order]) for order in range(1, _ORDERS + 1) for start in range(len(text) - order + 1)
    )


def _similarity(caption: Grams, reference: Grams, weight: Callable[[tuple[str, ...]], float]) -> float:
    """Of one caption and one reference: the clipped cosine of their weighted n-grams, averaged over the orders."""
    length, other = (sum(count for gram, count in grams.items() if len(gram) == 1) for grams in (caption, reference))
    products, ours, theirs = np.zeros((3, _ORDERS))
    for gram, count in caption.items():
        value = weight(gram) ** 2
        ours[len(gram) - 1] += value * count**2
        products[len(gram) - 1] += value * min(count, reference[gram]) * reference[gram]
    for gram, count in reference.items():
        theirs[len(gram) - 1] += (weight(gram) * count) ** 2
    norms = np.sqrt(ours * theirs)
    cosines = np.divide(products, norms, out=np.zeros(_ORDERS), where=norms > 0)
    return float(cosines.mean() * math.exp(-((length - other) ** 2) / (2 * _SIGMA**2)))
