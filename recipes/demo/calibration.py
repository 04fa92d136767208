"""Make `calibration/` again: 64 scenes, 8 photographs with free licences, and where the held-out scenes come from.

python recipes/demo/calibration.py        (needs scikit-image and scikit-learn)
"""

from __future__ import annotations

import argparse
import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from vlmexport.demo.heldout import QUESTIONS_PER_SCENE, SCENES
from vlmexport.demo.paint import paint
from vlmexport.demo.questions import ask
from vlmexport.demo.scenes import CALIBRATION_SEEDS, HELDOUT_SEEDS, VERSION, make_scene

ROOT = Path(__file__).parents[2]
CALIBRATION_SCENES = 64
PROMPTS_PER_SCENE = 3
LONGEST = 640  # pixels
QUALITY = 92  # JPEG
SCENE_LICENCE = "Apache-2.0; sprites: Noto Color Emoji, SIL OFL 1.1"
PHOTO_PROMPTS = ["Describe the picture.", "What is this?", "What color is the background?", "Is there a cat?"]


@dataclass(frozen=True)
class Photograph:
    """A file inside an installed package, and where it comes from."""

    name: str
    package: str
    file: str
    source: str
    licence: str


NASA = "NASA, public domain"
PHOTOGRAPHS = (
    Photograph("astronaut", "skimage", "data/astronaut.png", f"{NASA}: https://flic.kr/p/r9qvLn", "public domain"),
    Photograph("coffee", "skimage", "data/coffee.png", "Rachel Michetti, Pikolo Espresso Bar", "CC0-1.0"),
    Photograph("chelsea", "skimage", "data/chelsea.png", "Stefan van der Walt", "CC0-1.0"),
    Photograph("camera", "skimage", "data/camera.png", "Lav Varshney", "CC0-1.0"),
    Photograph("clock", "skimage", "data/clock_motion.png", "Stefan van der Walt", "public domain"),
    Photograph(
        "rocket", "skimage", "data/rocket.jpg", "SpaceX: https://www.flickr.com/photos/spacexphotos/16511594820/",
        "public domain",
    ),
    Photograph(
        "hubble", "skimage", "data/hubble_deep_field.jpg",
        f"{NASA}: http://hubblesite.org/newscenter/archive/releases/2012/37/image/a/", "public domain",
    ),
    Photograph(
        "china", "sklearn", "datasets/images/china.jpg",
        "danielbuechele: https://www.flickr.com/photos/danielbuechele/6061409035/, resized", "CC-BY-2.0",
    ),
)  # fmt: skip


def entry(folder: Path, file: str, kind: str, source: str, licence: str, prompts: list[str]) -> dict[str, Any]:
    digest = hashlib.sha256((folder / file).read_bytes()).hexdigest()
    return {
        "file": file, "kind": kind, "source": source, "licence": licence, "sha256": digest, "prompts": prompts,
    }  # fmt: skip


def write_scene(folder: Path, seed: int) -> dict[str, Any]:
    scene = make_scene(seed)
    file = f"images/scene-{seed}.jpg"
    paint(scene).save(folder / file, quality=QUALITY)
    asked = ask(scene)
    order = np.random.default_rng([VERSION, 4, seed]).permutation(len(asked))
    prompts = [asked[int(index)].text for index in order[:PROMPTS_PER_SCENE]]
    source = f"vlmexport.demo.scenes.make_scene({seed}), generator version {VERSION}"
    return entry(folder, file, "scene", source, SCENE_LICENCE, prompts)


def write_photograph(folder: Path, photograph: Photograph) -> dict[str, Any]:
    package = Path(str(__import__(photograph.package).__file__)).parent
    file = f"images/photo-{photograph.name}.jpg"
    with Image.open(package / photograph.file) as opened:
        image = opened.convert("RGB")
    image.thumbnail((LONGEST, LONGEST), Image.Resampling.LANCZOS)
    image.save(folder / file, quality=QUALITY)
    source = f"{photograph.source} (from {photograph.package}: {photograph.file})"
    return entry(folder, file, "photograph", source, photograph.licence, PHOTO_PROMPTS)


def main() -> None:
    """Write images and manifest."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=ROOT / "calibration")
    out: Path = parser.parse_args().out
    (out / "images").mkdir(parents=True, exist_ok=True)
    entries = [write_scene(out, seed) for seed in CALIBRATION_SEEDS[:CALIBRATION_SCENES]]
    entries += [write_photograph(out, photograph) for photograph in PHOTOGRAPHS]
    heldout = {
        "kind": "generated scenes",
        "source": "vlmexport.demo.heldout.heldout_samples",
        "generator_version": VERSION,
        "first_seed": HELDOUT_SEEDS.start,
        "scenes": SCENES,
        "questions_per_scene": QUESTIONS_PER_SCENE,
        "licence": SCENE_LICENCE,
    }
    manifest = {"version": 1, "entries": entries, "heldout": heldout}
    (out / "manifest.json").write_text(json.dumps(manifest, indent=1) + "\n", encoding="utf-8")
    print(f"{len(entries)} images, {sum((out / e['file']).stat().st_size for e in entries)} bytes")


if __name__ == "__main__":
    main()
