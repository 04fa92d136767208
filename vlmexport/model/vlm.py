"""Vision encoder, projector and language model joined: the float model that every artifact is compared with."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from typing import cast

import torch
from PIL import Image
from torch import nn
from torch.nn import functional
from transformers import DynamicCache, PreTrainedModel

from vlmexport.checkpoint.spec import Spec
from vlmexport.model import plugins
from vlmexport.model.decoder_inputs import DecoderInputs
from vlmexport.model.weights import available_memory, fill
from vlmexport.processing.image import PIXELS, ProcessedImage, process
from vlmexport.processing.prompt import Prompt, Seen
from vlmexport.source.checkpoint import COMPONENTS, Checkpoint
from vlmexport.source.shapes import check_language, check_shapes
from vlmexport.threads import operator_threads


class VLM(nn.Module):
    """The five stages as methods. Parameter paths are ``<component>.<canonical name>``.

    Args:
        components: those to build; the stages of the others cannot be run.
    """

    vision: nn.Module
    projector: nn.Module
    language: nn.Module

    def __init__(self, spec: Spec, components: tuple[str, ...] = COMPONENTS) -> None:
        super().__init__()
        self.spec = spec
        self.components = components
        for component in components:
            part = getattr(spec, component)
            setattr(self, component, getattr(plugins, component)(part).build(part))

    def processed(self, image: Image.Image) -> ProcessedImage:
        """RGB image → its views."""
        return process(image, self.spec.image_processor, plugins.token_grid(self.spec.projector))

    def pixels(self, image: Image.Image) -> torch.Tensor:
        """RGB image → f32 [views, 3, height, width]."""
        return torch.from_numpy(self.processed(image).pixel_values)

    def features(self, pixels: torch.Tensor) -> torch.Tensor:
        """f32 [views, 3, height, width] → f32 [views, patches, vision width]."""
        return plugins.vision(self.spec.vision).features(self.vision, pixels, self.spec.vision)

    def tokens(self, features: torch.Tensor) -> torch.Tensor:
        """f32 [views, patches, vision width] → f32 [views, visual tokens, hidden]."""
        return cast(torch.Tensor, self.projector(features))

    def see(self, image: Image.Image) -> Seen[torch.Tensor]:
        """RGB image → the visual tokens of all its views. Memory does not grow with their number."""
        found = self.processed(image)
        views = [torch.from_numpy(part[PIXELS]) for part in found.slices()]
        tokens = [self.tokens(self.features(part)).flatten(0, 1) for part in views]
        return Seen(torch.cat(tokens), found.views)

    def embed(self, ids: tuple[int, ...] | list[int]) -> torch.Tensor:
        """Token ids → f32 [1, len(ids), hidden]."""
        table = cast(nn.Embedding, self.language.get_input_embeddings()).weight  # type: ignore[operator]
        return functional.embedding(torch.tensor([list(ids)], dtype=torch.long), table).float()

    def inputs(self, prompt: Prompt, tokens: Iterable[torch.Tensor]) -> DecoderInputs:
        """A prompt and the visual tokens [visual tokens, hidden] of each image → what the language model reads."""
        parts = prompt.parts(tokens)
        embeds = torch.cat([self.embed(part) if isinstance(part, tuple) else part[None] for part in parts], 1)
        return DecoderInputs(embeds, torch.from_numpy(prompt.is_image))

    def logits(self, inputs: DecoderInputs, num_logits_to_keep: int) -> torch.Tensor:
        """f32 [1, num_logits_to_keep, vocabulary], or [1, 1, classes].

        Args:
            num_logits_to_keep: how many positions at the end are wanted; 0 for all.
        """
        given = inputs.arguments()
        if not self.spec.language.generates:
            return cast(torch.Tensor, self.language(**given).logits)[:, None]
        return cast(torch.Tensor, self.language(**given, use_cache=False, logits_to_keep=num_logits_to_keep).logits)

    def generate(
        self, inputs: DecoderInputs, max_new_tokens: int, ignore_eos: bool = False
    ) -> Iterator[tuple[int, torch.Tensor]]:
        """Greedy decoding of one prompt, up to a token that ends the answer or past it.

        Yields:
            (token id, f32 [1, vocabulary] logits that it was taken from), the last token included. Of a
            classifier: its class, once, and f32 [1, classes].
        """
        if not self.spec.language.generates:
            logits = self.logits(inputs, 1)[0]
            yield int(logits[-1].argmax()), logits
            return
        cache, given = DynamicCache(), inputs.arguments()
        for _ in range(max_new_tokens):
            logits = self.language(**given, cache=cache, use_cache=True, logits_to_keep=1).logits[0]
            token = int(logits[-1].argmax())
            yield token, logits
            if token in self.spec.stop_token_ids and not ignore_eos:
                return
            given = {"inputs_embeds": self.embed([token])}


def load(
    checkpoint: Checkpoint,
    *,
    components: tuple[str, ...] = COMPONENTS,
    resident: bool | None = None,
    share: float = 0.5,
) -> VLM:
    """Build the float model, or some of its components, and fill it from a checkpoint.

    Args:
        resident: weights as float32 in memory, or mapped from the file and converted at every use, with equal
            results. None: in memory, component by component, as far as ``share`` of the available memory reaches.

    Raises:
        CheckpointError: a tensor is missing, unknown or of another shape than the config says.
        Unsupported: an unknown vision encoder, projector or language model.
    """
    _limit_threads()
    vlm = VLM(checkpoint.spec, components)
    budget = int(available_memory() * share)
    for component in components:
        module = cast(nn.Module, getattr(vlm, component))
        found = checkpoint.tensors[component]
        expected = {name: tuple(value.shape) for name, value in module.state_dict().items()}
        if component == "language":
            check_language(checkpoint.spec.language, expected, found, str(checkpoint.path))
        else:
            check_shapes(expected, found, f"{checkpoint.path} {component}")
        size = 4 * checkpoint.parameters(component)
        stays = size <= budget if resident is None else resident
        budget -= size if stays else 0
        fill(module, found, stays)
        if component == "language" and checkpoint.spec.language.tie_word_embeddings:
            module.tie_weights()  # type: ignore[operator]
        if isinstance(module, PreTrainedModel):
            # One operator: a tower takes an eighth of the time, and attention weights [heads, positions, positions] are
            # never in memory. A sketch, which graphs are traced from, stays as it is built.
            module.set_attn_implementation("sdpa")
    return vlm.eval().requires_grad_(False)


def _limit_threads() -> None:
    """torch counts the cores of the machine, and knows no quota of a container. ``OMP_NUM_THREADS`` it heeds itself."""
    if not os.environ.get("OMP_NUM_THREADS") and torch.get_num_threads() > operator_threads():
        torch.set_num_threads(operator_threads())
