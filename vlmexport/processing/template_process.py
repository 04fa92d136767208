"""Chat templates rendered in a process that can be ended: one for all templates, started when it is first needed."""

from __future__ import annotations

import os
from functools import lru_cache
from threading import Lock
from typing import Any

from vlmexport.errors import VlmExportError
from vlmexport.processing.messages import Message
from vlmexport.workers.process import WorkerProcess, own_python

SECONDS = 10.0
"""A published template takes some milliseconds."""

_lock = Lock()
_running: dict[int, WorkerProcess] = {}
"""By the process that it works for, so that a fork starts its own."""


@lru_cache(2048)
def rendered(source: str, messages: tuple[Message, ...], tokens: tuple[tuple[str, str], ...], answers: bool) -> str:
    """The prompt of a conversation; of one that was asked for before, from memory.

    Args:
        tokens: name and text of special tokens that a template may write.
        answers: whether an answer is to follow.

    Raises:
        ValueError: the template cannot be rendered, or not within bounds of time, memory and length: in one line, why.
    """
    values = {
        "messages": [message.document() for message in messages], "add_generation_prompt": answers, "tools": None,
        "documents": None, **dict(tokens),
    }  # fmt: skip
    return render(source, values)


def render(source: str, values: dict[str, Any]) -> str:
    """A template's text, not from memory; raises what ``rendered`` does."""
    with _lock:
        process = _running.get(os.getpid())
        if process is None or not process.alive:
            process = _running[os.getpid()] = _start()
        try:
            reply = process.ask({"op": "render", "source": source, "values": values}, "rendering a template").body
        except VlmExportError as error:
            raise ValueError(error.what) from error
    if "failed" in reply:
        raise ValueError(reply["failed"])
    text: str = reply["text"]
    return text


def start() -> None:
    """Let the process come up while other things are loaded."""
    with _lock:
        if os.getpid() not in _running:
            _running[os.getpid()] = _start()


def _start() -> WorkerProcess:
    command = own_python("vlmexport.processing.template_worker")
    return WorkerProcess("the renderer of chat templates", command, os.environ, "do not trust this template", SECONDS)
