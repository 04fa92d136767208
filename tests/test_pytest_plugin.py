"""The pytest plugin as its users meet it: pytest is run on a real bundle, and its cases are looked at.

Inside of this process, which has imported torch and the runtimes already. (``pytester`` would take from it again what
a run has imported.)
"""

from __future__ import annotations

import io
import re
import shutil
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any

import pytest

from tests.onnx_bundles import Bundles
from vlmexport.artifact.bundle.manifest import read_manifest
from vlmexport.artifact.bundle.write import write_manifest
from vlmexport.recipe import Gates

pytest_plugins = ["pytester"]
PLUGIN = ("-p", "vlmexport.pytest_plugin", "-p", "no:cacheprovider")


def run(folder: Path, *options: str) -> tuple[int, list[str]]:
    """Run pytest in a folder; its exit code, and the lines that it prints."""
    out = io.StringIO()
    with pytest.MonkeyPatch.context() as patch, redirect_stdout(out), redirect_stderr(out):
        patch.chdir(folder)
        code = pytest.main([*PLUGIN, "--capture=no", "-p", "no:faulthandler", *options])
    return int(code), out.getvalue().splitlines()


@pytest.fixture
def bundle(onnx_bundle: Bundles, tmp_path: Path) -> Path:
    """A float bundle with gates."""
    copy = Path(shutil.copytree(onnx_bundle("fp32"), tmp_path / "tiny"))
    (copy / "parity.json").unlink(missing_ok=True)  # of a check in another test
    return with_gates(copy, features_cosine=0.999, answer_task_drop=0.1)


def with_gates(folder: Path, **gates: Any) -> Path:
    manifest = read_manifest(folder)
    recipe = manifest.recipe.model_copy(update={"gates": Gates(**gates)})
    write_manifest(folder, manifest.model_copy(update={"recipe": recipe}))
    return folder


@pytest.mark.slow
def test_cases_are_listed_without_a_check(bundle: Path, tmp_path: Path) -> None:
    _, lines = run(tmp_path, "--collect-only", "-q", "--vlmexport-bundle", str(bundle))
    listed = [line for line in lines if line.startswith("tiny::")]
    assert listed == [
        "tiny::pixels-chained-finite",
        *(f"tiny::features-{mode}-{metric}" for mode in ("local", "chained") for metric in ("finite", "cosine")),
        *(f"tiny::tokens-{mode}-finite" for mode in ("local", "chained")),
        *(f"tiny::logits-{mode}-finite" for mode in ("local", "chained")),
        *(f"tiny::answer-{mode}-task_drop" for mode in ("local", "chained")),
    ]
    assert not (bundle / "parity.json").exists()


@pytest.mark.slow
def test_int8_layers_are_cases(onnx_bundle: Bundles, tmp_path: Path) -> None:
    _, lines = run(tmp_path, "--collect-only", "-q", "--vlmexport-bundle", str(onnx_bundle("int8")))
    listed = {line for line in lines if line.endswith("wrong_layers")}
    assert listed == {f"int8::{stage}-local-wrong_layers" for stage in ("features", "tokens", "logits")}


@pytest.mark.slow
@pytest.mark.usefixtures("short_answers")
def test_a_gate_that_fails_is_a_case_that_fails(bundle: Path, tmp_path: Path) -> None:
    options = ("--vlmexport-samples", "20", "--vlmexport-bundle", str(bundle))
    with_gates(bundle, features_cosine=0.999, tokens_cosine=1.5, answer_task_drop=0.1)
    code, lines = run(tmp_path, *options, "-k", "features or tokens or answer")
    assert code == pytest.ExitCode.TESTS_FAILED
    assert "2 failed, 8 passed, 3 deselected" in lines[-1]
    assert any(re.search(r"tiny: cosine is .*, the gate is ≥ 1\.5$", line) for line in lines)


@pytest.mark.slow
def test_a_bundle_that_was_changed_fails_every_case(bundle: Path, tmp_path: Path) -> None:
    (bundle / "config.json").write_text("{}")
    code, lines = run(tmp_path, "--vlmexport-bundle", str(bundle))
    assert code == pytest.ExitCode.TESTS_FAILED
    assert "11 failed" in lines[-1]
    assert "passed" not in lines[-1]
    assert any("config.json is not the file that was exported" in line for line in lines)


@pytest.mark.slow
def test_no_bundle_is_a_usage_error(tmp_path: Path) -> None:
    code, lines = run(tmp_path, "--vlmexport-bundle", "nowhere")
    assert code == pytest.ExitCode.USAGE_ERROR
    assert any("nowhere is not a bundle" in line for line in lines)


def test_other_runs_are_left_alone(pytester: pytest.Pytester) -> None:
    pytester.makepyfile("import sys\ndef test_light():\n    assert 'vlmexport.parity.check' not in sys.modules")
    pytester.runpytest_subprocess(*PLUGIN).assert_outcomes(passed=1)
