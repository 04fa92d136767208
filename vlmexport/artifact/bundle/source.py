"""Where a bundle comes from: the checkpoint's name and hashes, and what a runtime must know of the model."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any, Literal, Self

from pydantic import Field

from vlmexport.artifact.bundle.models import Part
from vlmexport.checkpoint.image_text import ImageText
from vlmexport.checkpoint.spec import Colour, ImageProcessorSpec, LanguageSpec, ProjectorSpec, Size, Spec, VisionSpec


class Sides(Part):
    """A size in pixels."""

    height: int | None = None
    width: int | None = None
    shortest_edge: int | None = None
    longest_edge: int | None = None

    def spec(self) -> Size:
        """The same for processing."""
        return Size(**self.model_dump())


class ImageProcessor(Part):
    """How a picture becomes pixels."""

    mode: Literal["square", "tiles", "canvas", "grid", "anyres", "native"]
    size: Sides
    do_center_crop: bool
    do_pad: bool
    resample: int
    rescale_factor: float
    do_normalize: bool
    image_mean: Colour
    image_std: Colour
    max_image_size: Sides | None = None
    do_image_splitting: bool = False
    do_resize: bool = True
    min_patches: int = 1
    max_patches: int = 1
    do_enlarge: bool = True
    add_whole: bool = True

    @classmethod
    def of(cls, spec: ImageProcessorSpec) -> ImageProcessor:
        """What a bundle says of it."""
        values = asdict(spec)
        return cls(**{name: values[name] for name in cls.model_fields})

    def spec(self) -> ImageProcessorSpec:
        """The same for processing."""
        views = self.max_image_size.spec() if self.max_image_size else None
        return ImageProcessorSpec(**self.model_dump() | {"size": self.size.spec(), "max_image_size": views})


class _Sizes(Part):
    @classmethod
    def of(cls, spec: VisionSpec | ProjectorSpec | LanguageSpec) -> Self:
        """What a bundle says of it."""
        return cls(**{name: getattr(spec, name) for name in cls.model_fields})


class Vision(_Sizes):
    """The vision encoder's sizes."""

    kind: str
    image_size: int
    patch_size: int
    hidden_size: int


class Projector(_Sizes):
    """The projector's kind and sizes, by which the number of visual tokens is known."""

    kind: str
    in_features: int
    out_features: int
    in_tokens: int

    def spec(self) -> ProjectorSpec:
        """The same for what looks projectors up."""
        return ProjectorSpec(**self.model_dump())


class Language(_Sizes):
    """The language model's sizes. ``classes`` are the answers of one that chooses among them."""

    kind: str
    vocab_size: int
    hidden_size: int
    max_positions: int
    classes: tuple[str, ...] = ()


class Model(Part):
    """What runs a bundle must know of its model."""

    image_processor: ImageProcessor
    vision: Vision
    projector: Projector
    language: Language
    eos_token_id: int
    stop_token_ids: tuple[int, ...] = Field(description="Each of them ends an answer.")
    max_images: int | None = Field(None, description="Of one prompt; there is no limit where it is missing.")
    image_text: ImageText | None = Field(None, description="What stands for an image in the text of a prompt.")

    @classmethod
    def of(cls, spec: Spec) -> Model:
        """What a bundle says of it."""
        return cls(
            image_processor=ImageProcessor.of(spec.image_processor),
            vision=Vision.of(spec.vision),
            projector=Projector.of(spec.projector),
            language=Language.of(spec.language),
            eos_token_id=spec.eos_token_id,
            stop_token_ids=spec.stop_token_ids,
            max_images=spec.max_images,
            image_text=spec.image_text,
        )


class Source(Part):
    """The checkpoint that the bundle was made from."""

    name: str
    path: str
    layout: str
    spec: Model
    configuration: dict[str, Any] = Field(
        default_factory=dict,
        description="All that the checkpoint's files say of the model beside its weights. It tells two models apart; "
        "nothing is run by it.",
    )
    weights: dict[str, str] = Field(description="File name → BLAKE3; a tower's own folder is called vision_tower.")
    vision_tower: str | None = Field(None, description="Folder or Hub id, where the checkpoint carries no tower.")
