"""What an installation lacks is one line, and one command installs it."""

from __future__ import annotations

import pytest

from tests.command import vlmexport
from tests.test_cli import assert_one_line_error
from vlmexport.errors import MissingDependency
from vlmexport.extras import EXTRAS, missing, require


def test_a_whole_installation() -> None:
    require(*EXTRAS)


def test_one_command_installs_all_that_lacks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(EXTRAS, "gguf", ("sys", "nowhere_gguf"))
    with pytest.raises(MissingDependency, match=r"needs nowhere_gguf, .*: pip install 'vlmexport\[gguf\]'"):
        require("export", "gguf")
    monkeypatch.setitem(EXTRAS, "export", ("nowhere_torch",))
    done = vlmexport("gguf", "demo")
    assert_one_line_error(done, 4, "needs nowhere_torch", "pip install 'vlmexport[export,gguf]'")


def test_llama_cpp_of_another_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vlmexport.extras.find_spec", lambda name: None if name == "llama_cpp" else name)
    with pytest.raises(MissingDependency, match="needs llama_cpp"):
        require("gguf")
    monkeypatch.setenv("LLAMA_CPP_LIB_PATH", "/somewhere")
    require("gguf")


@pytest.mark.parametrize(("module", "extra"), [("onnx.helper", "export"), ("llama_cpp", "gguf"), ("timm.x", "all")])
def test_a_module_that_could_not_be_imported(module: str, extra: str) -> None:
    assert str(missing(module)).endswith(f"pip install 'vlmexport[{extra}]'")
