"""Right bundles of the demo and of the model that sees tiles, exported once a session, and what their float models make
of 20 questions."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import cache, partial
from importlib import import_module
from itertools import cycle, islice
from pathlib import Path

import pytest
from filelock import FileLock

from recipes.tiles import scenes as tiles
from tests.mutations.copies import Mutant
from vlmexport.calibrate import Sample
from vlmexport.calibrate.samples import Shown
from vlmexport.demo.heldout import heldout_questions
from vlmexport.demo.paint import paint
from vlmexport.demo.scenes import HELDOUT_SEEDS, make_scene
from vlmexport.parity import check
from vlmexport.parity.compare import one_runtime
from vlmexport.parity.reference import values
from vlmexport.pipeline import export
from vlmexport.processing.messages import Message
from vlmexport.recipe import resolve

FORMATS = {
    "fp32": ("onnx-fp32", {}),
    "int8": ("onnx-x86", {"calibration.samples": 12, "onnx.fallback": "predicted"}),
    "gguf": ("gguf-f32", {}),
}
TILES = {"tiles-fp32": ("onnx-fp32", {}), "tiles-gguf": ("gguf-f32", {})}
"""Of the model that sees tiles."""
MODEL = Path(__file__).parents[2] / "models" / "tiles"
LONGEST = 16
"""Tokens of an answer; the float model's are of nine at most."""

Right = Callable[[str], Path]
Mutate = Callable[[str], Mutant]


def about(seed: int, count: int, size: tuple[int, int] | None = None) -> list[Sample]:
    """Questions about a held-out scene, again from the first where it has fewer; cut to ``size`` where one is given."""
    scene = make_scene(seed)
    image = paint(scene)
    if size is not None:
        image = image.crop((0, 0, *size))
    asked = heldout_questions(scene, None)
    return [
        Sample(f"{seed}{size}#{number}", f"{seed}{size}", one.text, lambda: image, answer=one.answer, kind=one.kind)
        for number, one in enumerate(islice(cycle(asked), count))
    ]


def questions(square: bool) -> list[Sample]:
    """Twenty about two scenes; unless ``square``, the second is cut to a wide picture."""
    first, second = HELDOUT_SEEDS[:2]
    return [*about(first, 10), *about(second, 10, None if square else (336, 200))]


def about_tiles(seeds: Sequence[int]) -> list[Sample]:
    """Nine questions about each scene, then about the first two at once, and with a turn before. Every second picture
    is cut to one of 2x3 tiles."""
    asked: list[Sample] = []
    for place, seed in enumerate(seeds):
        scene = tiles.make_scene(seed)
        image = tiles.paint(scene)
        load = partial(image.crop, (0, 0, image.width, 300)) if place % 2 else partial(image.copy)
        asked += [
            Sample(f"{seed}#{number}", f"{seed}", one.text, load, answer=one.answer, kind=one.kind)
            for number, one in enumerate(islice(cycle(tiles.ask(scene)), 9))
        ]
    first, second = asked[0], asked[9]
    both = replace(first, id=f"{seeds[0]}-both", more=(Shown(second.image_id, second.load),))
    said = (*first.messages, Message("assistant", ("four",)), Message("user", (second.question,)))
    return [*asked, both, replace(first, id=f"{seeds[0]}-turns", question=second.question, conversation=said)]


def asked_of(name: str) -> list[Sample]:
    """What the bundle of a name, or a damaged copy of it, is asked."""
    return about_tiles(tiles.SEEDS["heldout"][:2]) if name in TILES else questions(name == "gguf")


@pytest.fixture(autouse=True, scope="module")
def _no_longer_than_told() -> Iterator[None]:
    """What a ruined decoder says never ends: longer than the longest right answer, it tells nothing more. Nor does
    what llama.cpp makes of a mutant without our repairs, which is for tests/parity/test_stock.py."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OMP_WAIT_POLICY", "PASSIVE")  # spinning, llama.cpp's threads take the core from another test
        for module in (values, one_runtime):
            patch.setattr(module, "MAX_NEW_TOKENS", LONGEST)
        patch.setattr(import_module("vlmexport.parity.check"), "STOCK_SAMPLES", 1)
        yield


@pytest.fixture(scope="session")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that workers of pytest-xdist share: the first that needs a bundle exports it."""
    base = tmp_path_factory.getbasetemp()
    folder = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "mutations"
    folder.mkdir(exist_ok=True)
    return folder


@pytest.fixture(scope="session")
def right(shared: Path) -> Right:
    """The bundle of a name in ``FORMATS``."""

    @cache
    def bundle(name: str) -> Path:
        recipe, flags = (FORMATS | TILES)[name]
        with FileLock(shared / f"{name}.lock"):
            if not (shared / name).exists():
                export(str(MODEL) if name in TILES else "demo", resolve(recipe, flags, environ={}), shared / name)
        return shared / name

    return bundle


@pytest.fixture(scope="session")
def recording(right: Right, shared: Path) -> Right:
    """What the float model makes of what a bundle is asked, written while a right one passes."""

    @cache
    def recorded(name: str) -> Path:
        kind = "tiles-fp32" if name in TILES else "gguf" if name == "gguf" else "fp32"
        path = shared / f"said-{kind}.safetensors"
        with FileLock(path.with_suffix(".lock")):
            if not path.exists():
                result = check(right(kind), samples=asked_of(kind), record=path)
                assert result.passed, [gate for gate in result.gates if not gate.passed]
        return path

    return recorded


@pytest.fixture
def mutant(right: Right, recording: Right, tmp_path: Path) -> Mutate:
    """A copy of a right bundle, to be damaged and checked."""

    def copy(name: str) -> Mutant:
        recorded = recording(name)  # before the copy: it writes to a right bundle
        return Mutant(right(name), tmp_path / name, asked_of(name), recorded)

    return copy
