"""CIDEr-D and BLEU against values worked out by hand, and what must hold for any captions."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vlmexport.measures.captions import bleu, cider_d, words

TEXT = st.lists(st.sampled_from(["a", "cat", "dog", "sits", "on", "the", "mat"]), min_size=1, max_size=8).map(" ".join)


def test_words() -> None:
    assert words("A man's hat, 3 cats!") == ["a", "man", "s", "hat", "3", "cats"]


def test_cider_d_by_hand() -> None:
    """Two images of one reference: "a cat" and "a dog". In both is "a", so it weighs nothing.

    "a cat": unigrams and bigrams cosine 1, none longer: (1 + 1 + 0 + 0) / 4 · 10. "a cat cat" for the same: unigrams
    min(2, 1)·1 / (2·1) = 1/2; of its bigrams (a cat) and (cat cat), the second is in no reference and weighs log 2,
    too, so 1 / √2; the length is one more, which costs exp(-1 / 72).
    """
    references = [["a cat"], ["a dog"]]
    assert cider_d(["a cat", "a cat"], references) == pytest.approx([5.0, 0.0])
    expected = 10 * (1 / 2 + 1 / math.sqrt(2)) / 4 * math.exp(-1 / 72)
    assert cider_d(["a cat cat", "cow"], references) == pytest.approx([expected, 0.0])


def test_several_references_are_averaged() -> None:
    references = [["one red bird sings", "nothing like it"], ["two green cats sleep", "so be it"]]
    assert cider_d(["one red bird sings", "two green cats sleep"], references) == pytest.approx([5.0, 5.0])


def test_one_image_scores_nothing() -> None:
    assert cider_d(["a cat"], [["a cat"]]) == pytest.approx([0.0])


@given(st.lists(st.tuples(TEXT, st.lists(TEXT, min_size=1, max_size=3)), min_size=2, max_size=5))
def test_cider_d_does_not_depend_on_any_order(pairs: list[tuple[str, list[str]]]) -> None:
    captions, references = [caption for caption, _ in pairs], [texts for _, texts in pairs]
    scores = cider_d(captions, references)
    assert all(0 <= score <= 10 + 1e-9 for score in scores)
    turned = cider_d(captions[::-1], [texts[::-1] for texts in references[::-1]])
    assert turned[::-1] == pytest.approx(scores)


def test_bleu_by_hand() -> None:
    """7 times "the" against "the cat is on the mat" (Papineni et al. 2002): 2 of 7 clipped, no bigram."""
    found = bleu(["the the the the the the the"], [["The cat is on the mat.", "There is a cat on the mat."]])
    assert found["bleu1"] == pytest.approx(2 / 7)
    assert found["bleu2"] == 0


def test_bleu_takes_any_number_of_references() -> None:
    found = bleu(["a b c d", "e f g h"], [["a b c d", "x"], ["e f g h"]])
    assert found == pytest.approx({"bleu1": 1, "bleu2": 1, "bleu3": 1, "bleu4": 1})
