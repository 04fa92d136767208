"""Run commands of vlmexport one after the other, each in a fork of one process that has imported the large libraries.

    python benchmarks/forked.py TREE 'torch transformers' '[["demo", "onnx", "demo"], …]'

A fork begins as a process of its own would, without the seconds that the imports take: what a command writes does not
depend on the commands before it. A library that starts threads when it is imported is none for this, for a fork would
lack them. Commands are a JSON list of [name, argument …]; after each comes a line ``[name, exit code, seconds]`` in
JSON, and what it prints lies in ``<name>.log``.
"""

from __future__ import annotations

import importlib
import json
import os
import runpy
import sys
import time
from importlib.util import find_spec
from pathlib import Path


def fork(name: str, arguments: list[str]) -> int:
    """The exit code of a command."""
    child = os.fork()
    if child:
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    log = os.open(f"{name}.log", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(log, 1)
    os.dup2(log, 2)
    sys.argv = ["vlmexport", *arguments]
    runpy.run_module("vlmexport", run_name="__main__", alter_sys=True)
    sys.exit()


def main() -> None:
    """Check which vlmexport it is, import, run."""
    tree, libraries, commands = sys.argv[1:]
    found = find_spec("vlmexport")
    if found is None or found.origin is None or not Path(found.origin).is_relative_to(tree):
        sys.exit(f"vlmexport is {found and found.origin}, and not that of {tree}: set PYTHONPATH")
    for library in libraries.split():
        importlib.import_module(library)
    for name, *arguments in json.loads(commands):
        start = time.perf_counter()
        code = fork(name, arguments)
        print(json.dumps([name, code, round(time.perf_counter() - start, 1)]), flush=True)


if __name__ == "__main__":
    main()
