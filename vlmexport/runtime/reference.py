"""The float model in PyTorch: what every artifact is compared with."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from copy import copy

import torch
from PIL import Image

from vlmexport.model import load, plugins
from vlmexport.model.decoder_inputs import DecoderInputs
from vlmexport.processing.image import PIXELS, ProcessedImage, process
from vlmexport.processing.messages import Messages
from vlmexport.processing.prompt import Prompt, Views
from vlmexport.runtime.stages import F32, Features, Token
from vlmexport.source.checkpoint import Checkpoint


class ReferenceRuntime:
    """The five stages of a checkpoint in float32.

    Args:
        resident: as in ``model.load``, and so is ``share``.
    """

    notes: tuple[str, ...] = ()

    def __init__(self, checkpoint: Checkpoint, resident: bool | None = None, share: float = 0.5) -> None:
        self.name = f"torch {torch.__version__} float32"
        self.stop_token_ids = checkpoint.spec.stop_token_ids
        self.classes = checkpoint.spec.language.classes
        self._checkpoint = checkpoint
        self.context = checkpoint.spec.language.max_positions
        self._image_processor = checkpoint.spec.image_processor
        self._vlm = load(checkpoint, resident=resident, share=share)

    def without_budget(self) -> ReferenceRuntime | None:
        """The same with all views of a picture, of the same weights in memory; None where no budget bounds them."""
        if self._checkpoint.budget is None:
            return None
        found = copy(self)
        found._image_processor = self._checkpoint.budget.without
        return found

    def pixels(self, image: Image.Image) -> ProcessedImage:
        """RGB image → its views."""
        return process(image, self._image_processor, plugins.token_grid(self._checkpoint.spec.projector))

    @torch.inference_mode()
    def features(self, image: ProcessedImage) -> Features:
        """What the encoder makes of each view."""
        parts = [self._vlm.features(torch.from_numpy(part[PIXELS])) for part in image.slices()]
        return Features(tuple(view.contiguous().numpy() for part in parts for view in part))

    @torch.inference_mode()
    def tokens(self, features: Features) -> F32:
        """[visual tokens, hidden]."""
        made = [self._vlm.tokens(torch.from_numpy(view)[None])[0] for view in features.views]
        return torch.cat(made).numpy()

    def prompt(self, messages: Messages, images: Sequence[Views]) -> Prompt:
        """Token ids of a conversation."""
        return self._checkpoint.prompts.prompt(messages, images)

    @torch.inference_mode()
    def logits(self, prompt: Prompt, tokens: Iterable[F32], num_logits_to_keep: int) -> F32:
        """[1, num_logits_to_keep, vocabulary], or [1, 1, classes]."""
        prompt.room(self.context)
        return self._vlm.logits(self._inputs(prompt, tokens), num_logits_to_keep).numpy()

    def generate(
        self, prompt: Prompt, tokens: Iterable[F32], max_new_tokens: int, *, ignore_eos: bool = False
    ) -> Iterator[Token]:
        """Greedy decoding up to a token that ends the answer, which is included, or past it."""
        return (token for token, _ in self.steps(prompt, tokens, max_new_tokens, ignore_eos=ignore_eos))

    @torch.inference_mode()
    def steps(
        self, prompt: Prompt, tokens: Iterable[F32], max_new_tokens: int, *, ignore_eos: bool = False
    ) -> Iterator[tuple[Token, F32]]:
        """``generate``, each token with the logits that it was taken from."""
        max_new_tokens = min(max_new_tokens, prompt.room(self.context))
        for token, logits in self._vlm.generate(self._inputs(prompt, tokens), max_new_tokens, ignore_eos):
            best = torch.topk(logits[-1], 2).values
            yield Token(token, float(best[0] - best[1])), logits.numpy()

    def decode(self, ids: list[int]) -> str:
        """Text of token ids, or of a class."""
        if self.classes:
            return " ".join(self.classes[i] for i in ids)
        return self._checkpoint.tokenizer.decode(ids).strip()

    def _inputs(self, prompt: Prompt, tokens: Iterable[F32]) -> DecoderInputs:
        return self._vlm.inputs(prompt, map(torch.from_numpy, tokens))

    def close(self) -> None:
        """Nothing to release."""
