"""Whether two source trees export the same bytes: a change that is meant to move code, and nothing else, shows here.

    python benchmarks/same_bytes.py BASE [HEAD] [--only 'demo-*' 'v1-*'] [--keep FOLDER]

BASE and HEAD are commits, or folders of source trees; HEAD is this working copy by default. Each tree runs the same
commands (``same_bytes.toml``, and the demo by every shipped recipe) through its own command line, in one thread and
with a cache of its own, on checkpoints that are written once. The exit code is 1 if a file differs. The manifest and
the card are left aside, because they name versions and times, and so are differences that the TOML says are meant.

``--keep`` holds the checkpoints, BASE's bundles and the SHA-256 of their files (``sha256.json``): the next run exports
HEAD alone. Bundles of HEAD that differ stay, beside a log of each command.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import shutil
import subprocess
import sys
import tarfile
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from fnmatch import fnmatch
from hashlib import file_digest
from importlib import import_module
from pathlib import Path
from tempfile import TemporaryDirectory, mkdtemp
from typing import Any

from filelock import FileLock

ROOT = Path(__file__).resolve().parents[1]
FORKED = ROOT / "benchmarks" / "forked.py"
ASIDE = ("vlmexport.json", "README.md")
LIBRARIES = (
    "torch torch._dynamo torch._functorch.aot_autograd torch.onnx transformers.models.auto.modeling_auto "
    "transformers.models.llama.modeling_llama transformers.models.clip.modeling_clip onnx scipy.optimize "
    "onnxscript.function_libs.torch_lib numba gguf timm"
)
"""Imported once a tree; onnxruntime and llama_cpp start threads (``forked.py``)."""

SETTINGS: dict[str, Any] = tomllib.loads(Path(__file__).with_suffix(".toml").read_text(encoding="utf-8"))

Files = dict[str, str]
"""Path within a bundle → SHA-256."""


def hashes(folder: Path) -> Files:
    """Of every file of a bundle, manifest and card aside."""
    found: Files = {}
    for path in sorted(path for path in folder.rglob("*") if path.is_file() and path.name not in ASIDE):
        with path.open("rb") as file:
            found[path.relative_to(folder).as_posix()] = file_digest(file, "sha256").hexdigest()
    return found


def differences(base: Files, head: Files) -> dict[str, str]:
    """File → changed, missing or new."""
    both = sorted(base.keys() | head.keys())
    how = {name: "changed" if name in base and name in head else "missing" if name in base else "new" for name in both}
    return {name: how[name] for name in both if base.get(name) != head.get(name)}


def meant(base: str, bundle: str, file: str) -> str | None:
    """Why a file is meant to differ from what the commit ``base`` wrote; None if it is not."""
    for entry in SETTINGS.get("meant", []):
        if base.startswith(entry["base"]) and fnmatch(bundle, entry["bundles"]) and fnmatch(file, entry["files"]):
            return str(entry["why"])
    return None


def commands(wanted: Sequence[str]) -> dict[str, str]:
    """Bundle → command line, of those whose name one of the patterns matches."""
    shipped = sorted(path.stem for path in (ROOT / "recipes").glob("*.toml"))
    by_recipe = "{} demo --recipe {} --samples " + str(SETTINGS["samples"])
    demo = {f"demo-{name}": by_recipe.format(name.partition("-")[0], name) for name in shipped}
    every = SETTINGS["designs"] | demo | SETTINGS["bundles"]
    chosen = {name: text for name, text in every.items() if any(fnmatch(name, pattern) for pattern in wanted)}
    if not chosen:
        sys.exit(f"no bundle is called {' or '.join(wanted)}; there are {' '.join(every)}")
    return chosen


def write_checkpoints(folder: Path) -> None:
    """The published layouts, by the generators of this checkout's tests; nothing where they lie already."""
    if folder.exists():
        return
    sys.path.insert(0, str(ROOT))
    partial = folder.with_name(f".{folder.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    import_module("tests.layouts").write_all(partial)
    partial.rename(folder)


def is_tree(where: str) -> bool:
    """Whether it is a folder that holds the package, and no commit."""
    return (Path(where) / "vlmexport").is_dir()


@contextmanager
def source(where: str) -> Iterator[Path]:
    """The folder of a source tree: a folder itself, or a commit's files for as long as they are used."""
    if is_tree(where):
        yield Path(where).resolve()
        return
    with TemporaryDirectory() as folder:
        files = subprocess.run(["git", "archive", where], cwd=ROOT, stdout=subprocess.PIPE, check=True).stdout
        with tarfile.open(fileobj=io.BytesIO(files)) as archive:
            archive.extractall(folder, filter="data")
        yield Path(folder).resolve()


@dataclass(frozen=True)
class Exported:
    """What a command wrote, in how many seconds; no files where it failed."""

    bundle: str
    seconds: float
    exit_code: int
    files: Files

    def line(self, verdict: str) -> str:
        """A row of the table."""
        return f"{self.bundle:24} {self.seconds:6.1f} s {len(self.files):4} files  {verdict}"


def export(where: str, todo: Mapping[str, str], output: Path, base: Path) -> Iterator[Exported]:
    """Run commands of a source tree, and hash each bundle when it is there.

    Args:
        output: folder of the bundles, by their names, and of the logs.
        base: folder of the checkpoints and BASE's bundles, which commands name.

    Raises:
        SystemExit: the process that runs the commands failed.
    """
    output.mkdir(parents=True, exist_ok=True)
    places = {"checkpoints": base / "checkpoints", "base": base / "bundles"}
    lines = [[name, *text.format(**places).split(), "--output", name, "--force"] for name, text in todo.items()]
    with source(where) as tree, TemporaryDirectory() as cache:
        own = {name: value for name, value in os.environ.items() if not name.startswith("VLMEXPORT_")}
        own |= {"PYTHONPATH": str(tree), "VLMEXPORT_CACHE": cache, "OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE"}
        command = [sys.executable, "-P", str(FORKED), str(tree), LIBRARIES, json.dumps(lines)]
        process = subprocess.Popen(command, cwd=output, env=own, stdout=subprocess.PIPE, text=True)
        with process as running:
            assert running.stdout
            for line in running.stdout:
                name, code, seconds = json.loads(line)
                yield Exported(name, seconds, code, {} if code else hashes(output / name))
        if process.returncode:
            sys.exit(f"the commands of {where} ended with exit code {process.returncode}")


def baseline(where: str, todo: Mapping[str, str], folder: Path) -> dict[str, Files]:
    """Bundle → files, as BASE wrote them: kept in the folder, or exported now. None of what it cannot export.

    Raises:
        SystemExit: the folder is another base's.
    """
    folder.mkdir(parents=True, exist_ok=True)
    record = folder / "sha256.json"
    with FileLock(folder / ".lock"):
        kept: dict[str, Any] = {"base": where, "bundles": {}}
        if record.exists():
            kept = json.loads(record.read_text())
        if kept["base"] != where:
            sys.exit(f"{folder} keeps what {kept['base']} wrote, and not {where}: choose another folder")
        write_checkpoints(folder / "checkpoints")
        lacking = {name: text for name, text in todo.items() if kept["bundles"].get(name, {}).get("command") != text}
        for done in export(where, lacking, folder / "bundles", folder) if lacking else ():
            log = folder / "bundles" / f"{done.bundle}.log"
            print(done.line(f"BASE cannot export it: see {log}" if done.exit_code else "base"), flush=True)
            kept["bundles"][done.bundle] = {"command": lacking[done.bundle], "files": done.files}
            record.write_text(json.dumps(kept, indent=1))
    return {name: kept["bundles"][name]["files"] for name in todo if kept["bundles"][name]["files"]}


def judge(base: str, expected: Files, done: Exported) -> tuple[str, bool]:
    """The verdict on a bundle, a line for each file that differs; whether it is the same, or as it is meant to be."""
    if done.exit_code:
        return f"FAILED with exit code {done.exit_code}", False
    found = {name: (how, meant(base, done.bundle, name)) for name, how in differences(expected, done.files).items()}
    lines = [f"    {how} {name}" + (f", as meant: {why}" if why else "") for name, (how, why) in found.items()]
    good = all(why for _, why in found.values())
    return "\n".join(["DIFFERENT" if not good else "as meant" if found else "same", *lines]), good


def compare(base: str, head: str, wanted: Sequence[str], folder: Path) -> int:
    """Export what is missing of BASE, then HEAD; the number of bundles that differ."""
    chosen, output, bad = commands(wanted), Path(mkdtemp(prefix="same-bytes-")), 0
    expected = baseline(base, SETTINGS["designs"] | chosen, folder)
    todo = {name: text for name, text in chosen.items() if name in expected}
    for done in export(head, todo, output, folder):
        verdict, good = judge(base, expected[done.bundle], done)
        print(done.line(verdict), flush=True)
        bad += not good
        if good:
            shutil.rmtree(output / done.bundle)
    print(f"{len(todo)} bundles, {bad} different" + (f": see {output} and {folder / 'bundles'}" if bad else ""))
    if len(todo) < len(chosen):
        print(f"not compared, because BASE cannot export them: {' '.join(chosen.keys() - todo.keys())}")
    if not bad:
        shutil.rmtree(output)
    return bad


def named(where: str) -> str:
    """A commit's hash; a folder as it is."""
    if is_tree(where):
        return where
    command = ["git", "rev-parse", "--verify", f"{where}^{{commit}}"]
    return subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, text=True, check=True).stdout.strip()


def main() -> None:
    """Parse, compare."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("base")
    parser.add_argument("head", nargs="?", default=str(ROOT))
    parser.add_argument("--only", nargs="+", default=["*"], metavar="PATTERN", help="bundles")
    parser.add_argument("--keep", type=Path, metavar="FOLDER", help="of checkpoints and BASE's bundles")
    given = parser.parse_args()
    with TemporaryDirectory() as folder:
        keep = (given.keep or Path(folder)).resolve()
        sys.exit(compare(named(given.base), named(given.head), given.only, keep) > 0)


if __name__ == "__main__":
    main()
