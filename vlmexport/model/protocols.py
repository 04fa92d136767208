"""What a module in a plug-in folder supplies: a vision encoder, a projector, a language model."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

from vlmexport.checkpoint.spec import Colour, LanguageSpec, ProjectorSpec, VisionSpec
from vlmexport.families.reading.bundles import Field
from vlmexport.processing.prompt import Grid

if TYPE_CHECKING:
    import torch
    from torch import nn

HYBRID = "export a hybrid (--vision onnx): vision encoder and projector as ONNX, the decoder as GGUF"
"""What to do with a tower or a projector that libmtmd cannot hold."""


@dataclass(frozen=True)
class GgufTower:
    """What a vision encoder's file says about its place in an mmproj."""

    projectors: tuple[str, ...]
    """libmtmd's types of projector behind which it computes such a tower."""

    outside: dict[str, str]
    """Canonical name → GGUF name of the tensors outside of the layers."""

    inside: dict[str, str]
    """Path of a module in a layer → its name in a block."""

    f32: frozenset[str] = frozenset()
    """GGUF names of the matrices that must stay F32."""

    fields: dict[str, Field] = field(default_factory=dict)
    """Metadata beyond the sizes that every tower has."""

    notes: tuple[str, ...] = ()
    """What stock libmtmd does with it."""

    rows: dict[str, list[int]] = field(default_factory=dict)
    """GGUF name → which rows of the published table a table in the file has, in its order."""

    kernels: frozenset[str] = frozenset()
    """GGUF names of the kernels that are F16 in a file of F16, and F32 in any other."""


@dataclass(frozen=True)
class GgufProjector:
    """What a projector's file says about its place in an mmproj."""

    projector_type: str
    tensors: dict[str, str]
    """Published name → GGUF name."""

    f16: frozenset[str] = frozenset()
    """Published names that must stay F16 (ggml asserts on depthwise kernels of another type)."""

    norm_eps: float | None = None
    """Epsilon of the projector's own norms, where it has some: libmtmd takes the tower's for them."""

    fields: dict[str, Field] = field(default_factory=dict)
    """Metadata beyond its type."""

    mode: str = "square"
    """How libmtmd cuts pictures for it (``ImageProcessorSpec.mode``)."""


@dataclass(frozen=True)
class GgufLanguage:
    """What a language model's file says about its place in GGUF."""

    architecture: str
    outside: dict[str, str]
    """Canonical name → GGUF name of the tensors outside of the layers."""

    inside: dict[str, str]
    """Path of a module in a layer → its name in a block."""

    fields: dict[str, tuple[str, float | str]]
    """Metadata beyond the sizes that every architecture has: key after the architecture → type and value."""

    heads: dict[str, int] = field(default_factory=dict)
    """Name in a block → its number of heads, where llama.cpp's rotary embedding wants the rows of a head in another
    order than transformers' (pairs side by side, not half a head apart)."""

    made: dict[str, tuple[float, ...]] = field(default_factory=dict)
    """GGUF name → values of a tensor that follows from the config."""


class VisionPlugin(Protocol):
    """A file in ``model/vision``.

    It may say ``FLOAT``: patterns of the layers that measurements keep out of int8, and why. Where an mmproj can hold
    it, ``gguf(spec) -> GgufTower`` says how, and imports no torch.
    """

    EXAMPLE: str
    """A small encoder of this file, ``kind`` or ``kind:variant``, for the conformance tests."""

    def preset(self, kind: str, variant: str, image_size: int | None) -> VisionSpec:
        """The Spec of a published size.

        Args:
            variant: the size's name; empty for the file's usual one.
            image_size: pixels along one side; the published number where it is None.

        Raises:
            Unsupported: an unknown variant, or an image size that it cannot take; the message says which.
        """

    def colours(self, spec: VisionSpec) -> tuple[Colour, Colour]:
        """Mean and deviation of the pixels that the encoder was trained on."""

    def layers(self, spec: VisionSpec) -> str | None:
        """What comes before a layer's number in its canonical tensor names; None where it is no stack of like layers:
        then it is traced whole."""

    def unused(self, spec: VisionSpec) -> tuple[str, ...]:
        """How tensors begin that no feature depends on."""

    def build(self, spec: VisionSpec) -> nn.Module:
        """The module; parameters on the meta device or not, buffers filled."""

    def features(self, module: nn.Module, pixel_values: torch.Tensor, spec: VisionSpec) -> torch.Tensor:
        """f32 [views, 3, height, width] → [views, patches, vision width]; all views have one size."""


class ProjectorPlugin(Protocol):
    """A file in ``model/projector``. It imports torch only where it builds: a GGUF export asks every projector what it
    is, and has no use for the seconds and the memory that torch takes.

    A file may say ``TOLERANCE``, how far its traced graph is from the module at most, and ``ROUNDS``, that its output
    is rounded in the float model too (``Gates.behind_rounding``).
    """

    EXAMPLE: str
    """A kind that this file answers to, for the conformance tests."""

    def build(self, spec: ProjectorSpec) -> nn.Module:
        """The module, parameters on the meta device: [views, patches, in] → [views, visual tokens, out]."""

    def token_grid(self, spec: ProjectorSpec) -> Grid:
        """Rows and columns of the visual tokens of one view; one row where they have no place in the picture."""

    def shapes(self, spec: ProjectorSpec) -> dict[str, tuple[int, ...]]:
        """Published name → shape of every tensor."""

    def gguf(self, spec: ProjectorSpec) -> GgufProjector:
        """How an mmproj holds it.

        Raises:
            Unsupported: libmtmd cannot hold it, or would compute it wrongly.
        """


class LanguagePlugin(Protocol):
    """A file in ``model/language``. It imports torch only where it builds, as a projector's does.

    Its matrices are those of linear layers, rows first. The head of one that generates is ``lm_head``.
    """

    EXAMPLE: str
    """A small language model of this file, ``kind`` or ``kind:variant``, for the conformance tests."""

    LAYERS: str
    """What comes before a layer's number in its canonical tensor names."""

    TABLES: tuple[str, ...]
    """Canonical names of the tables that rows are taken from, that of the tokens first."""

    GENERATES: bool
    """Whether it generates text, through a cache of keys and values. One that does not has ``LanguageSpec.classes``: it
    reads the whole prompt once, the first position of which (BOS) tells the class, and is padded at the end."""

    FUSED: bool
    """Whether ``artifact.fused_decoder`` builds it: Llama's layers under Llama's names, with or without biases."""

    def preset(self, variant: str) -> LanguageSpec:
        """The Spec of a published size; the file's usual one where ``variant`` is empty.

        Raises:
            Unsupported: an unknown variant; the message says which are known.
        """

    def shapes(self, spec: LanguageSpec) -> dict[str, tuple[int, ...]]:
        """Canonical name → shape of every tensor, ``lm_head`` too where it is tied.

        Raises:
            Unsupported: sizes or an activation that no model of this kind has.
        """

    def build(self, spec: LanguageSpec) -> nn.Module:
        """The causal language model, or the classifier of sequences, as transformers has it; parameters on the meta
        device, buffers filled."""

    def gguf(self, spec: LanguageSpec) -> GgufLanguage:
        """How GGUF holds it.

        Raises:
            Unsupported: llama.cpp cannot hold it, or would compute it wrongly.
        """
