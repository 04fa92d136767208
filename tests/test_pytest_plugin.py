"""The pytest plugin as its users meet it: pytest is run on a real bundle, and its cases are looked at.

In processes of their own: pytester would take from this one again what a run has imported, runtimes included.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest

from tests.onnx_bundles import Bundles
from vlmexport.artifact.bundle import read_manifest, write_manifest
from vlmexport.recipe import Gates

pytest_plugins = ["pytester"]
PLUGIN = ("-p", "vlmexport.pytest_plugin", "-p", "no:cacheprovider")


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
def test_cases_are_listed_without_a_check(bundle: Path, pytester: pytest.Pytester) -> None:
    result = pytester.runpytest_subprocess(*PLUGIN, "--collect-only", "-q", "--vlmexport-bundle", str(bundle))
    listed = [line for line in result.outlines if line.startswith("tiny::")]
    assert listed == [
        "tiny::pixels-chained-finite",
        *(f"tiny::features-{mode}-{metric}" for mode in ("local", "chained") for metric in ("finite", "cosine")),
        *(f"tiny::tokens-{mode}-finite" for mode in ("local", "chained")),
        *(f"tiny::logits-{mode}-finite" for mode in ("local", "chained")),
        *(f"tiny::answer-{mode}-task_drop" for mode in ("local", "chained")),
    ]
    assert not (bundle / "parity.json").exists()


@pytest.mark.slow
def test_int8_layers_are_cases(onnx_bundle: Bundles, pytester: pytest.Pytester) -> None:
    result = pytester.runpytest_subprocess(
        *PLUGIN, "--collect-only", "-q", "--vlmexport-bundle", str(onnx_bundle("int8"))
    )
    listed = {line for line in result.outlines if line.endswith("wrong_layers")}
    assert listed == {f"int8::{stage}-local-wrong_layers" for stage in ("features", "tokens", "logits")}


@pytest.mark.slow
def test_a_gate_that_fails_is_a_case_that_fails(bundle: Path, pytester: pytest.Pytester) -> None:
    options = (*PLUGIN, "--vlmexport-samples", "20", "--vlmexport-bundle", str(bundle))
    with_gates(bundle, features_cosine=0.999, tokens_cosine=1.5, answer_task_drop=0.1)
    result = pytester.runpytest_subprocess(*options, "-k", "features or tokens or answer")
    result.assert_outcomes(passed=8, failed=2, deselected=3)
    result.stdout.fnmatch_lines(["*tiny: cosine is *, the gate is ≥ 1.5"])


@pytest.mark.slow
def test_a_bundle_that_was_changed_fails_every_case(bundle: Path, pytester: pytest.Pytester) -> None:
    (bundle / "config.json").write_text("{}")
    result = pytester.runpytest_subprocess(*PLUGIN, "--vlmexport-bundle", str(bundle))
    result.assert_outcomes(failed=11)
    result.stdout.fnmatch_lines(["*config.json is not the file that was exported*"])


@pytest.mark.slow
def test_no_bundle_is_a_usage_error(pytester: pytest.Pytester) -> None:
    result = pytester.runpytest_subprocess(*PLUGIN, "--vlmexport-bundle", "nowhere")
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines(["*nowhere is not a bundle*"])


def test_other_runs_are_left_alone(pytester: pytest.Pytester) -> None:
    pytester.makepyfile("import sys\ndef test_light():\n    assert 'vlmexport.parity.check' not in sys.modules")
    pytester.runpytest_subprocess(*PLUGIN).assert_outcomes(passed=1)
