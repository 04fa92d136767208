"""Chat templates as transformers renders them; and what a template of a stranger can do, which is little."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from datetime import datetime
from pathlib import Path
from typing import Any

import jinja2
import llama_cpp.llama_chat_format
import pytest
from transformers.utils import chat_template_utils

from tests.runtime.chat_templates import CONVERSATIONS, FAMILIES
from vlmexport.errors import CheckpointError
from vlmexport.processing import template_process
from vlmexport.processing.chat_template import ChatTemplate
from vlmexport.processing.messages import asked
from vlmexport.processing.template_language import NOW, compiled
from vlmexport.processing.template_worker import LONGEST

PUBLISHED = {
    name.removesuffix("_CHAT_TEMPLATE").lower(): source
    for name, source in vars(llama_cpp.llama_chat_format).items()
    if name.endswith("_CHAT_TEMPLATE")
}
"""Published ones that llama-cpp-python carries as constants."""

ARCHIVE = Path(__file__).parents[2] / "out/bench/source/vendor/llama.cpp/models/templates"
"""Where `make bench` unpacks llama.cpp's source, with some fifty published templates."""

VARIANTS: list[dict[str, Any]] = [
    {},
    {"add_generation_prompt": True},
    {"tools": [{"type": "function", "function": {"name": "f", "description": "<b> & 'c'"}}], "enable_thinking": False},
    {"documents": [{"title": "漢字", "text": "<x>"}], "add_vision_id": True},
]


@pytest.fixture(autouse=True)
def _same_day(monkeypatch: pytest.MonkeyPatch) -> None:
    """transformers asks the clock."""

    class Clock(datetime):
        @classmethod
        def now(cls, tz: Any = None) -> Any:
            return NOW

    monkeypatch.setattr(chat_template_utils, "datetime", Clock)


def theirs(source: str, values: dict[str, Any]) -> str:
    """A text, or the kind of what was raised."""
    given = {"messages": [], "tools": None, "documents": None, "add_generation_prompt": False} | values
    messages, tools, documents = (given.pop(key) for key in ("messages", "tools", "documents"))
    try:
        return str(
            chat_template_utils.render_jinja_template(
                [messages], tools=tools, documents=documents, chat_template=source, **given
            )[0][0]
        )
    except (jinja2.TemplateError, TypeError, ValueError, KeyError, AttributeError, IndexError) as error:
        return f"raised {type(error).__name__}"


def ours(source: str, values: dict[str, Any]) -> str:
    given = {"tools": None, "documents": None, "add_generation_prompt": False} | values
    try:
        return compiled(source).render(given)
    except (jinja2.TemplateError, TypeError, ValueError, KeyError, AttributeError, IndexError) as error:
        return f"raised {type(error).__name__}"


def compare(source: str) -> int:
    """All conversations in all variants; returned is the number of texts that no error took the place of."""
    texts = 0
    for messages in CONVERSATIONS.values():
        for variant in VARIANTS:
            values = {"messages": messages, "bos_token": "<s>", "eos_token": "</s>", **variant}
            expected = theirs(source, values)
            assert ours(source, values) == expected
            texts += not expected.startswith("raised ")
    return texts


@pytest.mark.parametrize("family", FAMILIES)
def test_as_transformers(family: str) -> None:
    assert compare(FAMILIES[family]) >= 8


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_ones_in_llama_cpp_python(name: str) -> None:
    assert compare(PUBLISHED[name]) >= 4


@pytest.mark.skipif(not ARCHIVE.is_dir(), reason="llama.cpp's source is not here (`make bench` fetches it)")
def test_published_ones_in_llama_cpps_archive() -> None:
    for path in sorted(ARCHIVE.glob("*.jinja")):
        compare(path.read_text(encoding="utf-8"))


@pytest.mark.parametrize(
    ("source", "text"),
    [
        ("{{ strftime_now('%d %b %Y') }}", "26 Jul 2024"),
        ("{% for a in [1, 2, 3] %}{% if a == 2 %}{% break %}{% endif %}{{ a }}{% endfor %}", "1"),
        ("{% for a in [1, 2, 3] %}{% if a == 2 %}{% continue %}{% endif %}{{ a }}{% endfor %}", "13"),
        ("{% generation %}<a>{% endgeneration %}", "<a>"),
        ("{{ {'a': '<b> & \\'c\\' 漢'} | tojson }}", '{"a": "<b> & \'c\' 漢"}'),
        ("{{ dict(a=1) }}{{ dict.fromkeys(['a']) }}", "{'a': 1}{'a': None}"),
    ],
)
def test_functions_and_tags(source: str, text: str) -> None:
    assert template_process.render(source, {}) == text


HOSTILE = {
    "{{ 1 // 0 }}": "ZeroDivisionError",
    "{{ messages + 1 }}": "TypeError",
    "{{ messages[0]['content'][7]['text']['x'] }}": "undefined|no element",
    "{{ raise_exception('no\n\nway') }}": r"\(no way\)",
    "{{ raise_exception('') }}": "TemplateError",
    "{% if %}": "it is no template",
    "{{ none_of_these() }}": "'none_of_these' is undefined",
    "{% include 'x' %}": "TypeError|no loader",
    "{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}": "RecursionError",
    "{{ 'a' * 3000000000 }}": "MiB of memory",
    "{{ '%3000000000d' % 1 }}": "MiB of memory",
    "{% set ns = namespace(a='aaaaaaaa') %}{% for i in range(40) %}{% set ns.a = ns.a + ns.a %}{% endfor %}": "memory",
    "{% for i in range(99999) %}{{ 'a' * 999 }}{% endfor %}": f"more than {LONGEST:,} characters",
    "{% for i in range(100001) %}{% endfor %}": "OverflowError",
    "{{ ''.__class__.__mro__ }}": "SecurityError|unsafe|undefined",
    "{{ messages.append(1) }}": "is unsafe",
    "{{ dict.__call__() }}": "unsafe",
    "{{ namespace(__class__=1) }}": "a namespace cannot hold",
    "{% set n = namespace() %}{% set n.__init__ = 1 %}": "a namespace cannot hold",
}


@pytest.mark.skipif(sys.platform != "linux", reason="no other system holds a process to a bound of memory")
@pytest.mark.parametrize("source", HOSTILE)
def test_whatever_a_template_does_is_one_line(source: str) -> None:
    with pytest.raises(CheckpointError, match=HOSTILE[source]) as caught:
        ChatTemplate(source, "<image>", "x.gguf").render(asked("What?"))
    assert caught.value.exit_code == 2
    assert "the chat template of x.gguf cannot be rendered" in caught.value.what
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 500


def test_a_long_reason_is_cut() -> None:
    with pytest.raises(CheckpointError) as caught:
        ChatTemplate("{{ raise_exception('x' * 100000) }}", "<image>", "x.gguf").render(asked("What?"))
    assert len(str(caught.value)) < 500


ENDLESS = "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}"


def test_one_that_loops_is_stopped_and_the_next_is_rendered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(template_process, "SECONDS", 1.0)
    monkeypatch.setattr(template_process, "_running", {})
    with pytest.raises(CheckpointError, match=r"did not answer within 1 seconds .* and was ended"):
        ChatTemplate(ENDLESS, "<image>", "x.gguf").render(asked("What?"))
    assert (
        ChatTemplate("<image>{{ messages[0]['content'][1]['text'] }}", "<image>", "x").render(asked("Q")).text
        == "<image>Q"
    )


def test_one_process_for_a_thousand_questions() -> None:
    template = ChatTemplate("<image>{{ messages[0]['content'][1]['text'] }}", "<image>", "x.gguf")
    template.render(asked("first"))
    process = template_process._running[os.getpid()]
    found: list[str] = []
    threads = [
        threading.Thread(target=lambda n=n: found.extend(template.render(asked(f"{n}.{i}")).text for i in range(250)))
        for n in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(found) == sorted(f"<image>{n}.{i}" for n in range(4) for i in range(250))
    assert template_process._running[os.getpid()] is process
    assert process.alive


def test_modules_in_the_current_folder_are_not_imported(tmp_path: Path) -> None:
    """Somebody may run in a stranger's folder."""
    for name in ("jinja2", "numpy", "json"):
        (tmp_path / f"{name}.py").write_text("open('imported', 'w').close()")
    code = "from vlmexport.processing.template_process import render; print(render('{{ 1 + 1 }}', {}))"
    root = str(Path(template_process.__file__).parents[2])
    done = subprocess.run(
        [sys.executable, "-P", "-c", code], cwd=tmp_path, capture_output=True, text=True,
        env=os.environ | {"PYTHONPATH": root},
    )  # fmt: skip
    assert (done.stdout, done.stderr) == ("2\n", "")
    assert not (tmp_path / "imported").exists()


def test_rendering_imports_neither_transformers_nor_torch() -> None:
    code = (
        "import sys; from vlmexport.processing.chat_template import ChatTemplate; "
        "from vlmexport.processing.messages import asked; "
        "text = ChatTemplate('<image>', '<image>', 'x').render(asked('')).text; "
        "print(text, {'torch', 'transformers'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "<image> set()\n"
