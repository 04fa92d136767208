"""What each option of recipes/finetune does to the demo model: exact match on held-out scenes before and after.

    python benchmarks/finetune.py --json benchmarks/results/finetune.json

One run after the other, each a process of its own; about an hour on one core. Rows that the JSON file holds already are
not run again; ``--only`` names a few. ``--show`` prints the table alone. Work lies in ``build/finetune``.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import resource
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vlmexport.source.checkpoint import open_checkpoint

ROOT = Path(__file__).parents[1]
RECIPE = ROOT / "recipes" / "finetune"
COMMON = ("--data", "scenes:800", "--batch", "4", "--rate", "3e-4", "--threads", "1")
SMALL = ("--prune-heads", "0.5", "--prune-channels", "0.667")
TEACHER = ("--teacher", "demo", "--teacher-weight", "0.8")
Q2_K = ("gguf", "--type", "q2_k", "--imatrix", "none")

CALM = {
    "OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE",
    "MALLOC_MMAP_MAX_": "0", "MALLOC_TRIM_THRESHOLD_": str(1 << 36), "MALLOC_TOP_PAD_": str(1 << 30),
}  # fmt: skip
"""One thread; and glibc keeps what a step frees for the next one: 0.74 s a step in place of 0.84."""

Row = dict[str, Any]


@dataclass(frozen=True)
class Run:
    """``options`` of train.py; ``export``: how vlmexport exports demo before and the result after, where that is
    what is scored; ``qat``: that bundle of demo is trained for."""

    options: tuple[str, ...] = ()
    steps: int = 100
    export: tuple[str, ...] = ()
    qat: bool = False


RUNS = {
    "no option, exported as q2_k": Run(export=Q2_K),
    "qat for q2_k": Run(export=Q2_K, qat=True),
    "qat for q2_k with an importance matrix": Run(export=Q2_K[:-2], qat=True),
    "half the heads and a third of the channels left": Run(SMALL),
    "the same, with a teacher": Run((*SMALL, *TEACHER)),
    "80 % of the weights zero": Run(("--prune", "0.8")),
    "tied": Run(("--tie",)),
    "bfloat16": Run(("--mixed", "bf16")),
    "half the heads left": Run(("--prune-heads", "0.5")),
    "a sixth of the channels left": Run(("--prune-channels", "0.833")),
}


def called(*command: str, allowed: tuple[int, ...] = (0,)) -> str:
    """What a command prints; its progress goes to stderr. Another exit code than those allowed ends us."""
    done = subprocess.run([sys.executable, *command], stdout=subprocess.PIPE, text=True, env=os.environ | CALM)
    if done.returncode not in allowed:
        raise SystemExit(done.returncode)
    return done.stdout


def train(options: tuple[str, ...], steps: int, out: Path, features: Path) -> float:
    """Seconds of the processor, start and end of the process included."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    called(
        str(RECIPE / "train.py"), "demo", "-o", str(out), "--steps", str(steps), "--features", str(features), *COMMON,
        *options, "--force",
    )  # fmt: skip
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def scores(model: str, features: Path, bundle: Path | None = None) -> Row:
    """Exact match by kind of question."""
    more = ("--qat", str(bundle)) if bundle else ()
    found = called(str(RECIPE / "score.py"), model, "--features", str(features), *more)
    return {kind: entry["exact"] for kind, entry in json.loads(found).items()}


def exported(model: str, how: tuple[str, ...], out: Path) -> Path:
    """A bundle."""
    command, *flags = how
    called("-m", "vlmexport", command, model, *flags, "-o", str(out), "--force")
    return out


def facts(folder: Path) -> Row:
    """Bytes of the weights, and parameters of the language model."""
    checkpoint = open_checkpoint(folder)
    size = sum(path.stat().st_size for path in checkpoint.weight_files.values())
    return {"bytes": size, "language_parameters": checkpoint.parameters("language")}


def measure(name: str, run: Run, work: Path) -> Row:
    """Train, and score before and after."""
    place, features = work / re.sub(r"\W+", "-", name), work / "features"
    place.mkdir(parents=True, exist_ok=True)
    if run.export:
        first = exported("demo", run.export, place / "bundle-before")
        before = scores("demo", features, first)
        options = (*run.options, *(("--qat", str(first)) if run.qat else ()))
    else:
        train(run.options, 0, place / "before", features)
        before, options = scores(str(place / "before"), features), run.options
    seconds = train(options, run.steps, place / "after", features)
    after = place / "after"
    row: Row = {"options": list(run.options), "steps": run.steps, "before": before, "cpu_seconds": round(seconds, 1)}
    row |= {"after": scores(str(after), features)} | facts(after)
    if run.export:
        bundle = exported(str(after), run.export, place / "bundle-after")
        row["bundle"] = scores(str(after), features, bundle)
    return row


def table(rows: dict[str, Row]) -> str:
    """Markdown; what is exported is scored as the bundle rounds it."""
    lines = ["| run | decoder | before | after | float, after |", "|---|---:|---:|---:|---:|"]
    for name, row in rows.items():
        after, rounded = row["after"]["all"], (row["bundle"] if "bundle" in row else row["after"])["all"]
        size = row["language_parameters"] / 1e6
        lines.append(f"| {name} | {size:.2f} M | {row['before']['all']:.3f} | {rounded:.3f} | {after:.3f} |")
    return "\n".join(lines)


def main() -> None:
    """Run what is missing, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, default=ROOT / "benchmarks" / "results" / "finetune.json")
    parser.add_argument("--work", type=Path, default=ROOT / "build" / "finetune")
    parser.add_argument("--only", nargs="*", choices=RUNS)
    parser.add_argument("--show", action="store_true")
    given = parser.parse_args()
    rows: dict[str, Row] = json.loads(given.json.read_text(encoding="utf-8")) if given.json.exists() else {}
    for name in () if given.show else given.only or RUNS:
        if name not in rows:
            rows[name] = measure(name, RUNS[name], given.work)
            ordered = {known: rows[known] for known in RUNS if known in rows}
            given.json.write_text(json.dumps(ordered, indent=1) + "\n", encoding="utf-8")
    print(table(rows))


if __name__ == "__main__":
    main()
