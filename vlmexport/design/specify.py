"""What a design is: its parts by name, or taken from a model that is there, as one Spec."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass

from vlmexport.checkpoint.spec import ImageProcessorSpec, LanguageSpec, ProjectorSpec, PromptSpec, Spec, VisionSpec
from vlmexport.console import QUIET, Console
from vlmexport.errors import Unsupported, UsageError
from vlmexport.model import plugins
from vlmexport.source.checkpoint import Checkpoint
from vlmexport.source.locate import open_model

DEFAULTS = {"vision": "clip:l14-336", "projector": "ldpnetv2", "language": "llama:tiny"}
DTYPE = "float16"
_LARGEST = 4
"""Times the encoder's own image size: larger ones are not tried."""

_IDS: tuple[int, int, int | None] = (1, 2, 0)
"""BOS, EOS and padding of the demo's tokenizer, which a language model of random weights takes."""


@dataclass(frozen=True)
class Design:
    """``kind`` or ``kind:variant`` of a vision encoder and a language model, the kind of a projector.

    A part that is None is ``origin``'s, a MODEL, with its weights; without one it is that of ``DEFAULTS``.
    """

    vision: str | None = None
    projector: str | None = None
    language: str | None = None
    image_size: int | None = None
    seed: int = 0
    origin: str | None = None

    def named(self, component: str) -> str | None:
        """What a part is to be; None where it is the origin's."""
        chosen: str | None = getattr(self, component)
        return chosen or (None if self.origin else DEFAULTS[component])


def open_origin(design: Design, console: Console = QUIET) -> Checkpoint | None:
    """The model that parts are taken from.

    Raises:
        CheckpointError: it cannot be opened.
        Unsupported: its prompt is one that no config of a design can tell.
    """
    if design.origin is None:
        return None
    origin = open_model(design.origin, console=console)
    if origin.spec.prompt != PromptSpec() and not design.named("language"):
        raise Unsupported(
            f"the language model of {design.origin} wants marks around the image (mm_use_im_start_end), which a design "
            "cannot tell",
            "name another --language",
        )
    return origin


def specify(design: Design, name: str = "design", origin: Checkpoint | None = None) -> Spec:
    """The Spec of a design. A projector that the features of the encoder's own image size do not fit gets the next
    larger one that they do.

    Args:
        origin: ``open_origin``'s.

    Raises:
        Unsupported: an unknown kind or variant, or parts that do not fit; the message says what does.
        UsageError: an image size for a vision encoder that is taken with its weights.
    """
    language = _language(design, origin)
    vision, projector = _seeing(design, language, origin)
    bos: int | None
    bos, eos, pad = _IDS
    stops: tuple[int, ...] = ()
    template = ""
    if origin is not None and not design.named("language"):
        bos, eos, pad = origin.spec.bos_token_id, origin.spec.eos_token_id, origin.spec.pad_token_id
        stops, template = origin.spec.stop_token_ids, origin.spec.chat_template
    spec = Spec(
        name=name,
        layout="design",
        image_processor=_image_processor(design, vision, origin),
        vision=vision,
        projector=projector,
        language=language,
        prompt=PromptSpec(),
        bos_token_id=bos,
        eos_token_id=eos,
        stop_token_ids=stops,
        pad_token_id=pad,
        torch_dtype=origin.spec.torch_dtype if origin else DTYPE,
        chat_template=template,
    )
    plugins.check_positions(spec)
    return spec


def _seeing(design: Design, language: LanguageSpec, origin: Checkpoint | None) -> tuple[VisionSpec, ProjectorSpec]:
    """Encoder and projector, which fit each other.

    Raises:
        Unsupported: they do not; the message has an image size at which they would, where there is one.
    """
    named = design.named("vision")
    if not named:
        vision = _taken_vision(design, origin)
        return vision, _projector(design, vision, language, origin)
    vision = vision_of(named, design.image_size)
    try:
        return vision, _projector(design, vision, language, origin)
    except Unsupported as error:
        for size in _larger(named):
            with suppress(Unsupported):
                vision = vision_of(named, size)
                projector = _projector(design, vision, language, origin)
                break
        else:
            raise
        if design.image_size is None:
            return vision, projector
        raise Unsupported(error.what, f"{error.cure}, such as --image-size {size}") from error


def _image_processor(design: Design, vision: VisionSpec, origin: Checkpoint | None) -> ImageProcessorSpec:
    """That of the origin's encoder; of a new one the whole picture, with the encoder's own mean and deviation."""
    if not design.named("vision"):
        assert origin is not None
        return origin.spec.image_processor
    mean, std = plugins.vision(vision).colours(vision)
    return ImageProcessorSpec.square(vision.image_size, pads=True, image_mean=mean, image_std=std)


def _larger(named: str) -> range:
    """Image sizes of an encoder from its own on; of s2, those of a tile."""
    own = vision_of(named)
    scale = vision_of(named, own.image_size).image_size // own.image_size
    side = own.image_size // scale
    return range(side, _LARGEST * side + 1, own.patch_size // scale)


def _taken_vision(design: Design, origin: Checkpoint | None) -> VisionSpec:
    assert origin is not None
    if design.image_size not in (None, origin.spec.vision.image_size):
        raise UsageError(
            f"the vision encoder of {design.origin} takes images of {origin.spec.vision.image_size} pixels",
            "leave out --image-size, or name a --vision",
        )
    return origin.spec.vision


def _language(design: Design, origin: Checkpoint | None) -> LanguageSpec:
    named = design.named("language")
    if named:
        return language_of(named)
    assert origin is not None
    return origin.spec.language


def _projector(design: Design, vision: VisionSpec, language: LanguageSpec, origin: Checkpoint | None) -> ProjectorSpec:
    named = design.named("projector")
    sizes = (vision.hidden_size, language.hidden_size, vision.num_patches)
    if named:
        spec = ProjectorSpec(named, *sizes)
        plugins.projector(spec).build(spec)  # says what does not fit
        return spec
    assert origin is not None
    taken = origin.spec.projector
    if taken != ProjectorSpec(taken.kind, *sizes):
        raise Unsupported(
            f"the {taken.kind} of {design.origin} makes {taken.in_tokens} features of {taken.in_features} into tokens "
            f"of {taken.out_features}, here are {sizes[2]} of {sizes[0]}, and tokens of {sizes[1]}",
            "name a --projector, which begins with random weights",
        )
    return taken


def vision_of(text: str, image_size: int | None = None) -> VisionSpec:
    """The Spec of ``kind`` or ``kind:variant``.

    Raises:
        Unsupported: either is unknown, or it cannot take images of that size.
    """
    kind, _, variant = text.partition(":")
    return plugins.encoder(kind).preset(kind, variant, image_size)


def language_of(text: str) -> LanguageSpec:
    """The Spec of ``kind`` or ``kind:variant``.

    Raises:
        Unsupported: either is unknown.
    """
    kind, _, variant = text.partition(":")
    return plugins.decoder(kind).preset(variant)
