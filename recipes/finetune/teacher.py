"""A model whose answers are imitated."""

from __future__ import annotations

import torch
from batches import Batch, answer_logits
from frozen import of_tower
from lessons import Lesson
from settings import Settings

from vlmexport.errors import UsageError
from vlmexport.model import load
from vlmexport.pipeline import open_whole
from vlmexport.source.checkpoint import Checkpoint


class Teacher:
    """It reads the student's tokens, and makes its own features of the pictures.

    Raises:
        UsageError: it has another tokenizer or prompt.
    """

    def __init__(self, settings: Settings, student: Checkpoint) -> None:
        assert settings.teacher is not None
        checkpoint = open_whole(settings.teacher)
        theirs, ours = checkpoint.tokenizer, student.tokenizer
        if theirs.texts() != ours.texts() or checkpoint.spec.prompt != student.spec.prompt:
            raise UsageError(
                f"{settings.teacher} reads other tokens than {settings.model}", "a teacher needs the same tokenizer"
            )
        self.vlm = load(checkpoint)
        self._features = of_tower(self.vlm, checkpoint, settings.features, settings.data)

    @torch.no_grad()
    def logits(self, some: list[Lesson], batch: Batch) -> torch.Tensor:
        """f32 [answers, vocabulary]."""
        return answer_logits(self.vlm, self._features(some), batch)
