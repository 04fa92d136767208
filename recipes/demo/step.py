"""Run a command that takes long, and say what it does and how far it is. Needs Python alone.

    python recipes/demo/step.py "title" --log FILE -- pip install …

In a terminal one line is rewritten every second. In a log a line is written where the command begins something else,
and every half a minute. The command's own output goes to the log file; its end is shown where the command fails.
"""

from __future__ import annotations

import argparse
import os
import queue
import re
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

HEARTBEAT = 30.0
SHOWN = 20
PHASES = {
    r"Collecting (\S+)": "looking for {}",
    r"Downloading (\S+).*\((.+)\)": "downloading {}, {}",
    r"Building wheel for llama[-_]cpp[-_]python.*": "compiling llama.cpp, about six minutes on two cores",
    r"Building wheel for (\S+).*started": "building {}",
    r"Installing collected packages: (.*)": "installing the packages",
}
"""What pip says → what it does."""


def phase(line: str) -> str | None:
    """What a line of pip says that it begins; None for others."""
    for pattern, said in PHASES.items():
        if found := re.match(pattern, line.strip()):
            return said.format(*(group.rsplit("/", 1)[-1] for group in found.groups()))
    return None


def lines(stream: IO[str], log: IO[str]) -> Iterator[str | None]:
    """The lines of a command, which are written to its log; None where there was none for a second."""
    read: queue.Queue[str | None] = queue.Queue()

    def pump() -> None:
        for line in stream:
            read.put(line)
        read.put(None)

    threading.Thread(target=pump, daemon=True).start()
    while True:
        try:
            line = read.get(timeout=1.0)
        except queue.Empty:
            yield None
            continue
        if line is None:
            return
        log.write(line)
        log.flush()
        yield line


def lasted(start: float) -> str:
    """Minutes and seconds since then."""
    minutes, seconds = divmod(round(time.monotonic() - start), 60)
    return f"{minutes} min {seconds:2} s" if minutes else f"{seconds} s"


class Teller:
    """Where it is told: a line that is rewritten in a terminal, lines in a log."""

    def __init__(self, out: IO[str]) -> None:
        self.out, self.terminal = out, out.isatty() and os.environ.get("TERM") != "dumb"
        self.said, self.at = "", 0.0

    def tell(self, text: str, start: float) -> None:
        """What is being done; in a log where it is something else, or half a minute later."""
        now = time.monotonic()
        if self.terminal:
            self.out.write(f"\r\x1b[K      {lasted(start):>12}  {text[:56]}")
        elif text != self.said or now - self.at >= HEARTBEAT:
            self.out.write(f"      {lasted(start):>12}  {text}\n")
            self.said, self.at = text, now
        self.out.flush()

    def end(self, text: str) -> None:
        """The last line."""
        self.out.write("\r\x1b[K" if self.terminal else "")
        self.out.write(f"      {text}\n")
        self.out.flush()


def run(title: str, command: list[str], log: Path, out: IO[str] = sys.stdout) -> int:
    """Run a command; its exit code."""
    teller, start, doing = Teller(out), time.monotonic(), "starting"
    out.write(f"{title}\n")
    out.flush()
    kept: list[str] = []
    output: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True, "errors": "replace"}
    with (
        log.open("a", encoding="utf-8") as file,
        subprocess.Popen(command, stdin=subprocess.DEVNULL, **output) as process,
    ):
        assert process.stdout is not None
        for line in lines(process.stdout, file):
            kept = [*kept, line][-SHOWN:] if line else kept
            doing = (line and phase(line)) or doing
            if not teller.terminal and doing.startswith(("looking for", "downloading")):
                doing = "looking for packages and downloading them"  # some hundred of them: one line in a log
            teller.tell(doing, start)
    code = process.returncode
    teller.end(f"done in {lasted(start)}" if code == 0 else f"failed after {lasted(start)}; the end of {log}:")
    if code:
        out.writelines(f"        {line}" for line in kept)
    return code


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("title", help="what it does, and how long about")
    parser.add_argument("--log", type=Path, required=True, help="file that the command's output is added to")
    parser.add_argument("command", nargs="+")
    given = parser.parse_args()
    try:
        return run(given.title, given.command, given.log)
    except KeyboardInterrupt:  # the command got it, too
        print("\ninterrupted; run it again to go on")
        return 130


if __name__ == "__main__":
    sys.exit(main())
