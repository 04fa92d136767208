"""Vision encoder and projector of a GGUF bundle in llama.cpp."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from vlmexport.artifact.bundle.manifest import Manifest
from vlmexport.processing.square import as_square
from vlmexport.runtime.llamacpp.probe.probe import probe
from vlmexport.runtime.llamacpp.process import Process
from vlmexport.runtime.stages import F32, Seeing
from vlmexport.threads import operator_threads

_PIXELS = "pixels are libmtmd's own; a picture that is not square is {}"
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
        sizes = {"image_size": spec.vision.image_size, "width": spec.language.hidden_size}
        self.process, self._spec, self._squares = process, manifest.image_processor, repair
        found = probe()
        opened = self.process.ask(
            {"op": "open_vision", "mmproj": mmproj, "threads": threads or operator_threads(), **sizes},
            f"loading {mmproj}",
        )
        self.name = f"llama-cpp-python {opened.body['version']}"
        self.repair = repair and found.repairable and not found.right
        self.notes: tuple[str, ...] = (_PIXELS.format(_SQUARED if repair else _AS_IS), found.note(repair))

    def pixels(self, image: Image.Image) -> F32:
        """RGB image → [1, 3, height, width], by libmtmd's own preprocessing."""
        return self.preprocess(image, self._squares)

    def preprocess(self, image: Image.Image, squares: bool) -> F32:
        """``pixels``, of the picture that the model would make square, or of the picture as it is."""
        image = image.convert("RGB")
        rgb = np.asarray(as_square(image, self._spec) if squares else image, np.uint8)
        return self.process.ask({"op": "pixels"}, "preprocessing an image", rgb).arrays[0]

    def features(self, pixels: F32) -> F32:
        """[images, 3, height, width] → [images, patches, vision width]."""
        return self.encode(pixels, self.repair)

    def tokens(self, features: F32) -> F32:
        """[images, patches, vision width] → [images, visual tokens, hidden]."""
        return self._each({"op": "tokens"}, features, "projecting features")

    def encode(self, pixels: F32, repair: bool) -> F32:
        """``features``, repaired or as libmtmd has them."""
        return self._each({"op": "features", "repair": repair}, pixels, "encoding an image")

    def stock(self, images: Iterable[Image.Image]) -> Seeing | None:
        """The same as this libmtmd computes these images when nobody repairs it; None where that makes no difference.
        Both have one worker: close this one alone."""
        differs = self.repair or any(image.width != image.height for image in images)
        return _Stock(self) if self._squares and differs else None

    def close(self) -> None:
        """End the worker."""
        self.process.close()

    def _each(self, request: dict[str, Any], values: F32, doing: str) -> F32:
        one_by_one = (values[i : i + 1] for i in range(len(values)))
        return np.concatenate([self.process.ask(request, doing, one).arrays[0] for one in one_by_one])


class _Stock:
    """A view whose pixels and features are those of the library as it is."""

    def __init__(self, repaired: LlamaCppVision) -> None:
        self.name, self.notes, self._repaired = repaired.name, repaired.notes, repaired

    def pixels(self, image: Image.Image) -> F32:
        """RGB image → [1, 3, height, width]."""
        return self._repaired.preprocess(image, squares=False)

    def features(self, pixels: F32) -> F32:
        """[images, 3, height, width] → [images, patches, vision width]."""
        return self._repaired.encode(pixels, repair=False)

    def tokens(self, features: F32) -> F32:
        """[images, patches, vision width] → [images, visual tokens, hidden]."""
        return self._repaired.tokens(features)

    def close(self) -> None:
        """Nothing: the worker is the other's."""
