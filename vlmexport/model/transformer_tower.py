"""Vision transformers as transformers has them: embeddings, a stack of like layers, features from a layer's output."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from importlib import import_module
from typing import TYPE_CHECKING, Any, cast

from vlmexport.checkpoint.spec import VisionSpec
from vlmexport.errors import Unsupported

if TYPE_CHECKING:
    import torch
    from torch import nn


@dataclass(frozen=True)
class TransformerTower:
    """One kind of them: transformers' names of its classes, and what its kinds differ in. torch and transformers are
    imported where it is built: a GGUF export asks a tower what it is, and has no use for them.

    ``class_token``: a learned token stands before the patches. ``norm_before``: name of the norm before the first
    layer, None where there is none; ``norm_after``: of the norm that features go through behind the selected one.
    ``unused_tensors``: how the names begin of what features do not need. ``options``: of the config, beside the sizes.
    ``places``: of a number of patches along one side, which row and column of the table of positions each has; None
    where a table is of as many.
    """

    model: str
    config: str
    unused_tensors: tuple[str, ...]
    class_token: bool = False
    norm_before: str | None = None
    norm_after: str | None = None
    places: Callable[[int], torch.Tensor] | None = None
    options: Mapping[str, Any] = field(default_factory=dict)

    @property
    def gguf_inside(self) -> dict[str, str]:
        """Path of a module in a layer → its name in a block of an mmproj."""
        return {
            "self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k", "self_attn.v_proj": "attn_v",
            "self_attn.out_proj": "attn_out", "layer_norm1": "ln1", "layer_norm2": "ln2", "mlp.fc1": "ffn_up",
            "mlp.fc2": "ffn_down",
        }  # fmt: skip

    def layers(self, spec: VisionSpec) -> str:
        """``encoder.layers.``"""
        return "encoder.layers."

    def unused(self, spec: VisionSpec) -> tuple[str, ...]:
        """What features do not go through."""
        return self.unused_tensors

    def build(self, spec: VisionSpec) -> nn.Module:
        """The model with parameters on the meta device, positions filled; what else the published section says goes
        into its config."""
        import torch

        transformers = import_module("transformers")
        sizes = {
            "hidden_size": spec.hidden_size,
            "intermediate_size": spec.intermediate_size,
            "num_hidden_layers": spec.num_layers,
            "num_attention_heads": spec.num_heads,
            "image_size": spec.image_size,
            "patch_size": spec.patch_size,
            "hidden_act": spec.hidden_act,
            "layer_norm_eps": spec.layer_norm_eps,
            "attn_implementation": "eager",
        }
        config = getattr(transformers, self.config)(**{**spec.section, **sizes, **self.options})
        with torch.device("meta"):
            module = getattr(transformers, self.model)(config)
        positions = torch.arange(spec.grid**2 + self.class_token)
        if self.places is not None:
            places = self.places(spec.grid)
            positions = (places[:, None] * spec.grid + places).flatten()
        module.embeddings.register_buffer("position_ids", positions[None], persistent=False)
        return cast("nn.Module", module)

    def features(self, module: nn.Module, pixel_values: torch.Tensor, spec: VisionSpec) -> torch.Tensor:
        """Hidden states of the selected layer, through the last norm of kinds that have it so; layers after it are not
        computed.

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
        if self.norm_after is not None:
            hidden = getattr(tower, self.norm_after)(hidden)
        first = int(self.class_token and spec.select_feature == "patch")
        return cast("torch.Tensor", hidden[:, first:] if first else hidden)
