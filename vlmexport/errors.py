"""One class per exit code. Every message says what happened, where, and what to do next.

Exit codes: 0 pass, 1 parity failed, 2 usage, recipe or damaged input, 3 unsupported model or operator,
4 missing dependency, 5 not enough data to judge, 70 internal error, 130 interrupted.
"""

from __future__ import annotations


class VlmExportError(Exception):
    """Base of all errors that a user can act on.

    Args:
        what: what happened and where, one sentence without a full stop.
        cure: what to do next, one sentence without a full stop.
    """

    exit_code = 2

    def __init__(self, what: str, cure: str = "") -> None:
        self.what = what
        self.cure = cure
        super().__init__(f"{what}: {cure}" if cure else what)

    def __reduce__(self) -> tuple[type[VlmExportError], tuple[str, str]]:
        """Through another process, ``what`` and ``cure`` stay apart."""
        return type(self), (self.what, self.cure)


class ParityFailed(VlmExportError):
    """A gate failed."""

    exit_code = 1


class UsageError(VlmExportError):
    """A command, an argument, a recipe or an input file is wrong."""

    exit_code = 2


class CheckpointError(UsageError):
    """The checkpoint is missing, damaged or contradicts itself."""


class Unsupported(VlmExportError):
    """The model, an operator or a combination cannot be exported."""

    exit_code = 3


class MissingDependency(VlmExportError):
    """An optional dependency is not installed."""

    exit_code = 4


class NotEnoughData(VlmExportError):
    """There are too few samples to give a verdict."""

    exit_code = 5


class InternalError(VlmExportError):
    """Nobody expected it: a fault of ours."""

    exit_code = 70


class Interrupted(VlmExportError):
    """The user ended it."""

    exit_code = 130


def first_line(error: BaseException) -> str:
    """The first line of what an error says, or its name where it says nothing."""
    lines = str(error).strip().splitlines()
    return lines[0].strip() if lines else type(error).__name__
