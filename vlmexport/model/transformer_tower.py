"""Vision transformers as transformers has them: embeddings, a stack of like layers, features from a layer's output."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, cast

import torch
from torch import nn

from vlmexport.checkpoint.spec import VisionSpec
from vlmexport.errors import Unsupported


@dataclass(frozen=True)
class TransformerTower:
    """One kind of them: its classes, and what its kinds differ in.

    ``class_token``: a learned token stands before the patches. ``norm_before``: name of the norm before the first
    layer, None where there is none. ``unused_tensors``: how the names begin of
    what features do not need. ``options``: of the config, beside the sizes.
    """

    model: Callable[..., Any]
    config: Callable[..., Any]
    unused_tensors: tuple[str, ...]
    class_token: bool = False
    norm_before: str | None = None
    options: Mapping[str, Any] = field(default_factory=dict)

    def layers(self, spec: VisionSpec) -> str:
        """``encoder.layers.``"""
        return "encoder.layers."

    def unused(self, spec: VisionSpec) -> tuple[str, ...]:
        """What follows the last layer: features are hidden states."""
        return self.unused_tensors

    def build(self, spec: VisionSpec) -> nn.Module:
        """The model with parameters on the meta device, positions filled."""
        config = self.config(
            hidden_size=spec.hidden_size,
            intermediate_size=spec.intermediate_size,
            num_hidden_layers=spec.num_layers,
            num_attention_heads=spec.num_heads,
            image_size=spec.image_size,
            patch_size=spec.patch_size,
            hidden_act=spec.hidden_act,
            layer_norm_eps=spec.layer_norm_eps,
            attn_implementation="eager",
            **self.options,
        )
        with torch.device("meta"):
            module = self.model(config)
        positions = torch.arange(spec.grid**2 + self.class_token)[None]
        module.embeddings.register_buffer("position_ids", positions, persistent=False)
        return cast(nn.Module, module)

    def features(self, module: nn.Module, pixel_values: torch.Tensor, spec: VisionSpec) -> torch.Tensor:
        """Hidden states of the selected layer; layers after it are not computed.

        Args:
            pixel_values: f32 [views, 3, height, width].

        Returns:
            f32 [views, patches, vision width]; one more for the class token, first, with ``cls_patch``.

        Raises:
            Unsupported: features that this kind does not have.
        """
        if spec.select_feature != "patch" and not self.class_token:
            raise Unsupported(f"{spec.kind} has no class token, select_feature is {spec.select_feature!r}", "use patch")
        if spec.select_feature not in ("patch", "cls_patch"):
            raise Unsupported(f"mm_vision_select_feature {spec.select_feature!r} is unknown", "known: patch, cls_patch")
        tower = cast(Any, module)
        hidden = tower.embeddings(pixel_values)
        if self.norm_before is not None:
            hidden = getattr(tower, self.norm_before)(hidden)
        for layer in tower.encoder.layers[: spec.used_layers]:
            output = layer(hidden, attention_mask=None)
            hidden = output[0] if isinstance(output, tuple) else output
        first = int(self.class_token and spec.select_feature == "patch")
        return cast(torch.Tensor, hidden[:, first:] if first else hidden)
