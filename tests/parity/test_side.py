"""One runtime beside the float model's values."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from tests.onnx_bundles import sample
from vlmexport.parity.compare.one_runtime import Side
from vlmexport.parity.reference.values import ImageValues, Live, QuestionValues
from vlmexport.runtime.reference import ReferenceRuntime
from vlmexport.source.checkpoint import Checkpoint


@pytest.fixture(scope="module")
def spoken(tiny: Checkpoint) -> tuple[ReferenceRuntime, ImageValues, QuestionValues]:
    """A float model, and what it makes of ``sample(0)``."""
    runtime = ReferenceRuntime(tiny)
    image = Live(runtime).image(sample(0))
    return runtime, image, Live(runtime).question(sample(0), [image.seen])


Spoken = tuple[ReferenceRuntime, ImageValues, QuestionValues]


def beside(spoken: Spoken, question: QuestionValues) -> Side:
    """The same model as a bundle, against other values of the question."""
    runtime, image, _ = spoken
    side = Side(runtime)
    side.image(sample(0).image_id, sample(0).image(), image)
    side.question(sample(0), question, [image.tokens])
    return side


@pytest.mark.parametrize("margin", [0.0, 0.5, 5.0])
def test_a_parting_is_weighed_by_what_the_float_model_preferred(spoken: Spoken, margin: float) -> None:
    """What follows it is of another text, and no decision."""
    own, at = spoken[2], 2
    other = 7 if own.answer[at] != 7 else 8
    logits = own.logits.copy()
    row = logits[0, at - len(own.answer)]
    row[other] = row[own.answer[at]] + margin
    answer = [*own.answer[:at], other, *own.answer[at + 1 :]]
    side = beside(spoken, replace(own, answer=answer, logits=logits))
    (found,) = side.measured.answers["chained"]
    assert (found.first_difference, found.decisions) == (at, at + 1)
    assert found.lost == pytest.approx(np.tanh(margin / 2), abs=1e-6)
    assert ("answer", "chained") not in side.measured.errors


@pytest.mark.parametrize("longer", [False, True])
def test_another_end_is_an_error_not_a_choice(spoken: Spoken, longer: bool) -> None:
    """One answer is the beginning of the other: an end-of-sequence token is missing, or is one too many."""
    own = spoken[2]
    answer = [*own.answer, 5] if longer else own.answer[:-2]
    logits = np.concatenate([own.logits, own.logits[:, -1:]], 1) if longer else own.logits[:, :-2]
    side = beside(spoken, replace(own, answer=answer, logits=logits))
    expected = "ends with token" if longer else "goes on behind token"
    for mode in ("local", "chained"):
        assert expected in side.measured.errors["answer", mode]
        (found,) = side.measured.answers[mode]
        assert (found.equal, found.lost) == (False, 1.0)


def test_logits_are_those_over_the_float_models_answer(tiny: Checkpoint) -> None:
    """Where the answers part, what decoding has computed on its way is of another text."""
    runtime, asked = ReferenceRuntime(tiny), sample(0)
    image: ImageValues = Live(runtime).image(asked)
    own = Live(runtime).question(asked, [image.seen])
    other = [(token + 1) % tiny.spec.language.vocab_size for token in own.answer]
    logits = runtime.logits(own.prompt.answered(other[:-1]), [image.tokens], len(other))
    side = Side(runtime)
    side.image(asked.image_id, asked.image(), image)
    side.question(asked, QuestionValues(own.prompt, other, own.margins, "", logits), [image.tokens])
    for mode in ("local", "chained"):
        (answer,) = side.measured.answers[mode]
        assert (answer.equal, answer.first_difference) == (False, 0)
        assert side.measured.logits[mode].metrics()["max_abs"] == pytest.approx(0, abs=1e-5)
