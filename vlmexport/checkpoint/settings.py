"""What a layout's config says, in one form for all layouts."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from vlmexport.checkpoint.spec import LanguageSpec, VisionSpec


@dataclass(frozen=True)
class Settings:
    """``text`` and ``vision`` are in the terms of transformers' ``LlamaConfig`` and ``CLIPVisionConfig``.

    ``vision`` holds what the config says of the tower, which may be nothing; ``tower`` is the folder or Hub id that it
    names; ``aspect_ratio`` is None where the preprocessor decides; ``image_token`` is the id of ``<image>`` where it
    has one; ``marks``: the image stands between ``<im_start>`` and ``<im_end>``; ``encoder`` and ``language`` are the
    whole Specs of the vision encoder and of a language model that need be no Llama, where the config says all of it.
    """

    text: dict[str, Any]
    vision: dict[str, Any]
    tower: str | None
    projector: str
    select_layer: int
    select_feature: str
    aspect_ratio: str | None
    image_token: int | None = None
    marks: bool = False
    encoder: VisionSpec | None = None
    language: LanguageSpec | None = None
