"""Where the result of a check goes besides the terminal: files that were asked for, and GitHub's step summary."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from vlmexport.artifact.bundle.manifest import read_manifest
from vlmexport.errors import UsageError, VlmExportError
from vlmexport.parity.result import ParityResult
from vlmexport.report.html import html
from vlmexport.report.junit import junit, junit_of_error
from vlmexport.report.markdown import markdown, markdown_of_error

SUMMARY = "GITHUB_STEP_SUMMARY"


@dataclass(frozen=True)
class Destinations:
    """Files to write; None where one is not wanted. ``summary`` is appended to, the others are replaced."""

    junit: Path | None = None
    markdown: Path | None = None
    html: Path | None = None
    summary: Path | None = None

    def __post_init__(self) -> None:
        for path in (self.junit, self.markdown, self.html):
            if path is not None and (path.is_dir() or not path.absolute().parent.is_dir()):
                raise UsageError(f"{path} cannot be written", "name a file in a folder that exists")

    def write(self, result: ParityResult, bundle: Path) -> None:
        """Write a verdict on a bundle."""
        if self.junit:
            self.junit.write_text(junit(result), encoding="utf-8")
        if self.html:
            self.html.write_text(html(result, read_manifest(bundle)), encoding="utf-8")
        self._markdown(markdown(result))

    @contextmanager
    def told_errors(self, bundle: str) -> Iterator[None]:
        """Write why there is no verdict where the body raises, so that nobody takes a missing report for a good one."""
        try:
            yield
        except VlmExportError as error:
            if self.junit:
                self.junit.write_text(junit_of_error(bundle, error), encoding="utf-8")
            if self.html:
                self.html.unlink(missing_ok=True)  # an older verdict would be taken for this one's
            self._markdown(markdown_of_error(bundle, error))
            raise

    def _markdown(self, text: str) -> None:
        if self.markdown:
            self.markdown.write_text(text, encoding="utf-8")
        if self.summary:
            with self.summary.open("a", encoding="utf-8") as file:
                file.write(text)


def step_summary(environ: Mapping[str, str] = os.environ) -> Path | None:
    """The file whose text GitHub shows beside a run; None elsewhere."""
    return Path(environ[SUMMARY]) if environ.get(SUMMARY) else None
