"""JUnit XML says what the result says, and stays XML whatever an answer holds."""

from __future__ import annotations

from xml.etree.ElementTree import Element, fromstring

from tests.report.results import gate, measured, result, stock
from vlmexport.errors import ParityFailed
from vlmexport.parity.baseline import compared
from vlmexport.report.junit import junit, junit_of_error


def suite(text: str) -> Element:
    (found,) = fromstring(text)
    assert {name: int(found.get(name, "-1")) for name in ("tests", "failures", "errors", "skipped")} == {
        "tests": len(found.findall("testcase")),
        "failures": len(found.findall("testcase/failure")),
        "errors": len(found.findall("testcase/error")),
        "skipped": len(found.findall("testcase/skipped")),
    }
    return found


def test_one_case_per_stage_and_side() -> None:
    cases = suite(junit(result(True))).findall("testcase")
    assert [case.get("name") for case in cases] == ["features (local)", "tokens (local)"]
    assert {case.get("classname") for case in cases} == {"demo-x86.x86"}


def test_a_failure_names_gate_measured_and_allowed() -> None:
    (failure,) = suite(junit(result(False))).findall("testcase/failure")
    assert failure.get("message") == "cosine is 0.7, the gate is ≥ 0.99"


def test_a_stage_that_did_not_run_is_a_case_and_fails() -> None:
    missing = gate(0.0, "logits", "chained").model_copy(update={"value": None})
    (failure,) = suite(junit(result(False, gates=[missing]))).findall("testcase[@name='logits (chained)']/failure")
    assert failure.get("message") == "cosine is not measured, the gate is ≥ 0.99"


def test_stock_fails_only_where_it_counts() -> None:
    relaxed = suite(junit(result(True, stock=stock(0.5))))
    (skipped,) = relaxed.findall("testcase[@name='features (stock)']/skipped")
    assert "0.5" in str(skipped.get("message"))
    strict = suite(junit(result(False, stock=stock(0.5), strict_stock=True, gates=[])))
    assert len(strict.findall("testcase[@name='features (stock)']/failure")) == 1
    assert not suite(junit(result(True, stock=stock(1.0)))).findall("testcase/skipped")


def test_control_characters_do_not_break_it() -> None:
    found = suite(junit(result(True, reference="a\x00b\x1b[0m <&> \ud800 é")))
    (value,) = (p.get("value") for p in found.findall("properties/property") if p.get("name") == "reference")
    assert value == "a\ufffdb\ufffd[0m <&> \ufffd é"


def test_no_verdict_is_an_error() -> None:
    (error,) = suite(junit_of_error("demo", ParityFailed("x.onnx is missing", "export again"))).findall(
        "testcase/error"
    )
    assert error.get("message") == "x.onnx is missing: export again"


def test_a_regression_fails_and_shows_both_values() -> None:
    now = compared(result(True), result(True, stages=measured(features={"cosine": 0.99999})), slack=0.1)
    (failure,) = suite(junit(now)).findall("testcase[@name='features (local)']/failure")
    assert failure.get("message") == "cosine is 0.99995, the baseline's 0.99999 allows ≥ 0.99998"
    (case,) = suite(junit(now)).findall("testcase[@name='features (local)']/system-out")
    assert "cosine 0.99995, the baseline's 0.99999" in str(case.text)
