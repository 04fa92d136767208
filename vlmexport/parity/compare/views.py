"""What a budget of views costs by itself: the float model under it, beside itself with all views of a picture."""

from __future__ import annotations

from collections.abc import Sequence

from vlmexport.calibrate import Sample
from vlmexport.errors import VlmExportError
from vlmexport.measures.logits import LogitsMeasure
from vlmexport.parity.compare.answers import answered
from vlmexport.parity.compare.measured import Measured
from vlmexport.parity.reference.values import Live, QuestionValues
from vlmexport.parity.result import ViewsResult
from vlmexport.processing.image import cutting
from vlmexport.processing.prompt import Seen
from vlmexport.runtime import Runtime
from vlmexport.runtime.stages import F32
from vlmexport.source.checkpoint import Checkpoint

_STAGES = ("logits", "answer")


class WithoutBudget:
    """Asks the float model with all views what it was asked under a budget.

    Args:
        model: it, with all views.

    Attributes:
        measured: logits and answers, chained; the first error ends it.
    """

    def __init__(self, model: Runtime) -> None:
        self._model, self._live = model, Live(model)
        self._seen: dict[str, Seen[F32]] = {}
        self.measured = Measured()

    def question(self, sample: Sample, own: QuestionValues, tokens: Sequence[F32]) -> None:
        """Compare one question.

        Args:
            own: what the model makes of it under the budget.
            tokens: its visual tokens there, of each image.
        """
        if self.measured.errors:
            return
        self.measured.samples += 1
        try:
            whole = self._live.question(sample, [self._image(one) for one in sample.alone()])
            logits = own.logits
            if own.answer != whole.answer:  # the weights are the same: prompt and tokens make it the other model
                prompt = own.prompt.answered(whole.answer[:-1])
                logits = self._model.logits(prompt, tokens, len(whole.answer))
        except VlmExportError as error:
            self.measured.errors |= {(stage, "chained"): error.what for stage in _STAGES}
            return
        measure = self.measured.logits.setdefault("chained", LogitsMeasure())
        divergence = float(measure.add(whole.logits, logits, whole.answer).mean())
        self.measured.answers["chained"].append(answered(sample, whole, own.answer, own.text, divergence))

    def forget(self, image: str) -> None:
        """There are no more questions about an image."""
        self._seen.pop(image, None)

    def _image(self, sample: Sample) -> Seen[F32]:
        if sample.image_id not in self._seen:
            self._seen[sample.image_id] = self._live.image(sample).seen
        return self._seen[sample.image_id]


def views_result(measured: Measured | None, checkpoint: Checkpoint) -> ViewsResult | None:
    """What a check tells of it; None where there is no budget."""
    if measured is None or checkpoint.budget is None:
        return None
    own, known = checkpoint.spec.image_processor, checkpoint.budget.without
    stages = [stage for stage in measured.stages() if stage.mode == "chained" and stage.stage in _STAGES]
    most, without = (cutting(spec).most(spec) for spec in (own, known))
    assert most is not None
    return ViewsResult(most=most, without=without, samples=measured.samples, stages=stages)
