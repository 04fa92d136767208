"""Find the module of a kind in a plug-in folder; what each module must supply.

In a plug-in folder the module's name is the value in the checkpoint's config. A module whose kind is a pattern
(``mlp2x_gelu``) declares it as ``PATTERN``. No table is kept by hand.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from importlib import import_module
from pkgutil import iter_modules
from types import ModuleType
from typing import TYPE_CHECKING, Protocol, TypeVar, cast

from vlmexport.checkpoint import Checkpoint, LanguageSpec, ProjectorSpec, Spec, VisionSpec, expected
from vlmexport.checkpoint.expected import KNOWN_ENCODERS, KNOWN_LANGUAGES, check_shapes
from vlmexport.errors import Unsupported

if TYPE_CHECKING:
    import torch
    from torch import nn

    from vlmexport.checkpoint.tensors import LazyTensor

Variant = TypeVar("Variant")

HYBRID = "export a hybrid (--vision onnx): vision encoder and projector as ONNX, the decoder as GGUF"
"""What to do with a tower or a projector that libmtmd cannot hold."""


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
    """A file in ``model/vision``."""

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

    def layers(self, spec: VisionSpec) -> str | None:
        """What comes before a layer's number in its canonical tensor names; None where it is no stack of like layers:
        then it is traced whole."""

    def unused(self, spec: VisionSpec) -> tuple[str, ...]:
        """How tensors begin that no feature depends on."""

    def build(self, spec: VisionSpec) -> nn.Module:
        """The module; parameters on the meta device or not, buffers filled."""

    def features(self, module: nn.Module, pixel_values: torch.Tensor, spec: VisionSpec) -> torch.Tensor:
        """f32 [images, 3, height, width] → [images, patches, vision width]."""


class ProjectorPlugin(Protocol):
    """A file in ``model/projector``. It imports torch only where it builds: a GGUF export asks every projector what it
    is, and has no use for the seconds and the memory that torch takes."""

    EXAMPLE: str
    """A kind that this file answers to, for the conformance tests."""

    def build(self, spec: ProjectorSpec) -> nn.Module:
        """The module, parameters on the meta device: [images, patches, in] → [images, visual tokens, out]."""

    def num_tokens(self, spec: ProjectorSpec) -> int:
        """Visual tokens for one image."""

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


def plugin(folder: str, kind: str) -> ModuleType:
    """The module that supplies a kind.

    Raises:
        Unsupported: no file in the folder supplies it; the message lists those that are there.
    """
    package = import_module(f"vlmexport.model.{folder}")
    names = sorted(info.name for info in iter_modules(package.__path__))
    if kind in names:
        return import_module(f"{package.__name__}.{kind}")
    patterns = []
    for name in names:
        module = import_module(f"{package.__name__}.{name}")
        pattern = getattr(module, "PATTERN", None)
        if pattern is None:
            patterns.append(name)
        elif re.fullmatch(pattern, kind):
            return module
        else:
            patterns.append(str(module.EXAMPLE))
    raise Unsupported(
        f"unknown {folder} {kind!r}", f"known: {', '.join(patterns)}; a new one is one file in model/{folder}"
    )


def vision(spec: VisionSpec) -> VisionPlugin:
    """The vision encoder's module."""
    return encoder(spec.kind)


def encoder(kind: str) -> VisionPlugin:
    """The module of a kind of vision encoder."""
    return cast(VisionPlugin, plugin("vision", kind))


def unknown_variant(kind: str, variant: str, known: Iterable[str]) -> Unsupported:
    """The error of a preset that there is not."""
    return Unsupported(f"{kind} has no variant {variant!r}", f"known: {', '.join(f'{kind}:{name}' for name in known)}")


def variant_of(kind: str, variant: str, known: Mapping[str, Variant]) -> Variant:
    """The variant of a name, the first one where there is no name.

    Raises:
        Unsupported: there is none; the message says which are known.
    """
    name = variant or next(iter(known))
    if name not in known:
        raise unknown_variant(kind, name, known)
    return known[name]


def check_activation(spec: LanguageSpec, known: Iterable[str]) -> None:
    """Refuse an activation that a kind of language model does not have.

    Raises:
        Unsupported: the message says which it has.
    """
    if spec.hidden_act not in known:
        raise Unsupported(f"a {spec.kind} with {spec.hidden_act!r} is not known", f"known: {', '.join(known)}")


def check_heads(spec: LanguageSpec) -> None:
    """Refuse heads that share keys, or do not make up the width.

    Raises:
        Unsupported: the message says what would do.
    """
    heads, keys, each = spec.num_heads, spec.num_kv_heads, spec.head_dim
    if heads * each != spec.hidden_size or keys != heads:
        raise Unsupported(
            f"a {spec.kind} of {heads} heads, {keys} of keys, {each} wide each cannot be",
            f"heads that share no keys, and make up its width of {spec.hidden_size}",
        )


def check_answers(spec: LanguageSpec) -> None:
    """Refuse classes of a language model that generates, and a classifier that has none to choose among.

    Raises:
        Unsupported: the message says which it is.
    """
    if language(spec).GENERATES and spec.classes:
        raise Unsupported(f"a {spec.kind} generates its answers, its config lists classes", "leave out classes")
    if not language(spec).GENERATES and len(spec.classes) < 2:
        raise Unsupported(
            f"a {spec.kind} chooses its answer, its config lists {len(spec.classes)} of them",
            "list the answers as classes, in the order of the classifier's rows",
        )


def check_positions(spec: Spec) -> None:
    """Refuse visual tokens that fill a table of learned positions.

    Raises:
        Unsupported: nothing could be asked about the image.
    """
    visual, language = projector(spec.projector).num_tokens(spec.projector), spec.language
    if not language.rope_theta and visual >= language.max_positions:
        raise Unsupported(
            f"{visual} visual tokens leave no room for a question in the {language.max_positions} positions of a "
            f"{language.kind}",
            "choose a projector that makes fewer, or a smaller image",
        )


def check_image_size(spec: VisionSpec) -> VisionSpec:
    """The same Spec.

    Raises:
        Unsupported: patches do not divide the image; the message says which sizes they do.
    """
    if spec.image_size < spec.patch_size or spec.image_size % spec.patch_size:
        near = max(1, round(spec.image_size / spec.patch_size)) * spec.patch_size
        name = f"{spec.kind}:{spec.variant}" if spec.variant else spec.kind
        raise Unsupported(
            f"{name} cuts an image in squares of {spec.patch_size} pixels, {spec.image_size} do not divide",
            f"use a multiple of {spec.patch_size}, such as {near}",
        )
    return spec


def projector(spec: ProjectorSpec) -> ProjectorPlugin:
    """The projector's module."""
    return cast(ProjectorPlugin, plugin("projector", spec.kind))


def half_grid(spec: ProjectorSpec) -> int:
    """Squares of 2x2 features along one side.

    Raises:
        Unsupported: the features are no square with even sides; the message says which would do.
    """
    if spec.grid**2 != spec.in_tokens or spec.grid % 2:
        low = max(2, spec.grid - spec.grid % 2)
        raise Unsupported(
            f"{spec.kind} joins 2x2 features; {spec.in_tokens} of them ({spec.grid}x{spec.grid}) do not divide",
            f"use an image size that gives {low}x{low} or {low + 2}x{low + 2} features",
        )
    return spec.grid // 2


def check_encoder(checkpoint: Checkpoint) -> None:
    """Compare a checkpoint's vision encoder with the module of its kind, where opening it has not done so; reads no
    weights.

    Raises:
        CheckpointError: a tensor is missing or of another shape.
        Unsupported: the kind or a tensor is unknown.
    """
    spec = checkpoint.spec.vision
    if spec.kind not in KNOWN_ENCODERS:
        shapes = {name: tuple(value.shape) for name, value in vision(spec).build(spec).state_dict().items()}
        check_shapes(shapes, checkpoint.tensors["vision"], f"{checkpoint.path} vision")


def check_projector(checkpoint: Checkpoint) -> None:
    """Compare a checkpoint's projector with what its kind must have; reads no weights.

    Raises:
        CheckpointError: a tensor is missing or of another shape.
        Unsupported: the kind or a tensor is unknown.
    """
    spec = checkpoint.spec.projector
    check_shapes(projector(spec).shapes(spec), checkpoint.tensors["projector"], f"{checkpoint.path} projector")


def check_language(checkpoint: Checkpoint) -> None:
    """Compare a checkpoint's language model with what its kind must have, where opening it has not done so; reads no
    weights.

    Raises:
        CheckpointError: a tensor is missing or of another shape.
        Unsupported: the kind or a tensor is unknown, or sizes that the kind does not have, or a prompt that it does
            not.
    """
    spec = checkpoint.spec.language
    check_answers(spec)
    check_positions(checkpoint.spec)
    shapes = language(spec).shapes(spec)
    if spec.kind not in KNOWN_LANGUAGES:
        expected.check_language(spec, shapes, checkpoint.tensors["language"], str(checkpoint.path))


def check_parts(checkpoint: Checkpoint) -> None:
    """All three; errors as theirs."""
    check_encoder(checkpoint)
    check_projector(checkpoint)
    check_language(checkpoint)


def check_fused(spec: LanguageSpec) -> None:
    """Refuse int4 and float16 where no decoder of fused operators is known.

    Raises:
        Unsupported: the kind has none.
    """
    if not language(spec).FUSED:
        raise Unsupported(f"a decoder of fused operators is not known for {spec.kind!r}", "use --decoder fp32 or int8")


def token_table(checkpoint: Checkpoint) -> LazyTensor:
    """The embedding of the tokens."""
    return checkpoint.tensors["language"][language(checkpoint.spec.language).TABLES[0]]


def language(spec: LanguageSpec) -> LanguagePlugin:
    """The language model's module."""
    return decoder(spec.kind)


def decoder(kind: str) -> LanguagePlugin:
    """The module of a kind of language model."""
    return cast(LanguagePlugin, plugin("language", kind))
