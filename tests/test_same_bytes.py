"""What compares two source trees sees one byte that differs, a file too few and too many, and a command that fails."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest

SCRIPT = Path(__file__).parents[1] / "benchmarks" / "same_bytes.py"

# A vlmexport of a few lines: `onnx demo --output one --force` writes a bundle.
MAIN = """
import os, sys
from pathlib import Path
folder = Path(sys.argv[4])
folder.mkdir(exist_ok=True)
for name in ("model.onnx", "config.json"):
    (folder / name).write_bytes(b"what it was")
(folder / "vlmexport.json").write_text(os.environ["VLMEXPORT_CACHE"])
"""
CHANGED = "(folder / 'model.onnx').write_bytes(b'what it Was')"
CASES = {
    "same": ("", []),
    "changed": (CHANGED, ["changed model.onnx"]),
    "missing": ("(folder / 'config.json').unlink()", ["missing config.json"]),
    "new": ("(folder / 'more.json').touch()", ["new more.json"]),
    "failed": ("sys.exit(3)", ["FAILED with exit code 3"]),
    "died": ("os.abort()", ["FAILED with exit code -6"]),
}


@pytest.fixture
def same_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The script with one bundle, without the imports and the checkpoints that a true export takes."""
    spec = importlib.util.spec_from_file_location("same_bytes", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "same_bytes", module)
    spec.loader.exec_module(module)
    monkeypatch.setattr(module, "LIBRARIES", "json")
    monkeypatch.setattr(module, "SETTINGS", {"samples": 1, "designs": {}, "bundles": {"one": "onnx demo"}})
    monkeypatch.setattr(module, "mkdtemp", lambda prefix: str(tmp_path / "output"))
    (tmp_path / "keep" / "checkpoints").mkdir(parents=True)
    return module


def tree(folder: Path, more: str = "") -> str:
    (folder / "vlmexport").mkdir(parents=True)
    (folder / "vlmexport" / "__init__.py").touch()
    (folder / "vlmexport" / "__main__.py").write_text(MAIN + more)
    return str(folder)


@pytest.mark.parametrize("case", CASES)
def test_a_difference_is_told(
    case: str, same_bytes: ModuleType, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    more, expected = CASES[case]
    base, head = tree(tmp_path / "base"), tree(tmp_path / "head", more)
    bad = same_bytes.compare(base, head, ["one"], tmp_path / "keep")
    shown = capfd.readouterr().out
    assert bad == bool(expected)
    assert all(line in shown for line in expected)
    assert f"1 bundles, {bad} different" in shown
    assert (tmp_path / "output").exists() == bool(expected)


def test_one_that_is_meant_holds_for_its_base_alone(
    same_bytes: ModuleType, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    base, head = tree(tmp_path / "base"), tree(tmp_path / "head", CHANGED)
    meant = {"base": str(tmp_path / "other"), "bundles": "o*", "files": "*.onnx", "why": "it was wrong"}
    same_bytes.SETTINGS["meant"] = [meant]
    assert same_bytes.compare(base, head, ["one"], tmp_path / "keep") == 1
    meant["base"] = base
    assert same_bytes.compare(base, head, ["one"], tmp_path / "keep") == 0
    assert "changed model.onnx, as meant: it was wrong" in capfd.readouterr().out


def test_what_the_base_cannot_export_is_said(
    same_bytes: ModuleType, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    base, head = tree(tmp_path / "base", "sys.exit(3)"), tree(tmp_path / "head")
    assert same_bytes.compare(base, head, ["one"], tmp_path / "keep") == 0
    assert "0 bundles, 0 different\nnot compared, because BASE cannot export them: one" in capfd.readouterr().out


def test_what_the_base_wrote_is_kept(same_bytes: ModuleType, tmp_path: Path) -> None:
    base, head = tree(tmp_path / "base"), tree(tmp_path / "head")
    assert same_bytes.compare(base, head, ["one"], tmp_path / "keep") == 0
    (tmp_path / "base" / "vlmexport" / "__main__.py").write_text("raise SystemExit(1)")
    assert same_bytes.compare(base, head, ["one"], tmp_path / "keep") == 0
    with pytest.raises(SystemExit, match="choose another folder"):
        same_bytes.compare(head, base, ["one"], tmp_path / "keep")
