"""What other people's CI runs: the commands of action.yml and of docs/ci.md."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.testing import CliRunner

from tests.onnx_bundles import SHORT, Bundles
from vlmexport.cli import app

ROOT = Path(__file__).parents[1]
COMMAND = f"""#!{sys.executable}
from vlmexport.cli import main
from vlmexport.parity.compare import one_runtime
from vlmexport.parity.reference import values
values.MAX_NEW_TOKENS = one_runtime.MAX_NEW_TOKENS = {SHORT}
main()
"""
"""What is installed as ``vlmexport``, with short answers: random models never end theirs."""


@pytest.fixture(scope="module")
def action() -> dict[str, Any]:
    found: dict[str, Any] = yaml.safe_load((ROOT / "action.yml").read_text(encoding="utf-8"))
    return found


def step(action: dict[str, Any]) -> dict[str, Any]:
    """The one that checks."""
    (found,) = (step for step in action["runs"]["steps"] if "vlmexport check" in step.get("run", ""))
    return found


def run(action: dict[str, Any], folder: Path, **inputs: str) -> int:
    """The step's own script in bash, as a runner would run it; the exit code."""
    given = {name: str(value.get("default", "")) for name, value in action["inputs"].items()} | inputs
    environment = {
        name: re.sub(r"\${{ inputs\.([\w-]+) }}", lambda match: given[match[1]], value)
        for name, value in step(action)["env"].items()
    }
    (folder / "bin").mkdir(exist_ok=True)
    command = folder / "bin" / "vlmexport"
    command.write_text(COMMAND)
    command.chmod(0o755)
    path = f"{command.parent}:{os.environ['PATH']}"
    github = {"GITHUB_STEP_SUMMARY": str(folder / "summary.md"), "GITHUB_ACTIONS": "true", "PATH": path}
    script = ["bash", "--noprofile", "--norc", "-eo", "pipefail", "-c", step(action)["run"]]
    return subprocess.run(script, cwd=folder, env=os.environ | environment | github, timeout=300).returncode


@pytest.mark.slow
def test_the_action_checks_and_reports(action: dict[str, Any], onnx_bundle: Bundles, tmp_path: Path) -> None:
    bundle = str(onnx_bundle("fp32"))
    assert run(action, tmp_path, bundle=bundle, samples="20", report="first") == 0
    assert {path.name for path in (tmp_path / "first").iterdir()} == {"parity.json", "parity.xml", "parity.html"}
    assert "passes" in (tmp_path / "summary.md").read_text(encoding="utf-8")
    baseline = str(tmp_path / "first" / "parity.json")
    assert run(action, tmp_path, bundle=bundle, samples="21", baseline=baseline, report="second") == 2
    assert {path.name for path in (tmp_path / "second").iterdir()} == {"parity.xml"}
    assert "other samples" in (tmp_path / "summary.md").read_text(encoding="utf-8")


def test_every_input_is_used_and_known(action: dict[str, Any]) -> None:
    used = set(re.findall(r"inputs\.([\w-]+)", str(action["runs"])))
    assert used == set(action["inputs"])


def test_the_page_names_only_what_there_is(action: dict[str, Any]) -> None:
    page = (ROOT / "docs" / "ci.md").read_text(encoding="utf-8")
    github, gitlab = (yaml.safe_load(block) for block in re.findall(r"```yaml\n(.*?)```", page, re.DOTALL))
    (used,) = (step for step in github["jobs"]["check"]["steps"] if "vlmexport" in step["uses"])
    listed = re.search(r"other inputs \((.*?)\)", page, re.DOTALL)
    assert listed
    assert set(re.findall(r"`(.*?)`", listed[1])) | set(used["with"]) == set(action["inputs"]) - {"python-version"}
    assert gitlab["parity"]["artifacts"]["reports"]["junit"] in str(gitlab["parity"]["script"])
    options = set(re.findall(r"(?<!-)--[a-z][a-z-]*", " ".join(re.findall(r"vlmexport check.*", page))))
    shown = CliRunner().invoke(app, ["check", "--help"], env={"COLUMNS": "200"}).output
    assert options
    assert all(option in shown for option in options)
