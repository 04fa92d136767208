"""A parity result as JUnit XML, the form that GitHub, GitLab and Jenkins read: one case per stage, side and target."""

from __future__ import annotations

from xml.etree.ElementTree import Element, SubElement, indent, tostring

from vlmexport.artifact.bundle.card import number
from vlmexport.errors import VlmExportError
from vlmexport.parity.result import ParityResult
from vlmexport.report.rows import Row, rows
from vlmexport.text import plain


def junit(result: ParityResult) -> str:
    """One suite. A case fails with the gates that fail; one that does not count in the verdict is skipped instead."""
    cases = rows(result)
    suite = _suite(
        result.bundle,
        tests=len(cases),
        failures=sum(not row.passed for row in cases if row.counts),
        skipped=sum(not row.passed for row in cases if not row.counts),
        time=f"{result.seconds:.3f}",
    )
    properties = SubElement(suite, "properties")
    about = {"recipe": result.recipe, "reference": result.reference, "runtime": result.runtime}
    named = {"int8 kernels": result.kernels} | {f"int8 kernels of {one.core}": one.kernels for one in result.cores}
    about |= {name: str(kernels) for name, kernels in named.items() if kernels}
    for name, value in (about | {"samples": str(result.samples)}).items():
        SubElement(properties, "property", _attributes(name=name, value=value))
    for row in cases:
        _case(suite, result, row)
    return _text(suite)


def junit_of_error(bundle: str, error: VlmExportError) -> str:
    """A suite whose one case says why there is no verdict."""
    suite = _suite(bundle, tests=1, errors=1)
    case = SubElement(suite, "testcase", _attributes(classname=bundle, name="check"))
    SubElement(case, "error", _attributes(message=str(error), type=type(error).__name__))
    return _text(suite)


def _suite(bundle: str, **counts: object) -> Element:
    whole = {"tests": 0, "failures": 0, "errors": 0, "skipped": 0} | counts
    return Element("testsuite", _attributes(name=f"vlmexport check {bundle}", **whole))


def _case(suite: Element, result: ParityResult, row: Row) -> None:
    name = f"{row.stage} ({row.side})"
    case = SubElement(suite, "testcase", _attributes(classname=f"{result.bundle}.{result.target}", name=name))
    if row.failures:
        text = "; ".join(row.failures)
        if row.counts:
            failure = SubElement(case, "failure", _attributes(message=text, type="gate"))
            failure.text = plain("\n".join([*row.failures, *([row.error] if row.error else [])]))
        else:
            SubElement(case, "skipped", _attributes(message=f"{row.spared}: {text}"))
    SubElement(case, "system-out").text = plain(_metrics(row))


def _metrics(row: Row) -> str:
    before = {name: f", the baseline's {number(value)}" for name, value in row.old.items()}
    return "\n".join(f"{name} {number(value)}{before.get(name, '')}" for name, value in row.metrics.items())


def _attributes(**values: object) -> dict[str, str]:
    return {name: plain(str(value)) for name, value in values.items()}


def _text(suite: Element) -> str:
    root = Element("testsuites")
    root.append(suite)
    indent(root)
    return tostring(root, encoding="unicode", xml_declaration=True) + "\n"
