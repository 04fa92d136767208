"""Vision encoder and projector of a GGUF bundle in llama.cpp."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from vlmexport.artifact.bundle.manifest import Manifest
from vlmexport.processing.image import PIXELS, ProcessedImage, cutting
from vlmexport.processing.prompt import Views
from vlmexport.processing.square import as_square
from vlmexport.runtime.llamacpp.probe.probe import probe
from vlmexport.runtime.llamacpp.process import Process
from vlmexport.runtime.stages import F32, Features, Seeing
from vlmexport.threads import operator_threads

_OWN = "pixels are libmtmd's own"
_PIXELS = f"{_OWN}; a picture that is not square is {{}}"
_SQUARED = "made square before libmtmd gets it, as the model does; stock llama.cpp resizes it first, then pads"
_AS_IS = "resized first, then padded; the model makes it square first"


class LlamaCppVision:
    """Pixels, features and tokens of an mmproj.

    Float pixels are written over libmtmd's own input (``inp_raw``), given features over the input of the projector:
    both are exact. Where the probe says that the installed libmtmd fills its two index inputs wrongly, they are set
    right in every pass. libmtmd resizes a picture and then pads it: one that is not square is made so before the call,
    as the model does; what the library makes of a square is its own.

    Args:
        process: the worker that loads it, with a language model or without one.
        repair: False leaves the index inputs and the pictures as they are.

    Raises:
        VlmExportError: llama.cpp cannot load the file, or it died.
    """

    def __init__(
        self, bundle: Path, manifest: Manifest, process: Process, *, threads: int | None = None, repair: bool = True
    ) -> None:
        spec, mmproj = manifest.source.spec, str(bundle / manifest.seeing.file("mmproj"))
        sizes: dict[str, Any] = {"image_size": spec.vision.image_size, "width": spec.language.hidden_size}
        self.process, self._spec = process, manifest.image_processor
        is_square = self._spec.mode == "square"
        self._squares, self._grid = repair and is_square, manifest.token_grid
        if not is_square:
            sizes["vocabulary"] = str(bundle / manifest.decoding.file("language"))
        found = probe()
        opened = self.process.ask(
            {"op": "open_vision", "mmproj": mmproj, "threads": threads or operator_threads(), **sizes},
            f"loading {mmproj}",
        )
        self.name = f"llama-cpp-python {opened.body['version']}"
        self.repair = self._squares and found.repairable and not found.right
        own = _PIXELS.format(_SQUARED if repair else _AS_IS) if is_square else _OWN
        self.notes: tuple[str, ...] = (own, found.note(repair)) if is_square else (own,)

    def pixels(self, image: Image.Image) -> ProcessedImage:
        """RGB image → its views, by libmtmd's own preprocessing."""
        return self.preprocess(image, self._squares)

    def preprocess(self, image: Image.Image, squares: bool) -> ProcessedImage:
        """``pixels``, of the picture that the model would make square, or of the picture as it is."""
        image = image.convert("RGB")
        rgb = np.asarray(as_square(image, self._spec) if squares else image, np.uint8)
        values = self.process.ask({"op": "pixels"}, "preprocessing an image", rgb).arrays[0]
        tiles = cutting(self._spec).tiles(image.size, self._spec)
        return ProcessedImage({PIXELS: values}, Views((self._grid,) * len(values), tiles))

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
        Both have one worker: close this one alone."""
        differs = self.repair or any(image.width != image.height for image in images)
        return _Stock(self) if self._squares and differs else None

    def close(self) -> None:
        """End the worker."""
        self.process.close()

    def _each(self, request: dict[str, Any], views: Iterable[F32], doing: str) -> list[F32]:
        """libmtmd takes one view at a time."""
        return [self.process.ask(request, doing, view[None]).arrays[0][0] for view in views]


class _Stock:
    """A view whose pixels and features are those of the library as it is."""

    def __init__(self, repaired: LlamaCppVision) -> None:
        self.name, self.notes, self._repaired = repaired.name, repaired.notes, repaired

    def pixels(self, image: Image.Image) -> ProcessedImage:
        """RGB image → its view."""
        return self._repaired.preprocess(image, squares=False)

    def features(self, image: ProcessedImage) -> Features:
        """What the encoder makes of each view."""
        return self._repaired.encode(image, repair=False)

    def tokens(self, features: Features) -> F32:
        """[visual tokens, hidden]."""
        return self._repaired.tokens(features)

    def close(self) -> None:
        """Nothing: the worker is the other's."""
