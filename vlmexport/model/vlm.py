"""Vision encoder, projector and language model joined: the float model that every artifact is compared with."""

from __future__ import annotations

from collections.abc import Iterator
from typing import cast

import torch
from PIL import Image
from torch import nn
from transformers import DynamicCache

from vlmexport.checkpoint import Checkpoint, Spec
from vlmexport.checkpoint.expected import check_shapes
from vlmexport.checkpoint.layout import COMPONENTS
from vlmexport.checkpoint.tokenizer import Prompt
from vlmexport.model import plugins
from vlmexport.model.pixels import pixel_values


class VLM(nn.Module):
    """The five stages as methods. Parameter paths are ``<component>.<canonical name>``."""

    def __init__(self, spec: Spec) -> None:
        super().__init__()
        self.spec = spec
        self.vision = plugins.vision(spec.vision).build(spec.vision)
        self.projector = plugins.projector(spec.projector).build(spec.projector)
        self.language = plugins.language(spec.language).build(spec.language)

    def pixels(self, image: Image.Image) -> torch.Tensor:
        """RGB image → f32 [1, 3, height, width]."""
        return pixel_values(image, self.spec.vision)

    def features(self, pixels: torch.Tensor) -> torch.Tensor:
        """f32 [images, 3, height, width] → f32 [images, patches, vision width]."""
        return plugins.vision(self.spec.vision).features(self.vision, pixels, self.spec.vision)

    def tokens(self, features: torch.Tensor) -> torch.Tensor:
        """f32 [images, patches, vision width] → f32 [images, visual tokens, hidden]."""
        return cast(torch.Tensor, self.projector(features))

    def embed(self, ids: tuple[int, ...] | list[int]) -> torch.Tensor:
        """Token ids → f32 [1, len(ids), hidden]."""
        embedding = cast(nn.Embedding, self.language.get_input_embeddings())  # type: ignore[operator]
        return cast(torch.Tensor, embedding(torch.tensor([list(ids)], dtype=torch.long)))

    def prompt_embeds(self, prompt: Prompt, tokens: torch.Tensor) -> torch.Tensor:
        """Text before, visual tokens of one image, text after → f32 [1, sequence, hidden]."""
        return torch.cat(
            [self.embed(prompt.before), tokens.reshape(1, -1, tokens.shape[-1]), self.embed(prompt.after)], 1
        )

    def logits(self, embeds: torch.Tensor) -> torch.Tensor:
        """f32 [batch, sequence, hidden] → f32 [batch, sequence, vocabulary]."""
        return cast(torch.Tensor, self.language(inputs_embeds=embeds, use_cache=False).logits)

    def generate(self, embeds: torch.Tensor, max_new_tokens: int) -> Iterator[tuple[int, torch.Tensor]]:
        """Greedy decoding of one prompt.

        Yields:
            (token id, f32 [vocabulary] logits it was taken from), the end-of-sequence token included.
        """
        cache = DynamicCache()
        for _ in range(max_new_tokens):
            logits = self.language(inputs_embeds=embeds, past_key_values=cache, use_cache=True).logits[0, -1]
            token = int(logits.argmax())
            yield token, logits
            if token == self.spec.eos_token_id:
                return
            embeds = self.embed([token])


def load(checkpoint: Checkpoint, dtype: torch.dtype = torch.float32) -> VLM:
    """Build the float model and fill it from a checkpoint.

    Raises:
        CheckpointError: a tensor is missing, unknown or of another shape than the config says.
        Unsupported: an unknown vision encoder, projector or language model.
    """
    vlm = VLM(checkpoint.spec)
    for component in COMPONENTS:
        module = cast(nn.Module, getattr(vlm, component))
        found = checkpoint.tensors[component]
        expected = {name: tuple(value.shape) for name, value in module.state_dict().items()}
        if checkpoint.spec.language.tie_word_embeddings and component == "language":
            expected = {name: shape for name, shape in expected.items() if name != "lm_head.weight" or name in found}
        check_shapes(expected, found, f"{checkpoint.path} {component}")
        state = {name: tensor.torch().to(dtype) for name, tensor in found.items()}
        module.load_state_dict(state, assign=True, strict=False)
    if checkpoint.spec.language.tie_word_embeddings:
        vlm.language.tie_weights()  # type: ignore[operator]
    return vlm.eval().requires_grad_(False)
