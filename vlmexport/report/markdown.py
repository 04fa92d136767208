"""A parity result as GitHub's Markdown: for a step summary, a pull request, a release page."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

from vlmexport.errors import VlmExportError
from vlmexport.parity.result import Answer, ParityResult
from vlmexport.report.places import costs
from vlmexport.report.rows import Row, rows

_ANSWERS_SHOWN = 20
_SPECIAL = re.compile(r"([\\`*_\[\]#|<>~&$])")


def markdown(result: ParityResult) -> str:
    """Verdict, stages, gates that fail, answers that differ, notes."""
    found = rows(result)
    verdict = "passes" if result.passed else f"fails at {result.broken_stage}"
    lines = [
        f"## {_escaped(result.bundle)} {verdict}",
        "",
        f"{_escaped(result.recipe)} for {result.target}, {_escaped(result.runtime)} against "
        f"{_escaped(result.reference)}: {result.samples} samples of {result.images} images ({_escaped(result.data)}), "
        f"{result.seconds:.0f} s.",
        "",
        *_stages(found, result.baseline is not None),
        "",
    ]
    failures = [(row, text) for row in found if row.counts for text in row.failures]
    lines += [f"- **{row.stage}** ({row.side}): {_escaped(text)}" for row, text in failures]
    lines += _answers([answer for answer in result.answers if not answer.equal], len(result.answers))
    lines += [f"- {_escaped(text)}" for text in (costs(result.bisect) if result.bisect else ())]
    lines += [f"- {_escaped(note)}" for note in result.notes]
    return "\n".join(lines) + "\n"


def markdown_of_error(bundle: str, error: VlmExportError) -> str:
    """Why there is no verdict."""
    return f"## {_escaped(bundle)} has no verdict\n\n{_escaped(str(error))}\n"


def _stages(found: Sequence[Row], with_baseline: bool) -> list[str]:
    head = ("stage", "fed", "measured", *(("baseline",) if with_baseline else ()), "gates")
    body = []
    for row in found:
        measured, before = _escaped(", ".join(row.measured)), (", ".join(row.before),) if with_baseline else ()
        body.append((row.stage, row.fed, measured, *before, "pass" if row.passed else "**FAIL**"))
    return _table(head, body)


def _answers(different: Sequence[Answer], count: int) -> list[str]:
    if not different:
        return []
    shown = different[:_ANSWERS_SHOWN]
    more = f", the first {len(shown)}" if len(shown) < len(different) else ""
    cells = (
        (
            _escaped(answer.question),
            _escaped(answer.reference),
            _escaped(answer.bundle),
            "" if answer.margin is None else f"{answer.margin:.3f}",
        )
        for answer in shown
    )
    return [
        "",
        f"<details><summary>{len(different)} of {count} answers differ{more}</summary>",
        "",
        *_table(("question", "float model", "bundle", "margin"), cells),
        "",
        "</details>",
        "",
    ]


def _table(head: Sequence[str], body: Iterable[Sequence[str]]) -> list[str]:
    return [_line(head), "|---" * len(head) + "|", *(_line(row) for row in body)]


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _escaped(text: str) -> str:
    """On one line, and nothing in it read as Markdown: questions and answers may hold anything."""
    return _SPECIAL.sub(r"\\\1", " ".join(text.split()))
