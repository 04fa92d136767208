"""Find the module of a kind in a plug-in folder; checks that several of them share.

In a plug-in folder the module's name is the value in the checkpoint's config. A module whose kind is a pattern
(``mlp2x_gelu``) declares it as ``PATTERN``. No table is kept by hand.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import replace
from importlib import import_module
from pkgutil import iter_modules
from types import ModuleType
from typing import TYPE_CHECKING, TypeVar, cast

from vlmexport.checkpoint.spec import LanguageSpec, ProjectorSpec, Spec, VisionSpec
from vlmexport.errors import Unsupported
from vlmexport.model.protocols import HYBRID, GgufTower, LanguagePlugin, ProjectorPlugin, VisionPlugin
from vlmexport.processing.prompt import Grid
from vlmexport.source import shapes as expected
from vlmexport.source.shapes import KNOWN_ENCODERS, KNOWN_LANGUAGES, check_shapes

if TYPE_CHECKING:
    from vlmexport.checkpoint.tensors import LazyTensor
    from vlmexport.source.checkpoint import Checkpoint

Variant = TypeVar("Variant")


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


def gguf_tower(spec: VisionSpec) -> GgufTower:
    """How an mmproj holds a vision encoder.

    Raises:
        Unsupported: libmtmd cannot hold it, or would compute it wrongly.
    """
    said = getattr(vision(spec), "gguf", None)
    if said is None:
        raise Unsupported(
            f"no mmproj holds a {spec.kind!r} vision encoder: llama.cpp has no projector type for it", HYBRID
        )
    found: GgufTower = said(spec)
    return found


def float_layers(spec: VisionSpec) -> dict[str, str]:
    """Patterns of the vision encoder's layers that int8 does not serve, as paths in ``model.VLM``, and why."""
    return {f"vision.{pattern}": why for pattern, why in getattr(vision(spec), "FLOAT", {}).items()}


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


def sized(spec: VisionSpec, image_size: int | None) -> VisionSpec:
    """A variant for images of another size, which takes other position embeddings; as published where it is None.

    Raises:
        Unsupported: patches do not divide the image.
    """
    return spec if image_size is None else check_image_size(replace(spec, image_size=image_size))


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
    visual, language = num_tokens(spec.projector), spec.language
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


def token_grid(spec: ProjectorSpec) -> Grid:
    """Rows and columns of the visual tokens of one view."""
    return projector(spec).token_grid(spec)


def num_tokens(spec: ProjectorSpec) -> int:
    """Visual tokens of one view."""
    rows, columns = token_grid(spec)
    return rows * columns


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
