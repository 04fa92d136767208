"""A parity result as GitHub's Markdown: for a step summary, a pull request, a release page."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from vlmexport.artifact.bundle.card import of_views
from vlmexport.errors import VlmExportError
from vlmexport.parity.result import Answer, ParityResult
from vlmexport.parity.summary import views
from vlmexport.report.places import costs
from vlmexport.report.rows import Row, ran_on, rows
from vlmexport.text import markdown as escaped

_ANSWERS_SHOWN = 20


def markdown(result: ParityResult) -> str:
    """Verdict, stages, gates that fail, answers that differ, notes."""
    found = rows(result)
    verdict = "passes" if result.passed else f"fails at {result.broken_stage}"
    lines = [
        f"## {escaped(result.bundle)} {verdict}",
        "",
        f"{escaped(result.recipe)} for {result.target}, {escaped(ran_on(result))} against "
        f"{escaped(result.reference)}: {result.samples} samples of {result.images} images ({escaped(result.data)}), "
        f"{result.seconds:.0f} s.",
        "",
        *_stages(found, result.baseline is not None),
        "",
    ]
    failures = [(row, text) for row in found if row.counts for text in row.failures]
    lines += [f"- **{row.stage}** ({escaped(row.side)}): {escaped(text)}" for row, text in failures]
    lines += _answers([answer for answer in result.answers if not answer.equal], len(result.answers))
    lines += [f"- {escaped(text)}" for text in (costs(result.bisect) if result.bisect else ())]
    lines += [f"- {escaped(core.core)}: {escaped(ran_on(core))}" for core in result.cores]
    lines += [f"- {escaped(of_views(views(result.views)))}"] if result.views else []
    lines += [f"- {escaped(note)}" for note in result.notes]
    return "\n".join(lines) + "\n"


def markdown_of_error(bundle: str, error: VlmExportError) -> str:
    """Why there is no verdict."""
    return f"## {escaped(bundle)} has no verdict\n\n{escaped(str(error))}\n"


def _stages(found: Sequence[Row], with_baseline: bool) -> list[str]:
    head = ("stage", "fed", "measured", *(("baseline",) if with_baseline else ()), "gates")
    body = []
    for row in found:
        before = (", ".join(row.before),) if with_baseline else ()
        shown = map(escaped, (row.stage, row.fed, ", ".join(row.measured), *before))
        body.append((*shown, "pass" if row.passed else "**FAIL**"))
    return _table(head, body)


def _answers(different: Sequence[Answer], count: int) -> list[str]:
    if not different:
        return []
    shown = different[:_ANSWERS_SHOWN]
    more = f", the first {len(shown)}" if len(shown) < len(different) else ""
    cells = (
        (
            escaped(answer.question),
            escaped(answer.reference),
            escaped(answer.bundle),
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
