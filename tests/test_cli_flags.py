"""What every command has in common: ``--json``, ``-q``, ``--force``, and variables of the environment."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import vlmexport as package
from tests.command import vlmexport
from tests.prompts import tokenized
from tests.test_cli import process
from vlmexport.checkpoint.spec import PromptSpec
from vlmexport.cli import app
from vlmexport.console import Console
from vlmexport.environment import OURS, unknown_variables
from vlmexport.errors import CheckpointError, UsageError
from vlmexport.processing.chat_template import ChatTemplate
from vlmexport.processing.messages import asked
from vlmexport.processing.sentencepiece_tokenizer import SentencePieceTokenizer
from vlmexport.recipe import keys, variable
from vlmexport.runtime.ask import ask
from vlmexport.source.locate import locate

NAMES = [info.name or info.callback.__name__ for info in app.registered_commands if info.callback]


def document(text: str) -> Any:
    """The one JSON document that a text is; no NaN in it."""

    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} is no JSON")

    return json.loads(text, parse_constant=refuse)


@pytest.mark.parametrize("name", NAMES)
def test_every_command_has_the_same_flags(name: str) -> None:
    text = vlmexport(name, "--help").stdout
    assert re.search(r"-q, --quiet +No progress, no notes\.", text), text
    assert re.search(r"--json +Results as JSON on stdout\.", text), text
    assert ("--force" in text) == ("--output" in text), text
    if "--force" in text:
        assert re.search(r"--force +Replace what is there\.", text), text


def wrong() -> Iterator[tuple[str, ...]]:
    """Arguments that no command can take: none, an unknown option, a value of another kind, too many."""
    for name in NAMES:
        yield (name, "--nope")
        if name not in ("recipes", "cache"):
            yield (name,)
    yield ("gguf", "demo", "--bits", "x")
    yield ("gguf", "demo", "--bits", "7")
    yield ("onnx", "demo", "--target", "riscv")
    yield ("run", "demo", "question")
    yield ("run", "demo", "q", "-i", "nowhere.png")
    yield ("inspect", "demo", "more")
    yield ("inspect", "nowhere")
    yield ("check", "nowhere")
    yield ("serve", "nowhere", "--port", "0")
    yield ("recipes", "nope")
    yield ("nope",)
    yield ()


@pytest.mark.parametrize("arguments", list(wrong()), ids=" ".join)
def test_an_error_is_one_document_and_one_line(arguments: tuple[str, ...], tmp_path: Path) -> None:
    for flags in (("--json",), ("--json", "-q")):
        found = vlmexport(*arguments, *flags, cwd=tmp_path)
        said = document(found.stdout)
        assert (found.returncode, said["exit_code"]) == (2, 2)
        (line,) = found.stderr.splitlines()
        assert line == f"error: {said['error']}: {said['cure']}"
        assert said["cure"]


def test_a_mistyped_option_names_the_nearest() -> None:
    found = vlmexport("gguf", "demo", "--bit", "4")
    assert re.fullmatch(r"error: No such option: --bit .*--bits.*: see `vlmexport gguf --help`\n", found.stderr)
    assert vlmexport().stdout == vlmexport("--help").stdout


@pytest.mark.parametrize("broken", [KeyError("x"), RuntimeError(""), OSError(""), KeyboardInterrupt()])
def test_whatever_goes_wrong_is_one_document(broken: BaseException, monkeypatch: pytest.MonkeyPatch) -> None:
    def raises(*_: object) -> None:
        raise broken

    monkeypatch.setattr("vlmexport.report.inspection.describe", raises)
    code = {KeyError: 70, RuntimeError: 70, OSError: 2, KeyboardInterrupt: 130}[type(broken)]
    found = vlmexport("inspect", "demo", "--json")
    assert (found.returncode, document(found.stdout)["exit_code"]) == (code, code)
    human = vlmexport("inspect", "demo")
    assert (human.returncode, human.stdout) == (code, "")
    assert len(human.stderr.splitlines()) == 1


def test_an_error_after_the_result_is_no_second_document(monkeypatch: pytest.MonkeyPatch) -> None:
    def raises(self: Console, text: str) -> None:
        raise OSError("the disk is full")

    monkeypatch.setattr(Console, "note", raises)
    monkeypatch.setattr("vlmexport.design.create", lambda *_, **__: None)
    found = vlmexport("new", "-o", "demo", "--json")
    assert found.returncode == 2
    assert "components" in document(found.stdout)


@pytest.mark.parametrize("breaks", [False, True])
def test_an_answer_grows_for_people_alone(breaks: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """With --json there is one document: the whole answer, or why there is none."""

    def answer(*_: object) -> Iterator[str]:
        yield "a [red] "
        if breaks:
            raise UsageError("the context is full", "ask for a shorter answer")
        yield "cube :cat:"

    monkeypatch.setattr("vlmexport.runtime.ask.ask", answer)
    arguments = ("run", "demo", "what?", "-i", "x.png")
    human, machine = vlmexport(*arguments), vlmexport(*arguments, "--json")
    assert human.returncode == machine.returncode == (2 if breaks else 0)
    assert human.stdout == ("a [red] " if breaks else "a [red] cube :cat:\n")
    said = document(machine.stdout)
    assert said.get("answer") == (None if breaks else "a [red] cube :cat:")
    assert said.get("error") == ("the context is full" if breaks else None)


def test_numbers_that_json_does_not_know(capsys: pytest.CaptureFixture[str]) -> None:
    Console(as_json=True).result("", {"a": [float("nan"), float("-inf"), 1.5], "name": "caf\udce9 é"})
    assert document(capsys.readouterr().out) == {"a": [None, None, 1.5], "name": "caf\udce9 é"}


def test_a_process_writes_one_document(tmp_path: Path) -> None:
    found = process("gguf", "demo", "--bits", "x", "--json")
    assert (found.returncode, document(found.stdout)["exit_code"]) == (2, 2)
    command = [sys.executable, "-m", "vlmexport", "run", "demo", "-i", "x.png", b"\xff what?", "--json"]
    raw = subprocess.run(command, capture_output=True, cwd=tmp_path)
    assert (raw.returncode, document(raw.stdout.decode())["error"]) == (2, "'\\udcff what?' is no UTF-8")


def test_no_runtime_takes_half_characters(tiny_folder: Path, tmp_path: Path) -> None:
    """The demo's tokenizer, and the template of a bundle, which ONNX Runtime's and llama.cpp's read alike."""
    template = ChatTemplate("<image>{{ messages[0].content[1].text }}", "<image>", "here")
    tokenizer = SentencePieceTokenizer(tiny_folder / "tokenizer.model", {})
    with pytest.raises(UsageError, match="no UTF-8"):
        template.render(asked("what is \udcff?"))
    with pytest.raises(UsageError, match="no UTF-8"):
        tokenized(tokenizer, PromptSpec(), "what is \udcff?")
    picture = package.__path__[0] + "/demo/sprites.png"
    with pytest.raises(UsageError, match="no UTF-8"):
        list(ask("demo", [Path(picture)], "what is \udcff?", 1))
    (tmp_path / "caf\udce9").mkdir()
    with pytest.raises(CheckpointError, match=r"caf\\udce9' is no UTF-8: rename"):
        locate(str(tmp_path / "caf\udce9"))


def test_calibrate_replaces_nothing_without_force(tmp_path: Path) -> None:
    for name, flags, word in (
        ("mine.txt", (), "--force"),
        ("mine.txt", ("--force",), "no statistics"),
        ("no/where.safetensors", (), "in a folder that exists"),
        (".", (), "cannot be written"),
    ):
        (tmp_path / "mine.txt").write_text("precious")
        found = vlmexport("calibrate", "demo", "-o", tmp_path / name, *flags)
        assert found.returncode == 2
        assert word in found.stderr
    assert (tmp_path / "mine.txt").read_text() == "precious"


def test_unknown_variables_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    assert unknown_variables({variable(key): "" for key in keys()} | dict.fromkeys(OURS, "")) == []
    assert unknown_variables({"VLMEXPORT_TEST_ALL": "1", "PATH": "", "VLMEXPORTS": ""}) == []
    found = unknown_variables({"VLMEXPORT_GUF_TYPE": "", "VLMEXPORT_CASHE": "", "VLMEXPORT_XYZZY": ""})
    assert found == [
        "VLMEXPORT_CASHE sets nothing: did you mean VLMEXPORT_CACHE?",
        "VLMEXPORT_GUF_TYPE sets nothing: did you mean VLMEXPORT_GGUF_TYPE?",
        "VLMEXPORT_XYZZY sets nothing",
    ]
    monkeypatch.setenv("VLMEXPORT_ONNX_ROUDING", "gptq")
    found = vlmexport("recipes", "--json", "-q")
    assert found.stderr == "warning: VLMEXPORT_ONNX_ROUDING sets nothing: did you mean VLMEXPORT_ONNX_ROUNDING?\n"
    assert document(found.stdout)


def test_no_variable_of_ours_is_unknown() -> None:
    sources = [path.read_text(encoding="utf-8") for path in Path(package.__path__[0]).rglob("*.py")]
    used = {name for source in sources for name in re.findall(r"VLMEXPORT_[A-Z0-9_]*[A-Z0-9]", source)}
    assert unknown_variables(dict.fromkeys(used - {"VLMEXPORT_TEST"}, "")) == []
