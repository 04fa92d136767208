"""Models from the Hub, with its real client, on an endpoint of this machine."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from io import StringIO
from pathlib import Path

import pytest
from huggingface_hub import close_session
from rich.console import Console as RichConsole

from tests.checkpoints import tiny_spec, write_checkpoint, write_clip, write_json
from tests.hub import COMMIT, OLDER, Hub, Repository
from vlmexport.checkpoint.hub import HubId, hub_id
from vlmexport.checkpoint.hub_files import wanted
from vlmexport.console import Console
from vlmexport.errors import CheckpointError
from vlmexport.pipeline import export
from vlmexport.recipe import resolve
from vlmexport.source.locate import locate, open_model

FILES = [
    "config.json", "generation_config.json", "preprocessor_config.json", "processor_config.json", "chat_template.json",
    "chat_template.jinja", "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json",
    "tokenizer.model", "spiece.model", "vocab.json", "vocab.txt", "merges.txt", "README.md",
]  # fmt: skip
SAFE = ["model.safetensors.index.json", "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"]
BIN = ["pytorch_model.bin.index.json", "pytorch_model-00001-of-00002.bin", "pytorch_model-00002-of-00002.bin"]
OTHERS = [
    "onnx/model.onnx", "onnx/config.json", "original/consolidated.safetensors", "consolidated.safetensors",
    "tf_model.h5", "model.fp16.safetensors", "modeling_llava.py", "training_args.bin", "optimizer.bin",
    "trainer_state.json", "a.gguf", "flax_model.msgpack", ".gitattributes",
]  # fmt: skip


@pytest.mark.parametrize(
    ("weights", "chosen"),
    [
        ([*SAFE, *BIN], SAFE),
        (["model.safetensors", "pytorch_model.bin"], ["model.safetensors"]),
        (["model.safetensors", *BIN], ["model.safetensors"]),
        ([*SAFE, "model.safetensors"], SAFE),
        ([*BIN, "mm_projector.bin"], BIN),
        (["mm_projector.bin"], ["mm_projector.bin"]),
        ([], []),
    ],
)
def test_one_weight_format_and_what_lies_beside(weights: list[str], chosen: list[str]) -> None:
    assert sorted(wanted([*FILES, *OTHERS, *weights])) == sorted([*FILES, *chosen])


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("owner/name", HubId("owner/name")),
        ("owner/name@v1.0", HubId("owner/name", "v1.0")),
        ("owner/name@refs/pr/1", HubId("owner/name", "refs/pr/1")),
        ("owner/name@", None),
        ("owner", None),
        ("./owner/name", None),
        ("a/b/c", None),
        ("owner/naïve", None),
        ("owner/name@x y", None),
    ],
)
def test_hub_ids(text: str, found: HubId | None) -> None:
    assert hub_id(text) == found
    assert found is None or str(found) == text


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint as repositories hold them: both weight formats, other programs' files."""
    folder = write_checkpoint(tmp_path_factory.mktemp("published") / "tiny", tiny_spec("ldpnetv2", num_layers=1))
    for name in ("pytorch_model.bin", "onnx/model.onnx", "modeling.py", "chat_template.jinja", "merges.txt"):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(name * 100)
    return folder


@pytest.fixture
def tiny(hub: Hub, published: Path, tmp_path: Path) -> Hub:
    """Two commits of it; the older one says another size of its context."""
    older = Path(shutil.copytree(published, tmp_path / "older"))
    config = json.loads((older / "config.json").read_text())
    write_json(older / "config.json", config | {"max_position_embeddings": 64})
    names = {"main": COMMIT, "v1": OLDER}
    hub.repositories["someone/tiny-vlm"] = Repository({COMMIT: published, OLDER: older}, names)
    hub.repositories["someone/gated"] = Repository({COMMIT: published}, gated=True)
    return hub


def test_what_is_fetched_and_only_once(tiny: Hub, capsys: pytest.CaptureFixture[str]) -> None:
    console = Console()
    checkpoint = open_model("someone/tiny-vlm", console=console)
    assert (checkpoint.origin, checkpoint.spec.name) == (f"someone/tiny-vlm@{COMMIT}", "tiny-vlm")
    assert checkpoint.about.source == "https://huggingface.co/someone/tiny-vlm"
    assert checkpoint.about.base_models == ("someone/tiny-vlm",)
    files = ["chat_template.jinja", "config.json", "merges.txt", "model.safetensors", "tokenizer.model"]
    assert sorted(tiny.asked) == [f"someone/tiny-vlm/{name}" for name in files]
    said = capsys.readouterr().err
    assert said.startswith("fetching someone/tiny-vlm, ")
    assert said.count("\n") == 1
    open_model("someone/tiny-vlm", console=console)
    assert len(tiny.asked) == len(files)
    assert capsys.readouterr().err == ""


def test_revisions(tiny: Hub) -> None:
    for revision in ("v1", OLDER):
        checkpoint = open_model(f"someone/tiny-vlm@{revision}")
        assert checkpoint.origin == f"someone/tiny-vlm@{OLDER}"
        assert checkpoint.spec.language.max_positions == 64
    assert open_model("someone/tiny-vlm@main").spec.language.max_positions == 2048
    assert locate("someone/tiny-vlm@v1").name == OLDER


def test_the_commit_stands_in_the_manifest(tiny: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And is what a check opens, whatever the branch holds by then."""
    monkeypatch.chdir(tmp_path)
    folder = export("someone/tiny-vlm@v1", resolve("gguf-f16"), console=Console(quiet=True))
    source = json.loads((folder / "vlmexport.json").read_text())["source"]
    assert (str(folder), source["name"]) == ("tiny-vlm-gguf-f16", "tiny-vlm")
    assert source["path"] == f"someone/tiny-vlm@{OLDER}"
    tiny.repositories["someone/tiny-vlm"].names["v1"] = COMMIT
    assert open_model(source["path"]).spec.language.max_positions == 64


def test_progress_on_a_terminal(tiny: Hub) -> None:
    console, shown = Console(), StringIO()
    console._err = RichConsole(file=shown, force_terminal=True, width=120, color_system=None)
    locate("someone/tiny-vlm", console)
    assert "fetching someone/tiny-vlm" in shown.getvalue()
    assert "100%" not in shown.getvalue()  # the client's own bar


@pytest.mark.parametrize("console", [Console(quiet=True), Console(as_json=True)])
def test_no_progress(console: Console, tiny: Hub, capfd: pytest.CaptureFixture[str]) -> None:
    locate("someone/tiny-vlm", console)
    assert capfd.readouterr() == ("", "")


CASES = {
    "someone/gated": ("is gated", "accept its licence at {url}/someone/gated, then `hf auth login`"),
    "someone/none": ("no such repository", "check the name; if it is private, `hf auth login`"),
    "someone/tiny-vlm@v9": (
        "someone/tiny-vlm has no revision v9",
        "branches, tags and commits at {url}/someone/tiny-vlm",
    ),
    "someone/a--b": ("no Hub id", "pass owner/name"),
}


@pytest.mark.parametrize("model", CASES)
def test_what_the_hub_does_not_give(model: str, tiny: Hub) -> None:
    what, cure = CASES[model]
    with pytest.raises(CheckpointError) as caught:
        locate(model)
    assert what in caught.value.what
    assert cure.format(url=tiny.url) in caught.value.cure
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("status", "cure"), [(401, "hf auth login"), (429, "minutes"), (500, "minutes"), (418, "minutes")]
)
def test_a_hub_in_trouble(status: int, cure: str, tiny: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    tiny.broken = status
    with pytest.raises(CheckpointError) as caught:
        locate("someone/tiny-vlm")
    assert cure in caught.value.cure
    assert str(status) in caught.value.what or status == 401
    assert "\n" not in str(caught.value)


def test_without_a_connection_the_cache_serves(tiny: Hub, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    locate("someone/tiny-vlm")
    tiny.server.shutdown()
    tiny.server.server_close()
    close_session()
    assert locate("someone/tiny-vlm", Console()).name == COMMIT
    assert "cannot be reached" in capsys.readouterr().err
    (tmp_path / "home/hub/models--someone--tiny-vlm/snapshots" / COMMIT / "model.safetensors").unlink()
    for model in ("someone/tiny-vlm", "someone/other"):  # what was fetched in part is not taken for a model
        with pytest.raises(CheckpointError, match=rf"{model} is no folder here, and the Hub"):
            locate(model)
    with pytest.raises(CheckpointError) as caught:
        locate("someone/other")
    assert f"the Hub ({tiny.url}) cannot be reached" in caught.value.what
    assert caught.value.cure == "check the connection, or pass a folder"


def test_an_error_without_a_message(tiny: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    """As a lost connection of some HTTP libraries is."""

    def lost(*_: object, **__: object) -> None:
        raise OSError

    monkeypatch.setattr("huggingface_hub.hf_hub_download", lost)
    with pytest.raises(CheckpointError, match=r"fetching someone/tiny-vlm failed \(OSError\)"):
        locate("someone/tiny-vlm")


def test_a_tower_from_elsewhere_is_announced(
    tiny: Hub, tmp_path: Path, capsys: pytest.CaptureFixture[str], published: Path
) -> None:
    from tests.checkpoints import canonical_state, original

    spec = tiny_spec("ldpnetv2", num_layers=1)
    state = canonical_state(spec)
    tower = write_clip(tmp_path / "clip", spec, state.pop("vision"))
    tensors = {original(part, name): value for part, found in state.items() for name, value in found.items()}
    model = write_checkpoint(tmp_path / "model", spec, state=tensors, mm_vision_tower="openai/clip-tiny")
    tiny.repositories["openai/clip-tiny"] = Repository({COMMIT: tower})
    checkpoint = open_model(str(model), console=Console())
    assert checkpoint.found_at[1] == f"openai/clip-tiny@{COMMIT}"
    first = capsys.readouterr().err.splitlines()[0]
    assert first.startswith(f"the vision tower that {model / 'config.json'} names: openai/clip-tiny, ")
    assert first.endswith("kB, fetched from the Hub")
    open_model(str(model), console=Console())
    assert capsys.readouterr().err.rstrip().endswith("kB, from the Hub's cache")
    open_model(str(model), console=Console(quiet=True))
    assert capsys.readouterr().err == ""
    tiny.repositories["openai/clip-tiny"].gated = True
    shutil.rmtree(tmp_path / "home")
    with pytest.raises(CheckpointError) as caught:
        open_model(str(model))
    assert "hf auth login" in caught.value.cure
    assert "--vision-tower DIR" in caught.value.cure


def test_as_a_user_runs_it(tiny: Hub, tmp_path: Path) -> None:
    """A process that knows the endpoint from its environment alone: the model, then offline, then what is not there."""
    environ = {key: value for key, value in os.environ.items() if not key.startswith("HF_")}
    environ |= tiny.environment(tmp_path / "home")

    def run(*arguments: str, **more: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "vlmexport", "inspect", *arguments]
        return subprocess.run(command, capture_output=True, text=True, env=environ | more)

    found = run("someone/tiny-vlm@v1", "--json")
    assert (found.returncode, found.stderr) == (0, "")
    assert json.loads(found.stdout)["name"] == "tiny-vlm"
    offline = run("someone/other", HF_HUB_OFFLINE="1")
    assert (offline.returncode, offline.stdout) == (2, "")
    assert offline.stderr == (
        "error: someone/other is no folder here, and not in the Hub's cache, which HF_HUB_OFFLINE leaves: unset "
        "HF_HUB_OFFLINE to fetch it, or pass a folder\n"
    )
    assert run("someone/tiny-vlm@v1", HF_HUB_OFFLINE="1").returncode == 0
