"""Every report names the int8 kernels, and says where they saturate."""

from __future__ import annotations

import io
from xml.etree.ElementTree import fromstring

import pytest
from rich.console import Console

from tests.report.results import result
from tests.report.test_bench import bundle, row, shown
from tests.report.test_cores import result as result_of_cores
from tests.report.test_html import manifest
from vlmexport.artifact.bundle.card import _parity
from vlmexport.parity.result import ParityResult
from vlmexport.parity.summary import summary
from vlmexport.report.html import html
from vlmexport.report.junit import junit
from vlmexport.report.markdown import markdown
from vlmexport.report.terminal import parity
from vlmexport.runtime.int8_kernels import Int8Kernels

SATURATING = Int8Kernels("AVX2 without VNNI", True, 7)
SAID = "AVX2 without VNNI, which can saturate in 7 layers"


def terminal(found: ParityResult) -> str:
    out = io.StringIO()
    Console(file=out, width=200).print(parity(found))
    return out.getvalue()


@pytest.mark.parametrize("passed", [True, False])
def test_the_verdict_says_on_which_kernels(passed: bool) -> None:
    found = result(passed, kernels=SATURATING)
    assert f"onnxruntime, int8 by {SAID}" in terminal(found).splitlines()[-1]
    assert f"int8 by {SAID}" in markdown(found).replace("\\", "")
    assert f"onnxruntime, int8 by {SAID}" in html(found, manifest())
    (suite,) = fromstring(junit(found))
    assert {one.get("name"): one.get("value") for one in suite.iter("property")}["int8 kernels"] == SAID
    page = "\n".join(_parity(summary(found))).replace("\\", "")
    assert f"with onnxruntime (int8 by {SAID})" in page
    assert ParityResult.model_validate_json(found.model_dump_json()).kernels == SATURATING


def test_exact_kernels_have_a_name_alone() -> None:
    found = result(True, kernels=Int8Kernels("VNNI"))
    assert "onnxruntime, int8 by VNNI, 1 s" in terminal(found)
    assert "can saturate" not in html(found, manifest())


def test_float_bundles_have_none() -> None:
    found = result(True)
    assert "int8 by" not in terminal(found) + markdown(found) + html(found, manifest()) + junit(found)


def test_cores_have_their_own() -> None:
    found = result_of_cores()
    cores = [
        core.model_copy(update={"kernels": Int8Kernels(name)})
        for core, name in zip(found.cores, ("dot product", "i8mm"), strict=True)
    ]
    found = found.model_copy(update={"cores": cores})
    assert "passes on onnxruntime on cortex-a76, int8 by dot product" in terminal(found)
    assert "max: onnxruntime on max, int8 by i8mm" in html(found, manifest())
    page = "\n".join(_parity(summary(found))).replace("\\", "")
    assert "onnxruntime on max (int8 by i8mm): **failed**" in page
    (suite,) = fromstring(junit(found))
    assert {one.get("name"): one.get("value") for one in suite.iter("property")}["int8 kernels of max"] == "i8mm"
    assert "onnxruntime on cortex-a76, int8 by dot product" in markdown(found).replace("\\", "")


def test_bench_has_a_row() -> None:
    text = shown(bundle("one", kernels=SATURATING), bundle("two"))
    assert "which can saturate" in row(text, "int8 kernels")
    assert "none" in row(text, "int8 kernels")
    assert bundle("one", kernels=SATURATING).facts()["kernels"]["layers"] == 7
