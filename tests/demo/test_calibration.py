"""The calibration set's manifest tells the truth about its files."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

from PIL import Image

from vlmexport.demo import scenes
from vlmexport.demo.heldout import QUESTIONS_PER_SCENE, SCENES

FOLDER = Path(__file__).parents[2] / "calibration"
MANIFEST = json.loads((FOLDER / "manifest.json").read_text(encoding="utf-8"))


def test_entries_match_their_files() -> None:
    files = set()
    for entry in MANIFEST["entries"]:
        path = FOLDER / entry["file"]
        assert hashlib.sha256(path.read_bytes()).hexdigest() == entry["sha256"], entry["file"]
        assert entry["source"]
        assert entry["licence"]
        assert entry["prompts"]
        with Image.open(path) as image:
            assert image.mode == "RGB"
            assert max(image.size) <= 640
        files.add(entry["file"])
    assert files == {f"images/{path.name}" for path in (FOLDER / "images").iterdir()}


def test_kinds_and_size() -> None:
    kinds = [entry["kind"] for entry in MANIFEST["entries"]]
    assert kinds.count("scene") == 64
    assert kinds.count("photograph") == 8
    assert sum((FOLDER / entry["file"]).stat().st_size for entry in MANIFEST["entries"]) < 5_000_000


def test_heldout_part_is_what_the_package_makes() -> None:
    heldout = MANIFEST["heldout"]
    assert heldout["first_seed"] == scenes.HELDOUT_SEEDS.start
    assert (heldout["scenes"], heldout["questions_per_scene"]) == (SCENES, QUESTIONS_PER_SCENE)
    assert heldout["generator_version"] == scenes.VERSION
