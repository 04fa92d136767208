"""The pixels stage: a picture becomes the named arrays that a vision encoder takes, cut as its image processor says.

A way of cutting is a file of this folder, named by ``ImageProcessorSpec.mode``. It has ``arrays``, which makes them,
``tiles``, how they lie, ``boxes``, which part of a picture each view is of, ``prepared``, the picture that is resized
no further, ``most``, how many views there can be, ``within``, the same with fewer, and ``told``, what an image
processor's file says of it. NumPy and Pillow alone: a bundle runs without torch.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from importlib import import_module
from importlib.util import find_spec
from typing import Any, Protocol, cast

import numpy as np
import numpy.typing as npt
from PIL import Image

from vlmexport.checkpoint.spec import ImageProcessorSpec
from vlmexport.errors import Unsupported
from vlmexport.processing.prompt import Grid, Views

F32 = npt.NDArray[np.float32]
Array = npt.NDArray[Any]
PIXELS = "pixel_values"
VIEWS_AT_ONCE = 1
"""On a processor several together take more memory and, because that falls out of its caches, more time."""

Box = tuple[float, float, float, float]
"""Left, top, right and bottom in pixels of a picture. What lies beyond its edges is padding."""


@dataclass(frozen=True, eq=False)
class ProcessedImage:
    """What the pixels stage makes of one picture.

    ``arrays`` have the names of transformers: ``pixel_values`` f32 [views, 3, height, width], and what else the encoder
    is told, view by view. ``views`` say how its visual tokens lie.
    """

    arrays: dict[str, Array]
    views: Views

    @property
    def pixel_values(self) -> F32:
        """f32 [views, 3, height, width]."""
        return cast(F32, self.arrays[PIXELS])

    def slices(self) -> Iterator[dict[str, Array]]:
        """The arrays, a few views at a time: what an encoder computes at once, so that memory does not grow with
        them."""
        for start in range(0, len(self.views.grids), VIEWS_AT_ONCE):
            part = slice(start, start + VIEWS_AT_ONCE)
            yield {name: array[part] for name, array in self.arrays.items()}

    def with_pixels(self, values: F32) -> ProcessedImage:
        """The same views, their pixels made by somebody else."""
        return replace(self, arrays=self.arrays | {PIXELS: values})


class Cutting(Protocol):
    """A file of this folder that cuts pictures."""

    def arrays(self, image: Image.Image, spec: ImageProcessorSpec) -> dict[str, Array]:
        """RGB picture of any size → the encoder's inputs, by transformers' names.

        Raises:
            UsageError: a picture that it cannot cut.
        """

    def boxes(self, size: tuple[int, int], spec: ImageProcessorSpec) -> tuple[Box, ...]:
        """Which part of a picture of this width and height each view shows, in the order of the views."""

    def prepared(self, image: Image.Image, spec: ImageProcessorSpec) -> Image.Image:
        """A picture of which a client cuts the same views, RGB, because nothing is left to resize."""

    def tiles(self, size: tuple[int, int], spec: ImageProcessorSpec) -> Grid:
        """Rows and columns of the views that are tiles of a picture of this width and height; 0 and 0 if none is."""

    def most(self, spec: ImageProcessorSpec) -> int | None:
        """How many views a picture has at most, of whatever size; None where a larger one has more."""

    def within(self, spec: ImageProcessorSpec, views: int) -> ImageProcessorSpec:
        """The nearest Spec by which no picture has more than so many views; the same one where none has.

        Raises:
            UsageError: it cuts nothing, so there is nothing to choose.
        """

    def told(self, spec: ImageProcessorSpec) -> dict[str, Any]:
        """What an image processor's file says of the number of views, in its own keys."""


def cutting(spec: ImageProcessorSpec) -> Cutting:
    """The file that cuts as a Spec says.

    Raises:
        Unsupported: there is none.
    """
    name = f"{__package__}.{spec.mode}"
    if not spec.mode.isidentifier() or find_spec(name) is None:
        raise Unsupported(f"images that are cut as {spec.mode!r} are not known", "known: square, tiles, canvas, grid")
    return cast(Cutting, import_module(name))


def process(image: Image.Image, spec: ImageProcessorSpec, tokens: Grid) -> ProcessedImage:
    """The pixels stage of one picture.

    Args:
        image: RGB.
        tokens: rows and columns of the visual tokens of one view.

    Raises:
        UsageError: a picture that cannot be cut so.
        Unsupported: a way of cutting that is not known.
    """
    file = cutting(spec)
    arrays = file.arrays(image, spec)
    return ProcessedImage(arrays, Views((tokens,) * len(arrays[PIXELS]), file.tiles(image.size, spec)))


def batched(arrays: dict[str, Array], spec: ImageProcessorSpec) -> dict[str, Array]:
    """Arrays of some views as a bundle's vision graph takes them: those of tiles along the batch. Side by side, as
    clients' processors stack them, the last one would be of the whole."""
    return {name: array[:, None] for name, array in arrays.items()} if spec.mode == "tiles" else arrays


def pixel_values(image: Image.Image, spec: ImageProcessorSpec) -> F32:
    """RGB picture of any size → f32 [views, 3, height, width]."""
    return cast(F32, cutting(spec).arrays(image, spec)[PIXELS])
