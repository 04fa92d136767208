"""What transformers.js under Node makes of pictures that become tiles, beside Pillow, on 21 photographs and a sheet of
emoji: of each as it is, and as ``vlmexport prepare`` writes it.

    pip install 'vlmexport[bench]'
    VLMEXPORT_NODE=FOLDER python benchmarks/tiles_in_javascript.py      # its node_modules hold transformers.js

Tiles, and the last view, which is of all of the picture: by how many levels (of 255) they are away on average and at
most, and by how many decibels the error is below the signal. ``repaired`` is the last view as ``whole_view`` makes it
again inside a vision graph.
"""

from __future__ import annotations

import json
import statistics
import tempfile
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from onnxruntime import InferenceSession
from photographs import photographs
from PIL import Image

import vlmexport.demo
from vlmexport.artifact.onnx.build.whole_view import repairing
from vlmexport.checkpoint.spec import ImageProcessorSpec
from vlmexport.parity.compare.node import TransformersJs
from vlmexport.processing.image import pixel_values
from vlmexport.processing.images import read_image
from vlmexport.processing.tiles import prepared

RESULTS = Path(__file__).parent / "results" / "tiles-in-javascript.json"
SPEC = ImageProcessorSpec.tiles(2048, 512)
"""SmolVLM's of 256M and 500M."""

TOLD = {
    "image_processor_type": "SmolVLMImageProcessor", "do_resize": True, "do_rescale": True, "do_normalize": True,
    "do_convert_rgb": True, "do_image_splitting": True, "do_pad": True, "resample": SPEC.resample,
    "rescale_factor": SPEC.rescale_factor, "image_mean": SPEC.image_mean, "image_std": SPEC.image_std,
    "size": {"longest_edge": 2048}, "max_image_size": {"longest_edge": 512},
}  # fmt: skip
F32 = npt.NDArray[np.float32]


def apart(found: F32, right: F32) -> dict[str, float | None]:
    """Levels on average and at most, and decibels; None where both are equal."""
    difference = found.astype(np.float64) - right
    levels = np.rint(np.abs(difference) * 127.5)
    if not levels.any():
        return {"mean": 0.0, "max": 0.0, "db": None}
    db = 10 * np.log10(np.square(right, dtype=np.float64).sum() / np.square(difference).sum())
    return {"mean": round(float(levels.mean()), 3), "max": float(levels.max()), "db": round(float(db), 1)}


def measured(client: TransformersJs, session: InferenceSession, image: Image.Image, right: F32) -> dict[str, Any]:
    """Of one picture."""
    found = client.pixels(image).reshape(right.shape)
    (repaired,) = session.run(None, {"pixel_values": found[None]})
    return {
        "tiles": apart(found[:-1], right[:-1]), "whole": apart(found[-1:], right[-1:]),
        "repaired": apart(repaired[0, -1:], right[-1:]),
    }  # fmt: skip


def rows() -> Iterator[dict[str, Any]]:
    """One a picture."""
    session = InferenceSession(repairing(SPEC).SerializeToString())
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "preprocessor_config.json").write_text(json.dumps(TOLD))
        with closing(TransformersJs(Path(folder))) as client:
            for path in (*photographs(), Path(vlmexport.demo.__file__).with_name("sprites.png")):
                image = Image.fromarray(np.asarray(read_image(path)))  # without a colour profile
                right = pixel_values(image, SPEC)
                given = {"as_it_is": image, "prepared": prepared(image, SPEC)}
                found = {name: measured(client, session, one, right) for name, one in given.items()}
                yield {"picture": path.stem, "size": list(image.size), "views": len(right), **found}


def main() -> None:
    """Print the medians and write the rows."""
    found = []
    for row in rows():
        found.append(row)
        print(row["picture"], *(f"{kind} {row[kind]}" for kind in ("as_it_is", "prepared")), flush=True)
    for kind in ("as_it_is", "prepared"):
        for part in ("tiles", "whole", "repaired"):
            means = [row[kind][part]["mean"] for row in found]
            most, middle = max(row[kind][part]["max"] for row in found), statistics.median(means)
            print(f"{kind}, {part}: mean {min(means):.2f} to {max(means):.2f}, median {middle:.2f}; max {most:.0f}")
    RESULTS.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
