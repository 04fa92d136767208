"""What a command costs, and two contenders side by side: wall seconds, CPU seconds, peak memory.

Times drift on a shared machine from minute to minute. So contenders run in turn (A B A B …), every run of ours is
divided by the peer's run beside it, and the median of those ratios is what counts.
"""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import Any


@dataclass(frozen=True)
class Figures:
    """Wall seconds, user + system seconds, and the largest resident set of any one process in MB (1e6 bytes), as the
    operating system counts it: mapped pages included. Linux counts from before ``exec`` on, so that a peak is never
    below the memory of the measuring process: keep that small."""

    wall: float
    cpu: float
    peak_mb: float

    def __add__(self, other: Figures) -> Figures:
        """One after the other."""
        return Figures(self.wall + other.wall, self.cpu + other.cpu, max(self.peak_mb, other.peak_mb))

    def __truediv__(self, other: Figures) -> Figures:
        """Ratios, figure by figure."""
        return Figures(self.wall / other.wall, self.cpu / other.cpu, self.peak_mb / other.peak_mb)


def run(command: Sequence[str], **popen: Any) -> Figures:
    """Run a command to its end.

    Args:
        popen: for ``subprocess.Popen``. Output is kept in memory and shown if the command fails, unless given here.

    Raises:
        SystemExit: the command failed; its output is shown.
    """
    popen = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, **popen}
    start = time.perf_counter()
    process = subprocess.Popen(command, **popen)
    output = process.stdout.read() if process.stdout else b""
    _, status, usage = os.wait4(process.pid, 0)
    wall = time.perf_counter() - start
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.stdout:
        process.stdout.close()
    if process.returncode:
        shown = output if isinstance(output, str) else output.decode(errors="replace")
        sys.exit(f"{shown[-4000:]}\nfailed with exit code {process.returncode}: {' '.join(map(str, command))}")
    return Figures(wall, usage.ru_utime + usage.ru_stime, _megabytes(usage))


def _megabytes(usage: resource.struct_rusage) -> float:
    return usage.ru_maxrss * (1 if sys.platform == "darwin" else 1024) / 1e6


def medians(figures: Sequence[Figures]) -> Figures:
    """The median of each figure on its own."""
    return Figures(*(median(getattr(one, key) for one in figures) for key in ("wall", "cpu", "peak_mb")))


Contenders = Mapping[str, Callable[[], Figures]]
"""Name → one run; the first is ours, the others are peers."""


@dataclass(frozen=True)
class Comparison:
    """Runs of contenders that took turns: name → figures, in order of the turns."""

    title: str
    runs: dict[str, list[Figures]]

    def ratios(self, peer: str) -> Figures:
        """Ours divided by a peer's, turn by turn; the median of each figure."""
        ours = next(iter(self.runs.values()))
        return medians([one / other for one, other in zip(ours, self.runs[peer], strict=True)])

    def table(self) -> str:
        """Markdown: medians of every contender, and our ratio to each peer."""
        ours, *peers = self.runs
        turns = len(self.runs[ours])
        lines = [f"{self.title} (medians of {turns})", "", "| | wall s | CPU s | peak MB |", "|---|---|---|---|"]
        for name, figures in self.runs.items():
            middle = medians(figures)
            lines.append(f"| {name} | {middle.wall:.2f} | {middle.cpu:.2f} | {middle.peak_mb:.0f} |")
        for peer in peers:
            ratio = self.ratios(peer)
            lines.append(f"| {ours} ÷ {peer} | {ratio.wall:.3f} | {ratio.cpu:.3f} | {ratio.peak_mb:.3f} |")
        return "\n".join(lines)

    def facts(self) -> dict[str, Any]:
        """For JSON."""
        _, *peers = self.runs
        return {
            "title": self.title,
            "runs": {name: [asdict(one) for one in figures] for name, figures in self.runs.items()},
            "medians": {name: asdict(medians(figures)) for name, figures in self.runs.items()},
            "ratios": {peer: asdict(self.ratios(peer)) for peer in peers},
        }


def compare(title: str, contenders: Contenders, repeat: int) -> Comparison:
    """Run all contenders in turn, ``repeat`` times; a line on stderr tells of every run."""
    runs: dict[str, list[Figures]] = {name: [] for name in contenders}
    for turn in range(repeat):
        for name, once in contenders.items():
            found = once()
            runs[name].append(found)
            figures = f"{found.wall:.2f} s wall, {found.cpu:.2f} s CPU, {found.peak_mb:.0f} MB"
            print(f"{title}, turn {turn + 1}, {name}: {figures}", file=sys.stderr, flush=True)
    return Comparison(title, runs)


def save(path: Path, comparisons: Sequence[Comparison]) -> None:
    """All comparisons as one JSON file."""
    path.write_text(json.dumps([comparison.facts() for comparison in comparisons], indent=2) + "\n")
