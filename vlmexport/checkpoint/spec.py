"""What a checkpoint is, told without its weights: one Spec from every layout."""

from __future__ import annotations

from dataclasses import dataclass, field
from math import isqrt
from typing import Any

from vlmexport.checkpoint.rope import RopeScaling


@dataclass(frozen=True)
class VisionSpec:
    """A vision encoder. ``kind`` names the module in ``model/vision``.

    ``variant`` says which model of that kind it is where sizes do not tell (timm's name, or the encoder that ``s2``
    wraps). ``patch_size`` is the number of pixels along one side of what becomes one feature: of a convolutional
    encoder, the stride of its last map. One whose layers are no stack of like layers says 0 layers, and layer 0.
    """

    kind: str
    image_size: int
    patch_size: int
    hidden_size: int
    intermediate_size: int
    num_layers: int
    num_heads: int
    hidden_act: str = "quick_gelu"
    layer_norm_eps: float = 1e-5
    image_mean: tuple[float, float, float] = (0.48145466, 0.4578275, 0.40821073)
    image_std: tuple[float, float, float] = (0.26862954, 0.26130258, 0.27577711)
    select_layer: int = -2
    select_feature: str = "patch"
    aspect_ratio: str = "pad"
    variant: str = ""

    @property
    def grid(self) -> int:
        """Patches along one side."""
        return self.image_size // self.patch_size

    @property
    def num_patches(self) -> int:
        """Length of the features stage: patches, plus one where the class token is kept."""
        return self.grid**2 + (self.select_feature == "cls_patch")

    @property
    def used_layers(self) -> int:
        """Transformer layers that ``select_layer`` leaves in use (hidden_states counts the embeddings as 0)."""
        return self.select_layer if self.select_layer >= 0 else self.num_layers + 1 + self.select_layer


@dataclass(frozen=True)
class ProjectorSpec:
    """A projector. ``kind`` is the checkpoint's ``mm_projector_type``."""

    kind: str
    in_features: int
    out_features: int
    in_tokens: int

    @property
    def grid(self) -> int:
        """Side of the square of input tokens."""
        return isqrt(self.in_tokens)


@dataclass(frozen=True)
class LanguageSpec:
    """A language model. ``kind`` names the module in ``model/language``.

    ``rms_norm_eps`` is the epsilon of its norms, RMSNorm or not. ``rope_theta`` is 0 where positions are learned:
    ``max_positions`` are then the rows of their table. ``classes`` are the answers of one that chooses among them, as
    text; one that generates its answers has none. ``section`` is what else the config says in the terms of its
    class: the float model is built from it too.
    """

    kind: str
    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    rms_norm_eps: float
    rope_theta: float
    max_positions: int
    tie_word_embeddings: bool
    hidden_act: str = "silu"
    rope_scaling: RopeScaling | None = None
    classes: tuple[str, ...] = ()
    section: dict[str, Any] = field(default_factory=dict, compare=False, repr=False)

    @property
    def generates(self) -> bool:
        """Whether an answer is text, token by token; else it is one class, after one pass."""
        return not self.classes


@dataclass(frozen=True)
class PromptSpec:
    """MobileVLM's and LLaVA-1.5's conversation template (``v1``).

    ``image_start`` and ``image_end`` stand around the image where the model was trained so (``mm_use_im_start_end``).
    """

    system: str = (
        "A chat between a curious user and an artificial intelligence assistant. "
        "The assistant gives helpful, detailed, and polite answers to the user's questions."
    )
    user: str = "USER"
    assistant: str = "ASSISTANT"
    image_start: str = ""
    image_end: str = ""

    def text(self, question: str) -> str:
        """The prompt of one question about one image, with ``<image>`` where its tokens go."""
        image = f"{self.image_start}<image>{self.image_end}"
        return f"{self.system} {self.user}: {image}\n{question} {self.assistant}:"


@dataclass(frozen=True)
class Spec:
    """Everything later rooms need to know about a checkpoint apart from its weights.

    ``image_token_id`` is the id that the config gives ``<image>``; None where it gives none.
    """

    name: str
    layout: str
    vision: VisionSpec
    projector: ProjectorSpec
    language: LanguageSpec
    prompt: PromptSpec
    bos_token_id: int
    eos_token_id: int
    pad_token_id: int | None
    torch_dtype: str
    image_token_id: int | None = None
