"""What users do with a model whose pictures become tiles, and with its bundles: plan, compare, bench, run, new."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.command import vlmexport
from tests.onnx_bundles import picture
from tests.smolvlm import LONGEST, SIDE, TOKENS
from tests.smolvlm_bundle import Built
from vlmexport.artifact.bundle.manifest import read_manifest
from vlmexport.calibrate import collect
from vlmexport.calibrate.datasets import read
from vlmexport.measures.stage_result import STAGES
from vlmexport.model import load
from vlmexport.pipeline import export
from vlmexport.recipe import resolve
from vlmexport.source.checkpoint import open_checkpoint

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("short_answers")]

VIEWS = (LONGEST // SIDE) ** 2 + 1
"""Of a square picture."""


@pytest.fixture(scope="module")
def model(tiny_smolvlm: Built) -> Path:
    return tiny_smolvlm[2].parent / "model"


@pytest.fixture(scope="module")
def gguf(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return export(str(model), resolve("gguf-f16", environ={}), tmp_path_factory.mktemp("gguf") / "f16")


def told(*arguments: object) -> Any:
    done = vlmexport(*arguments, "--json")
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_no_graph_is_for_a_client_that_has_no_such_kind(tiny_smolvlm: Built) -> None:
    """onnxruntime-genai's own decoder and embedding, of which nothing would say what they are."""
    bundle = tiny_smolvlm[2]
    assert {file.name for file in bundle.rglob("*.onnx")} == {
        "vision_encoder.onnx", "projector.onnx", "embed_tokens.onnx", "decoder_model_merged.onnx"
    }  # fmt: skip
    assert "laid out for transformers.js; " in (bundle / "README.md").read_text()
    assert not {file.role for file in read_manifest(bundle).files} & {"decoder", "embedding"}


def test_plan(model: Path, tiny_smolvlm: Built, gguf: Path) -> None:
    """Bytes of a bundle within two percent, of GGUF files exactly; tokens and operations of all views."""
    chosen = ("--recipe", "onnx-fp32", "--recipe", "gguf-f16")
    onnx, files = told("plan", model, *chosen)
    assert onnx["bytes"] == pytest.approx(sum(f.bytes for f in read_manifest(tiny_smolvlm[2]).files), rel=0.02)
    assert files["bytes"] == sum(path.stat().st_size for path in gguf.glob("*.gguf"))
    assert (onnx["views"], onnx["visual_tokens"]) == (VIEWS, VIEWS * TOKENS)
    (fewer,) = told("plan", model, "--recipe", "onnx-fp32", "--max-views", "5")
    assert (fewer["views"], fewer["visual_tokens"]) == (5, 5 * TOKENS)
    assert fewer["operations"]["vision"] * VIEWS == onnx["operations"]["vision"] * 5
    assert onnx["bytes"] * 0.97 < fewer["bytes"] < onnx["bytes"]  # the graph knows fewer grids


def test_compare(model: Path) -> None:
    done = vlmexport("compare", model, "--phone", "raspberry-pi-5")
    assert done.returncode == 0, done.stderr
    assert f"{VIEWS * TOKENS} in {VIEWS} views" in " ".join(done.stdout.split())


def test_bench_tells_of_views(tiny_smolvlm: Built, gguf: Path, tmp_path: Path) -> None:
    """As many as the picture that it is given has."""
    picture(0, (300, 100)).save(tmp_path / "wide.png")
    asked = ("--rounds", "1", "--new-tokens", "2", "--image", tmp_path / "wide.png")
    done = vlmexport("bench", tiny_smolvlm[2], gguf, *asked)
    assert done.returncode == 0, done.stderr
    (line,) = (line for line in done.stdout.splitlines() if "image, ms" in line)
    assert line.count(", 9 views") == 2


def test_run_about_two_pictures(tiny_smolvlm: Built, gguf: Path, model: Path, tmp_path: Path) -> None:
    """The float model, the graphs and llama.cpp say the same."""
    images = []
    for number, size in enumerate(((300, 220), (20, 90))):
        picture(number, size).save(tmp_path / f"{number}.png")
        images += ["-i", tmp_path / f"{number}.png"]
    asked = ("What is in the pictures?", *images, "--max-new-tokens", "6")
    answers = [told("run", one, *asked)["answer"] for one in (model, tiny_smolvlm[2], gguf)]
    assert answers[0]
    assert answers == [answers[0]] * 3


def test_parts_of_it_in_a_design(model: Path, tmp_path: Path) -> None:
    """Its tower sees one square there; exported and checked as any model."""
    made = told("new", "--from", model, "--projector", "mlp2x_gelu", "-o", tmp_path / "made")
    assert made["visual_tokens"] == (SIDE // 8) ** 2
    done = vlmexport("onnx", tmp_path / "made", "--recipe", "onnx-fp32", "-o", tmp_path / "bundle", "-q")
    assert done.returncode == 0, done.stderr
    checked = told("check", tmp_path / "bundle", "--samples", "20")
    assert {stage["stage"] for stage in checked["stages"]} == set(STAGES)


@pytest.fixture(scope="module")
def conversations(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """LLaVA's JSON: seven conversations of three turns, about one picture, two and three of every shape."""
    folder, entries = tmp_path_factory.mktemp("data"), []
    for number in range(7):
        names = [f"{number}-{at}.png" for at in range(1 + number % 3)]
        for at, name in enumerate(names):
            picture(10 * number + at, ((300, 220), (20, 90), (64, 64))[(number + at) % 3]).save(folder / name)
        marks = ["<image>\n" if at < len(names) else "" for at in range(3)]
        turns = [
            {"from": side, "value": text}
            for at, mark in enumerate(marks)
            for side, text in (("human", f"{mark}What is in it, {at}?"), ("gpt", "a chat"))
        ]
        entries.append({"id": str(number), "image": names, "conversations": turns})
    (folder / "data.json").write_text(json.dumps(entries), encoding="utf-8")
    return folder / "data.json"


@pytest.mark.parametrize("kind", ["onnx", "gguf"])
def test_check_on_conversations(kind: str, conversations: Path, tiny_smolvlm: Built, gguf: Path) -> None:
    """Every turn is asked behind those before it, about all pictures so far."""
    bundle = gguf if kind == "gguf" else tiny_smolvlm[2]
    found = told("check", bundle, "--data", conversations, "--samples", "21")
    assert (found["passed"], found["samples"], found["images"]) == (True, 21, 13)
    assert {stage["stage"] for stage in found["stages"]} == set(STAGES)


def test_calibration_on_conversations(conversations: Path, model: Path) -> None:
    """All positions of all turns and pictures count, those of visual tokens apart."""
    checkpoint, samples = open_checkpoint(model), read(conversations)
    vlm = load(checkpoint)
    found = collect(vlm, checkpoint.prompts, samples)
    layer = found.layers["language.model.layers.0.self_attn.q_proj"]
    prompts = [
        checkpoint.prompts.prompt(sample.messages, [vlm.processed(one.image()).views for one in sample.alone()])
        for sample in samples
    ]
    assert found.samples == tuple(sample.id for sample in samples)
    assert layer.count_image == sum(prompt.num_visual for prompt in prompts)


def test_a_gguf_export_takes_what_is_planned(tmp_path: Path) -> None:
    """No more, and no torch: the trained model with its 9 patches a side."""
    trained = Path(__file__).parents[2] / "models" / "tiles"
    (planned,) = told("plan", trained, "--recipe", "gguf-f16")
    script = (
        "import sys; from pathlib import Path; from vlmexport.pipeline import export\n"
        "from vlmexport.recipe import resolve; from vlmexport.workers.memory import peak_bytes\n"
        f"export({str(trained)!r}, resolve('gguf-f16', environ={{}}), Path({str(tmp_path / 'bundle')!r}))\n"
        "assert 'torch' not in sys.modules; print(peak_bytes())"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) < planned["peak_memory_bytes"]
