"""The pixels that clients of a bundle make of photographs which they have to resize, beside those of our runtime."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import numpy as np
from PIL import Image

from vlmexport.artifact.onnx import client_files
from vlmexport.calibrate.samples import calibration_folder
from vlmexport.checkpoint.spec import ImageProcessorSpec, Spec
from vlmexport.parity.compare.clients import Client, Transformers
from vlmexport.parity.compare.node import FOLDER, TransformersJs
from vlmexport.processing.images import read_image
from vlmexport.processing.square import arrays

NODE = Path(__file__).parents[1] / "tests" / "runtime"
Figures = dict[str, dict[str, float]]


def photographs() -> list[Image.Image]:
    """Those of the calibration set, half of them on their side."""
    files = sorted((calibration_folder() / "images").glob("photo-*.jpg"))
    images = [read_image(file) for file in files]
    return [image.transpose(Image.Transpose.ROTATE_90) if i % 2 else image for i, image in enumerate(images)]


def mosaics() -> list[Image.Image]:
    """Pictures of 2,000 by 1,500 and of 2,400 by 3,200 pixels: photographs side by side."""
    tiles = [image.resize((400, 300)) for image in photographs()]
    found = []
    for side in (5, 8):
        whole = Image.new("RGB", (400 * side, 300 * side))
        for i in range(side * side):
            whole.paste(tiles[i % len(tiles)], (400 * (i % side), 300 * (i // side)))
        found.append(whole)
    return [found[0], found[1].transpose(Image.Transpose.ROTATE_90)]


def resized(spec: Spec, side: int, folder: Path) -> Figures:
    """Client → mean and largest difference of a pixel, in levels of 255.

    Args:
        side: of the images that the model sees, in pixels.
        folder: for the documents of a bundle that make its pixels.
    """
    own = spec.image_processor
    pixels = ImageProcessorSpec.square(
        side, own.do_pad, image_mean=own.image_mean, image_std=own.image_std, do_normalize=own.do_normalize
    )
    _write(replace(spec, image_processor=pixels, vision=replace(spec.vision, image_size=side)), folder)
    os.environ.setdefault(FOLDER, str(NODE))
    node, small = TransformersJs(folder), photographs()
    clients: dict[str, tuple[Client, list[Image.Image]]] = {
        "transformers, Pillow": (Transformers(folder, "pil"), small),
        "transformers, torchvision": (Transformers(folder, "torchvision"), small),
        "transformers.js in Node": (node, small),
        "the same, large pictures": (node, mosaics()),
    }
    with closing(node):
        return {name: _apart(client, images, pixels) for name, (client, images) in clients.items()}


def _apart(client: Client, images: Sequence[Image.Image], spec: ImageProcessorSpec) -> dict[str, float]:
    levels = 255 * np.array(spec.std, np.float32).reshape(3, 1, 1)
    apart = [np.abs(client.pixels(image) - arrays(image, spec)["pixel_values"]) * levels for image in images]
    return {"mean": float(np.mean([one.mean() for one in apart])), "largest": float(max(one.max() for one in apart))}


def _write(spec: Spec, folder: Path) -> None:
    """The documents that clients read."""
    folder.mkdir()
    patches = spec.vision.num_patches
    documents = {
        "preprocessor_config.json": client_files.preprocessor(spec),
        "processor_config.json": client_files.processor(client_files.Layout(spec, 0, patches, {})),
    }
    for name, document in documents.items():
        (folder / name).write_text(json.dumps(document), encoding="utf-8")
