"""Operations of the float model, counted on tensors that have shapes and no values."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch.utils.flop_counter import FlopCounterMode
from transformers import DynamicCache

from vlmexport.checkpoint.spec import Spec
from vlmexport.model.vlm import VLM
from vlmexport.processing.image import cutting

QUESTION = 40
"""Text tokens of a prompt: MobileVLM's system sentence and a short question."""

PICTURE = (1024, 1024)
"""Width and height of a picture that is cut as large as it is, into as many views as it takes."""


@dataclass(frozen=True)
class Operations:
    """Multiplications and additions of products and convolutions; the others are left out, as is usual.

    Attributes:
        vision, projector: of one image, which is cut into as many views as there can be.
        prompt: of the decoder, for the image's tokens and ``QUESTION`` of text.
        token: of the decoder, for one more token after that prompt; none of a classifier, which has answered by then.
    """

    vision: int
    projector: int
    prompt: int
    token: int
    visual_tokens: int
    views: int = 1

    @property
    def positions(self) -> int:
        """Length of the prompt."""
        return self.visual_tokens + QUESTION


@torch.inference_mode()
def count(spec: Spec) -> Operations:
    """Count the operations of a design.

    Raises:
        Unsupported: an unknown kind, or parts that do not fit.
    """
    vlm = VLM(spec).to("meta").eval().requires_grad_(False)
    side = spec.vision.image_size
    with FlopCounterMode(display=False) as vision:
        features = vlm.features(torch.empty(1, 3, side, side, device="meta"))
    with FlopCounterMode(display=False) as projector:
        each = vlm.tokens(features).shape[1]
    cut = cutting(spec.image_processor)
    views = cut.most(spec.image_processor) or len(cut.boxes(PICTURE, spec.image_processor))
    visual_tokens = views * each
    positions = visual_tokens + QUESTION
    if spec.language.generates:
        prompt, token = _decoder(vlm, positions, 0), _decoder(vlm, 1, positions)
    else:
        prompt, token = _classifier(vlm, positions), 0
    seen, joined = (views * counter.get_total_flops() for counter in (vision, projector))
    return Operations(seen, joined, prompt, token, visual_tokens, views)


def _classifier(vlm: VLM, length: int) -> int:
    with FlopCounterMode(display=False) as counter:
        vlm.language(inputs_embeds=torch.empty(1, length, vlm.spec.language.hidden_size, device="meta"))
    return int(counter.get_total_flops())


def _decoder(vlm: VLM, length: int, past: int) -> int:
    """Of ``length`` positions that follow ``past`` others; the output layer runs for the last alone."""
    language, cache = vlm.spec.language, DynamicCache()
    shape = (1, language.num_kv_heads, past, language.head_dim)
    if past:
        for layer in range(language.num_layers):
            cache.update(torch.empty(shape, device="meta"), torch.empty(shape, device="meta"), layer)
    with FlopCounterMode(display=False) as counter:
        vlm.language(
            inputs_embeds=torch.empty(1, length, language.hidden_size, device="meta"),
            attention_mask=torch.empty(1, 1, length, past + length, device="meta"),
            position_ids=torch.empty(1, length, dtype=torch.long, device="meta"),
            cache=cache,
            use_cache=True,
            logits_to_keep=1,
        )
    return int(counter.get_total_flops())
