"""Right bundles of the demo model, exported once a session, and what the float model makes of 20 questions."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from functools import cache
from importlib import import_module
from itertools import cycle, islice
from pathlib import Path

import pytest
from filelock import FileLock

from tests.mutations.copies import Mutant
from vlmexport.calibrate import Sample
from vlmexport.demo.heldout import heldout_questions
from vlmexport.demo.paint import paint
from vlmexport.demo.scenes import HELDOUT_SEEDS, make_scene
from vlmexport.parity import check
from vlmexport.parity.compare import one_runtime
from vlmexport.parity.reference import values
from vlmexport.pipeline import export
from vlmexport.recipe import resolve

FORMATS = {
    "fp32": ("onnx-fp32", {}),
    "int8": ("onnx-x86", {"calibration.samples": 12, "onnx.fallback": "predicted"}),
    "gguf": ("gguf-f32", {}),
}
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
        recipe, flags = FORMATS[name]
        with FileLock(shared / f"{name}.lock"):
            if not (shared / name).exists():
                export("demo", resolve(recipe, flags, environ={}), shared / name)
        return shared / name

    return bundle


@pytest.fixture(scope="session")
def recording(right: Right, shared: Path) -> Callable[[bool], Path]:
    """What the float model makes of ``questions``, written while a right bundle passes."""

    @cache
    def recorded(square: bool) -> Path:
        path = shared / f"{'square' if square else 'wide'}.safetensors"
        with FileLock(path.with_suffix(".lock")):
            if not path.exists():
                result = check(right("gguf" if square else "fp32"), samples=questions(square), record=path)
                assert result.passed, [gate for gate in result.gates if not gate.passed]
        return path

    return recorded


@pytest.fixture
def mutant(right: Right, recording: Callable[[bool], Path], tmp_path: Path) -> Mutate:
    """A copy of a right bundle, to be damaged and checked."""

    def copy(name: str) -> Mutant:
        square = name == "gguf"
        recorded = recording(square)  # before the copy: it writes to a right bundle
        return Mutant(right(name), tmp_path / name, questions(square), recorded)

    return copy
