"""One runtime beside the float model's values."""

from __future__ import annotations

import pytest

from tests.onnx_bundles import sample
from vlmexport.checkpoint import Checkpoint
from vlmexport.checkpoint.tokenizer import Prompt
from vlmexport.parity.expected import ImageValues, Live, QuestionValues
from vlmexport.parity.side import Side
from vlmexport.runtime.reference import ReferenceRuntime


def test_logits_are_those_over_the_float_models_answer(tiny: Checkpoint) -> None:
    """Where the answers part, what decoding has computed on its way is of another text."""
    runtime, asked = ReferenceRuntime(tiny), sample(0)
    image: ImageValues = Live(runtime).image(asked)
    own = Live(runtime).question(asked, image.tokens)
    other = [(token + 1) % tiny.spec.language.vocab_size for token in own.answer]
    forced = Prompt(own.prompt.text, own.prompt.before, (*own.prompt.after, *other[:-1]))
    logits = runtime.logits(forced, image.tokens, len(other))
    side = Side(runtime)
    side.image(asked.image_id, asked.image(), image)
    side.question(asked, QuestionValues(own.prompt, other, own.margins, "", logits), image.tokens)
    for mode in ("local", "chained"):
        (answer,) = side.measured.answers[mode]
        assert (answer.equal, answer.first_difference) == (False, 0)
        assert side.measured.logits[mode].metrics()["max_abs"] == pytest.approx(0, abs=1e-5)
