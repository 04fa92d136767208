"""A parity result as GitHub's workflow commands: GitHub shows them on the run and on the pull request."""

from __future__ import annotations

import os
from collections.abc import Mapping

from vlmexport.parity.result import ParityResult
from vlmexport.report.rows import rows


def workflow_commands(result: ParityResult, environ: Mapping[str, str] = os.environ) -> str:
    """A line for each stage and side that fails; a warning where it does not count. Empty outside of GitHub Actions."""
    if environ.get("GITHUB_ACTIONS") != "true":
        return ""
    lines = []
    for row in rows(result):
        if row.failures:
            title = _escaped(f"{result.bundle}: {row.stage} ({row.side})").replace(":", "%3A").replace(",", "%2C")
            level = "error" if row.counts else "warning"
            lines.append(f"::{level} title={title}::{_escaped('; '.join(row.failures))}\n")
    return "".join(lines)


def _escaped(text: str) -> str:
    return text.replace("%", "%25").replace("\r", "%0D").replace("\n", "%0A")
