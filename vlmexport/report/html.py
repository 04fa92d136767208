"""A parity result as one HTML file: no network, no scripts, in light and dark, on a phone, from the keyboard."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from itertools import takewhile

from vlmexport.artifact.bundle.card import budget_rows, of_views
from vlmexport.artifact.bundle.manifest import Manifest
from vlmexport.measures.stage_result import STAGES
from vlmexport.parity.result import Answer, ParityResult
from vlmexport.parity.summary import views
from vlmexport.report.heat import LEGEND, borders, heats
from vlmexport.report.histogram import histogram
from vlmexport.report.rows import Row, ran_on, rows
from vlmexport.report.templating import environment

_ANSWERS_SHOWN = 100


@dataclass(frozen=True)
class Station:
    """One of the five stages on the strip. ``state``: passes, fails, or broke (the first to look at)."""

    stage: str
    state: str
    measured: list[str]


@dataclass(frozen=True)
class Difference:
    """Two answers: what they have in common at their beginning, and how each goes on."""

    answer: Answer
    common: str
    reference: str
    bundle: str


def html(result: ParityResult, manifest: Manifest) -> str:
    """The whole file.

    Args:
        manifest: of the bundle: its components, what a budget chose, and the recipe.
    """
    found = rows(result)
    different = sorted((a for a in result.answers if not a.equal), key=lambda a: -(a.margin or 0.0))
    return (
        environment()
        .get_template("parity.html.jinja")
        .render(
            result=result,
            manifest=manifest,
            rows=found,
            stations=[_station(stage, found, result.broken_stage) for stage in STAGES],
            pictures=[(picture, borders(picture), heats(picture)) for picture in result.pictures],
            legend=LEGEND,
            bars=histogram([answer.kld for answer in result.answers if answer.kld is not None]),
            differences=[_difference(answer) for answer in different[:_ANSWERS_SHOWN]],
            different=len(different),
            components=_components(manifest),
            seconds=_seconds(result),
            views=of_views(views(result.views)) if result.views else "",
            ran_on=ran_on,
            budget=budget_rows(manifest.decoding.budget) if manifest.decoding.budget else [],
        )
    )


def _station(stage: str, found: list[Row], broken: str | None) -> Station:
    """What users get there: the chained row where there is one."""
    own = [row for row in found if row.stage == stage and row.counts]
    failed = any(not row.passed for row in own)
    state = "broke" if stage == broken else "fails" if failed else "passes"
    if not own:
        return Station(stage, "missing", [])
    last = next((row for row in own if row.side == "chained"), own[0])
    return Station(stage, state, last.measured)


def _difference(answer: Answer) -> Difference:
    ours, theirs = answer.reference.split(" "), answer.bundle.split(" ")
    same = len(list(takewhile(lambda pair: pair[0] == pair[1], zip(ours, theirs, strict=False))))
    common = "".join(f"{word} " for word in ours[:same])
    return Difference(answer, common, " ".join(ours[same:]), " ".join(theirs[same:]))


def _components(manifest: Manifest) -> dict[str, int]:
    """Component → bytes; files of none (tokenizer, configuration) come last, together."""
    sizes: dict[str, int] = defaultdict(int)
    for file in sorted(manifest.files, key=lambda file: file.label is None):
        sizes[file.label or "other files"] += file.bytes
    return sizes


def _seconds(result: ParityResult) -> dict[str, float]:
    """Stage → median seconds; where a stage was run by itself, that."""
    timed = [stage for stage in result.stages if stage.seconds is not None]
    return {stage.stage: stage.seconds for stage in reversed(timed) if stage.seconds is not None}
