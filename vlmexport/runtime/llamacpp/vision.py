"""Vision encoder and projector of a GGUF bundle in llama.cpp."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from vlmexport.artifact.bundle.manifest import Manifest
from vlmexport.artifact.gguf.file import library
from vlmexport.checkpoint.spec import Colour, ImageProcessorSpec
from vlmexport.errors import VlmExportError
from vlmexport.processing.image import PIXELS, ProcessedImage, process
from vlmexport.processing.prompt import Views
from vlmexport.processing.square import as_square
from vlmexport.runtime.llamacpp.probe.probe import probe
from vlmexport.runtime.llamacpp.process import Process
from vlmexport.runtime.stages import F32, Features, Seeing
from vlmexport.threads import operator_threads

_SQUARE = "pixels are libmtmd's own; a picture that is not square is {}"
_SQUARED = "made square before libmtmd gets it, as the model does; stock llama.cpp resizes it first, then pads"
_AS_IS = "resized first, then padded; the model makes it square first"
_VIEWS = (
    "each view is made as the model's processor makes it, and given to libmtmd by itself; stock llama.cpp cuts them"
)
_CUT = "views are those that libmtmd cuts"
_ROUNDING = 1e-4
"""A level of eight bits is some 0.01 of a normalised pixel."""


class LlamaCppVision:
    """Pixels, features and tokens of an mmproj.

    Float pixels are written over libmtmd's own input (``inp_raw``), given features over the input of the projector:
    both are exact. Where the probe says that the installed libmtmd fills its two index inputs wrongly, they are set
    right in every pass. libmtmd resizes a picture and then pads it: one that is not square is made so before the call,
    as the model does; what the library makes of a square is its own. Of a picture that is cut into views, each is made
    before the call as the model does, and goes in as float pixels.

    Args:
        worker: loads it, with a language model or without one.
        repair: False leaves the index inputs and the pictures to libmtmd.

    Raises:
        VlmExportError: llama.cpp cannot load the file, or it died.
    """

    def __init__(
        self, bundle: Path, manifest: Manifest, worker: Process, *, threads: int | None = None, repair: bool = True
    ) -> None:
        spec, mmproj = manifest.source.spec, str(bundle / manifest.seeing.file("mmproj"))
        request: dict[str, Any] = {"image_size": spec.vision.image_size, "width": spec.language.hidden_size}
        self.process, self._spec, self._own = worker, manifest.image_processor, repair
        self._grid, self._cuts = manifest.token_grid, self._spec.mode != "square"
        if self._cuts:
            request["vocabulary"] = str(bundle / manifest.decoding.file("language"))
        found = None if self._cuts else probe()
        opened = self.process.ask(
            {"op": "open_vision", "mmproj": mmproj, "threads": threads or operator_threads(), **request},
            f"loading {mmproj}",
        )
        if self._cuts:
            self._spec = _told(mmproj, self._spec)
        self.name = f"llama-cpp-python {opened.body['version']}"
        self.repair = repair and found is not None and found.repairable and not found.right
        self.notes: tuple[str, ...] = (
            (_VIEWS if repair else _CUT,) if found is None
            else (_SQUARE.format(_SQUARED if repair else _AS_IS), found.note(repair))
        )  # fmt: skip

    def pixels(self, image: Image.Image) -> ProcessedImage:
        """RGB image → its views."""
        return self.preprocess(image, self._own)

    def preprocess(self, image: Image.Image, own: bool) -> ProcessedImage:
        """``pixels`` as the model makes them, as far as that is done here; or as libmtmd does."""
        image = image.convert("RGB")
        if own and self._cuts:
            return process(image, self._spec, self._grid)
        rgb = np.asarray(as_square(image, self._spec) if own else image, np.uint8)
        reply = self.process.ask({"op": "pixels"}, "preprocessing an image", rgb)
        (values,), tiles = reply.arrays, reply.body["tiles"]
        return ProcessedImage({PIXELS: values}, Views((self._grid,) * len(values), (tiles[0], tiles[1])))

    def features(self, image: ProcessedImage) -> Features:
        """What the encoder makes of each view."""
        return self.encode(image, self.repair)

    def tokens(self, features: Features) -> F32:
        """[visual tokens, hidden]."""
        return np.concatenate(self._each({"op": "tokens"}, features.views, "projecting features"))

    def encode(self, image: ProcessedImage, repair: bool) -> Features:
        """``features``, repaired or as libmtmd has them."""
        request = {"op": "features", "repair": repair}
        return Features(tuple(self._each(request, image.pixel_values, "encoding an image")))

    def stock(self, images: Iterable[Image.Image]) -> Seeing | None:
        """The same as this libmtmd computes these images when nobody repairs it; None where that makes no difference.
        An image that it refuses makes one. Both have one worker: close this one alone."""
        return _Stock(self) if self._own and (self.repair or any(map(self._differs, images))) else None

    def _differs(self, image: Image.Image) -> bool:
        if not self._cuts:
            return image.width != image.height
        one = self.preprocess(image, own=True).pixel_values
        try:
            other = self.preprocess(image, own=False).pixel_values
        except VlmExportError:
            if not self.process.alive:
                raise
            return True
        return one.shape != other.shape or bool(np.abs(one - other).max() > _ROUNDING)

    def close(self) -> None:
        """End the worker."""
        self.process.close()

    def _each(self, request: dict[str, Any], views: Iterable[F32], doing: str) -> list[F32]:
        """libmtmd takes one view at a time."""
        return [self.process.ask(request, doing, view[None]).arrays[0][0] for view in views]


def _told(mmproj: str, known: ImageProcessorSpec) -> ImageProcessorSpec:
    """``known`` with the colours of a file that libmtmd has opened: views are normalised here by what it would do."""
    fields = library().GGUFReader(mmproj).fields

    def colour(name: str) -> Colour:
        red, green, blue = (float(value) for value in fields[f"clip.vision.{name}"].contents())
        return red, green, blue

    return replace(known, do_normalize=True, image_mean=colour("image_mean"), image_std=colour("image_std"))


class _Stock:
    """Views whose pixels and features are those of the library as it is."""

    def __init__(self, repaired: LlamaCppVision) -> None:
        self.name, self.notes, self._repaired = repaired.name, repaired.notes, repaired

    def pixels(self, image: Image.Image) -> ProcessedImage:
        """RGB image → its views."""
        return self._repaired.preprocess(image, own=False)

    def features(self, image: ProcessedImage) -> Features:
        """What the encoder makes of each view."""
        return self._repaired.encode(image, repair=False)

    def tokens(self, features: Features) -> F32:
        """[visual tokens, hidden]."""
        return self._repaired.tokens(features)

    def close(self) -> None:
        """Nothing: the worker is the other's."""
