"""The process that renders chat templates, which may come from a stranger: it holds nothing, and may be ended.

Run as ``python -m vlmexport.processing.template_worker``; requests on stdin, replies on stdout (``wire``).
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from jinja2 import TemplateError, TemplateSyntaxError

from vlmexport.processing.template_language import compiled
from vlmexport.workers.wire import Message, serve

_MEMORY = 512 << 20
"""Bytes that templates may take, where the system can hold a process to that (Linux)."""

LONGEST = 1 << 20
"""Characters of a rendered prompt."""


def answer(request: Message) -> Message:
    """The text of a template, or in one line why there is none."""
    try:
        return Message({"text": _rendered(request.body["source"], request.body["values"])})
    except MemoryError:
        return Message({"failed": f"it takes more than {_MEMORY >> 20} MiB of memory"})
    except Exception as error:  # a template can raise whatever Python can
        said = " ".join(str(error).split())[:300]
        return Message({"failed": f"{_kind(error, bool(said))}{said}"})


def _kind(error: Exception, explained: bool) -> str:
    if isinstance(error, TemplateSyntaxError):
        return "it is no template: "
    return "" if isinstance(error, TemplateError) and explained else f"{type(error).__name__}: "


def _rendered(source: str, values: dict[str, Any]) -> str:
    pieces, length = [], 0
    for piece in compiled(source).generate(**values):
        length += len(piece)
        if length > LONGEST:
            raise TemplateError(f"it gives more than {LONGEST:,} characters")
        pieces.append(piece)
    return "".join(pieces)


def _limit_memory() -> None:
    """Beyond what is mapped now: Python, NumPy and jinja2."""
    if sys.platform != "linux":
        return
    import resource

    mapped = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (mapped + _MEMORY, mapped + _MEMORY))


if __name__ == "__main__":
    _limit_memory()
    serve(answer)
