"""Every pair of kinds at least once, from ``new`` to ``check``: ONNX in float and for both targets, GGUF or a hybrid.

Each encoder meets every projector, and the language models take turns along both, so that each meets every encoder and
every projector too. ``make test`` goes through two combinations that share nothing, ``make rotating`` through those
that its seed chooses, ``make thorough`` through all.
"""

from __future__ import annotations

import json
import pkgutil
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

import vlmexport.model.language
import vlmexport.model.projector
import vlmexport.model.vision
from tests.command import vlmexport as command
from tests.rotation import rotating
from vlmexport.parity.compare import one_runtime
from vlmexport.parity.reference import values


def examples(folder: ModuleType) -> list[str]:
    """One of each kind that a plug-in folder holds."""
    return [
        str(import_module(f"{folder.__name__}.{info.name}").EXAMPLE) for info in pkgutil.iter_modules(folder.__path__)
    ]


VISIONS, PROJECTORS, LANGUAGES = (
    examples(folder) for folder in (vlmexport.model.vision, vlmexport.model.projector, vlmexport.model.language)
)
COMBINATIONS = [
    (vision, projector, LANGUAGES[(row + column) % len(LANGUAGES)])
    for column, projector in enumerate(PROJECTORS)
    for row, vision in enumerate(VISIONS)
]
FEW = [COMBINATIONS[0], next(one for one in reversed(COMBINATIONS) if not set(one) & set(COMBINATIONS[0]))]
PART = 8
SAMPLES = "20"
SIZES = ("168", "384", "192", "768")
"""Of images: 12x12 patches of every encoder, which every projector takes and the positions of a BERT hold."""


@pytest.fixture(autouse=True)
def _short_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    """Random models do not end their answers, and no layer is worth the search for it."""
    monkeypatch.setenv("VLMEXPORT_ONNX_FALLBACK", "predicted")
    for module in (values, one_runtime):
        monkeypatch.setattr(module, "MAX_NEW_TOKENS", 4)


def ask(*arguments: str | Path, codes: tuple[int, ...] = (0,)) -> Any:
    """What a command prints as JSON; what it says where it refuses (code 3)."""
    done = command(*arguments, "--json")
    assert done.returncode in codes, done.stderr
    return json.loads(done.stdout) if done.returncode != 3 else done.stderr


def test_each_pair_is_met() -> None:
    kinds = (VISIONS, PROJECTORS, LANGUAGES)
    for one, other in ((0, 1), (0, 2), (1, 2)):
        assert {(c[one], c[other]) for c in COMBINATIONS} == {(a, b) for a in kinds[one] for b in kinds[other]}


@pytest.mark.slow
@pytest.mark.parametrize(("vision", "projector", "language"), rotating(COMBINATIONS, FEW, PART))
def test_from_new_to_check(vision: str, projector: str, language: str, tmp_path: Path) -> None:
    if "timm" in vision or "fastvit" in vision:
        pytest.importorskip("timm", reason="timm is not installed")
    model = tmp_path / "model"
    made: Any = ""
    for size in SIZES:
        if isinstance(made, str):
            parts = ("--vision", vision, "--projector", projector, "--language", language, "--image-size", size)
            made = ask("new", *parts, "-o", model, codes=(0, 3))
    assert isinstance(made, dict), made
    assert ask("plan", model)
    for name, flags in {
        "fp32": ("--precision", "fp32"), "x86": ("--target", "x86", "--samples", "4"),
        "arm64": ("--target", "arm64", "--samples", "4"),
    }.items():  # fmt: skip
        ask("onnx", model, *flags, "-o", tmp_path / name)
        measured = verdict(tmp_path / name, (0,) if name == "fp32" else (0, 1))
        assert measured["tokens"]["cosine"] > (1 - 1e-6 if name == "fp32" else 0.9)
        assert measured["answer"]["equal"] == 1 or name != "fp32"
    gguf = ["gguf", model, "--type", "f16", "-o", tmp_path / "gguf"]
    made = ask(*gguf, codes=(0, 3))
    if "--vision onnx" in made:
        made = ask(*gguf, "--vision", "onnx", codes=(0, 3))
    if isinstance(made, str):
        assert "GGUF cannot hold a" in made  # the language model
        assert language.partition(":")[0] in made
    else:
        measured = verdict(tmp_path / "gguf", (0, 1))
        assert measured["tokens"]["cosine"] > 0.9
        assert measured["logits"]["kld"] < 1e-3


def verdict(bundle: Path, codes: tuple[int, ...]) -> dict[str, dict[str, float]]:
    """What ``check`` measured, each stage on the reference's input (an answer on the bundle's own)."""
    found = ask("check", bundle, "--samples", SAMPLES, codes=codes)
    return {stage["stage"]: stage["metrics"] for stage in found["stages"] if stage["mode"] == "local"}
