"""A folder of photographs for ``vlmexport check --data``: 21 of scikit-image and scikit-learn, and four cuts of each.

    pip install 'vlmexport[bench]'
    python benchmarks/photographs.py DIR
    vlmexport check BUNDLE --data DIR --samples 105

A cut is two thirds of a photograph along both sides, from each corner, resized to 400 pixels along its longer side.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from PIL import Image

NAMES = (
    "astronaut.png", "brick.png", "camera.png", "cell.png", "chelsea.png", "clock_motion.png", "coffee.png",
    "coins.png", "grass.png", "gravel.png", "horse.png", "hubble_deep_field.jpg", "ihc.png", "moon.png",
    "motorcycle_left.png", "page.png", "retina.jpg", "rocket.jpg", "text.png", "china.jpg", "flower.jpg",
)  # fmt: skip
SIDE = 400


def photographs() -> list[Path]:
    """Their files."""
    import skimage
    import sklearn.datasets

    folders = (Path(skimage.__file__).parent / "data", Path(sklearn.datasets.__file__).parent / "images")
    return [next(folder / name for folder in folders if (folder / name).is_file()) for name in NAMES]


def cuts(image: Image.Image) -> list[Image.Image]:
    """From the upper left, the upper right, the lower left and the lower right."""
    width, height = image.width * 2 // 3, image.height * 2 // 3
    longer = max(image.size)
    size = image.width * SIDE // longer, image.height * SIDE // longer
    corners = [(x, y) for y in (0, image.height // 3) for x in (0, image.width // 3)]
    return [image.crop((x, y, x + width, y + height)).resize(size) for x, y in corners]


def main() -> None:
    """Parse and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    folder = parser.parse_args().folder
    folder.mkdir(parents=True, exist_ok=True)
    for path in photographs():
        image = Image.open(path).convert("RGB")
        image.save(folder / f"{path.stem}.png")
        for number, cut in enumerate(cuts(image)):
            cut.save(folder / f"{path.stem}-{number}.png")


if __name__ == "__main__":
    main()
