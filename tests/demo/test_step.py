"""`make demo` says what it does and how far it is, in a terminal and in a log."""

from __future__ import annotations

import importlib.util
import re
import subprocess
import sys
from io import StringIO
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).parents[2]
STEP = ROOT / "recipes" / "demo" / "step.py"
PIP = """
import time
print('Requirement already satisfied: pip')
for name in ('torch>=2.13', 'rich>=14'):
    print('Collecting', name, flush=True)
    print('  Downloading https://host/torch-2.13.0-py3.whl (900.1 MB)', flush=True)
print('  Building wheel for llama-cpp-python (pyproject.toml): started', flush=True)
time.sleep({seconds})
print('  Building wheel for llama-cpp-python (pyproject.toml): finished with status done', flush=True)
print('Installing collected packages: torch, rich', flush=True)
"""


@pytest.fixture
def step() -> ModuleType:
    spec = importlib.util.spec_from_file_location("step", STEP)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


class Terminal(StringIO):
    def isatty(self) -> bool:
        return True


def test_in_a_log(step: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A line for what begins, others while it takes long, and nothing that moves a cursor."""
    monkeypatch.setattr(step, "HEARTBEAT", 0.5)
    out = StringIO()
    assert step.run("[1/5] packages", [sys.executable, "-c", PIP.format(seconds=2.2)], tmp_path / "log", out) == 0
    assert out.getvalue().replace("\n", "").isprintable()
    title, *told, last = [re.sub(r"^ +(\d+ s  )?", "", line) for line in out.getvalue().splitlines()]
    assert (title, told[0]) == ("[1/5] packages", "starting")
    assert told.count("compiling llama.cpp, about six minutes on two cores") >= 2
    assert told[1] == "looking for packages and downloading them"
    assert told[-1] == "installing the packages"
    assert re.fullmatch(r"done in \d s", last)
    assert "Requirement already satisfied" in (tmp_path / "log").read_text()


def test_in_a_terminal(step: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One line, never longer than a terminal, rewritten and taken away at the end."""
    monkeypatch.setenv("TERM", "xterm")
    out = Terminal()
    assert step.run("[1/5] packages", [sys.executable, "-c", PIP.format(seconds=0)], tmp_path / "log", out) == 0
    title, rest = out.getvalue().split("\n", 1)
    told = rest.split("\r\x1b[K")
    assert title == "[1/5] packages"
    assert any("downloading torch-2.13.0-py3.whl, 900.1 MB" in line for line in told)
    assert max(map(len, told)) < 80
    assert rest.count("\n") == 1


def test_a_failure_shows_the_end_of_the_log(tmp_path: Path) -> None:
    program = "import sys; [print('line', i) for i in range(100)]; print('no compiler'); sys.exit(3)"
    command = [sys.executable, STEP, "building", "--log", tmp_path / "log", "--", sys.executable, "-c", program]
    found = subprocess.run(command, capture_output=True, text=True)
    assert found.returncode == 3
    assert found.stdout.endswith("line 99\n        no compiler\n")
    assert f"the end of {tmp_path / 'log'}:" in found.stdout
    assert "line 50" not in found.stdout


@pytest.mark.parametrize(("goal", "numbered"), [("demo", 4), ("parity", 0)])
def test_steps_have_numbers_in_make_demo_alone(goal: str, numbered: int) -> None:
    """The first one is not shown here, where the packages are installed."""
    command = ["make", "-n", "-B", "-o", ".venv/ready", goal]
    found = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    assert re.findall(r"\[(\d)/5\]", found.stdout) == [str(n) for n in range(2, 2 + numbered)]
    assert found.stdout.count("echo 'ONNX int8 for") == (0 if numbered else 2)
