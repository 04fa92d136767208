"""Fine-tuning: what each option promises about the weights that come out."""

from __future__ import annotations

import json
import re
import runpy
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from tests import gguf_bundles
from tests.checkpoints import tiny_spec, write_checkpoint
from tests.onnx_bundles import picture, recipe
from tests.prompts import as_inputs, ask, tokenized
from tests.recipes.conftest import FINETUNE
from vlmexport.checkpoint.spec import ImageProcessorSpec
from vlmexport.console import QUIET
from vlmexport.design import Design, create
from vlmexport.errors import Unsupported, UsageError
from vlmexport.model import load
from vlmexport.pipeline import export_checkpoint
from vlmexport.runtime.open import open_runtime
from vlmexport.runtime.reference import ReferenceRuntime
from vlmexport.source.checkpoint import Checkpoint, open_checkpoint

ANSWERS = ("a chat", "polite answers", "a curious user")


@pytest.fixture(scope="module")
def captions(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """COCO's captions of three pictures, two of each."""
    folder = tmp_path_factory.mktemp("coco")
    for i in range(3):
        picture(i).save(folder / f"{i}.png")
    images = [{"id": i, "file_name": f"{i}.png"} for i in range(3)]
    annotations = [{"image_id": i, "caption": f"{word} {ANSWERS[i]}"} for i in range(3) for word in ("a", "the")]
    (folder / "captions.json").write_text(json.dumps({"images": images, "annotations": annotations}))
    return folder / "captions.json"


def settings(model: str | Path, data: str | Path, folder: Path, **options: Any) -> Any:
    from settings import Settings

    given = {"steps": 3, "batch": 2, "rate": 1e-3, "threads": 1} | options
    return Settings(str(model), folder / "out", data=str(data), **given)


def trained(chosen: Any) -> Checkpoint:
    from training import run

    return open_checkpoint(run(chosen, QUIET))


def values(checkpoint: Checkpoint, component: str) -> dict[str, torch.Tensor]:
    return {name: tensor.torch() for name, tensor in checkpoint.tensors[component].items()}


@pytest.mark.parametrize("language", ["llama:tiny", "qwen2:tiny", "gpt2:tiny"])
def test_a_packed_turn_equals_a_single_turn(language: str, tmp_path: Path) -> None:
    from batches import answer_logits, pack

    create(Design("clip:tiny", "linear", language), tmp_path / "model")
    checkpoint = open_checkpoint(tmp_path / "model")
    vlm, tokenizer = load(checkpoint), checkpoint.tokenizer
    asked = [[("What is this?", "cat"), ("Is there a dog?", "no")], [("How many objects are there?", "three")]]
    pictures = torch.cat([vlm.pixels(picture(i)) for i in range(2)])
    with torch.no_grad():
        features = vlm.features(pictures)
        found, at = answer_logits(vlm, features, pack(checkpoint, asked)), 0
        for i, turns in enumerate(asked):
            visual = vlm.tokens(features[i : i + 1])
            for question, answer in turns:
                prompt = tokenized(tokenizer, checkpoint.spec.prompt, question, visual.shape[1])
                ids = tokenizer.encode(answer)
                single = vlm.logits(vlm.inputs(prompt.answered(ids), visual), len(ids) + 1)[0]
                torch.testing.assert_close(found[at : at + len(single)], single, atol=1e-4, rtol=1e-4)
                at += len(single)
    assert at == len(found)


def test_pictures_of_several_views_are_refused(tiny_folder: Path) -> None:
    from batches import pack

    checkpoint = open_checkpoint(tiny_folder)
    checkpoint.spec = replace(checkpoint.spec, image_processor=ImageProcessorSpec.tiles(128, 64))
    with pytest.raises(Unsupported, match="are cut into several views, this recipe trains on one of each: fine-tune"):
        pack(checkpoint, [[("What is this?", "cat")]])


def test_a_stage_leaves_the_rest_as_it_was(tiny_folder: Path, tiny: Checkpoint, captions: Path, tmp_path: Path) -> None:
    first = trained(settings(tiny_folder, captions, tmp_path, stage="projector"))
    for part, learns in (("vision", False), ("projector", True), ("language", False)):
        same = [torch.equal(value, tiny.tensors[part][name].torch()) for name, value in values(first, part).items()]
        assert len(same) == len(tiny.tensors[part])
        assert not any(same) if learns else all(same)
    assert first.spec == open_checkpoint(tiny_folder, origin=first.spec.name).spec
    assert len(first.tokenizer) == len(tiny.tokenizer)


def test_an_int8_projector_learns_behind_its_rounding(captions: Path, tmp_path: Path) -> None:
    """Gradients pass through the rounding; the ranges are those of what it has learned."""
    create(Design("clip:tiny", "quantized_fbgemm", "llama:tiny", image_size=168), tmp_path / "model")
    first = open_checkpoint(tmp_path / "model")
    last = trained(settings(tmp_path / "model", captions, tmp_path, stage="projector", rate=1e-2))
    before, after = values(first, "projector"), values(last, "projector")
    assert not any(torch.equal(before[name], after[name]) for name in before)
    vlm = load(last)
    pixels = torch.cat([vlm.pixels(picture(i)) for i in range(3)])
    features = vlm.features(pixels).half().float()
    sums = torch.nn.functional.linear(features, after["weight"].float(), after["bias"].float())
    for name, found in (("input_range", features), ("output_range", sums)):
        span = torch.stack(found.aminmax())
        assert (after[name].float() - span).abs().max() < 0.02 * (span[1] - span[0]), name


def test_features_are_kept_by_what_a_picture_holds(captions: Path, tmp_path: Path) -> None:
    from frozen import Features
    from lessons import lessons

    computed: list[str] = []

    def features() -> torch.Tensor:
        kept = Features(lambda image: (computed.append("once"), torch.tensor([[float(image.size[0])]]))[1], tmp_path)
        return kept(lessons(str(captions), "instruct"))

    assert torch.equal(features(), features())
    assert len(computed) == 3
    before = (captions.parent / "1.png").read_bytes()
    try:
        picture(1, (80, 60)).save(captions.parent / "1.png")
        assert sorted(features().flatten().tolist()) == [80.0, 300.0, 300.0]
    finally:
        (captions.parent / "1.png").write_bytes(before)
    assert len(computed) == 4


def test_several_captions_take_turns(captions: Path) -> None:
    from lessons import lessons

    (lesson, *others) = sorted(lessons(str(captions), "projector"), key=lambda one: one.name)
    assert len(others) == 2
    (question, first), (_, second) = lesson.turns(0)[0], lesson.turns(1)[0]
    assert "caption" in question
    assert {first, second} == {f"a {ANSWERS[0]}", f"the {ANSWERS[0]}"}
    assert lesson.turns(2)[0][1] == first


def test_pruned_weights_stay_zero(tiny_folder: Path, captions: Path, tmp_path: Path) -> None:
    found = values(trained(settings(tiny_folder, captions, tmp_path, prune=0.37)), "language")
    for name, value in found.items():
        zeros = int((value == 0).sum())
        if "layers" in name and value.ndim == 2:
            assert zeros == round(0.37 * value.numel()), name
        else:
            assert zeros < 10, name
    before = open_checkpoint(tiny_folder).tensors["language"]
    name = "model.layers.0.mlp.up_proj.weight"
    old, left = before[name].torch().float(), found[name] != 0
    assert old[~left].abs().max() <= old[left].abs().min()
    assert not torch.equal(old[left], found[name][left].float())


def test_what_does_nothing_is_left_out(tmp_path: Path) -> None:
    """Channels and heads of no effect go first, and the smaller model computes the same."""
    from structure import restructure

    folder = write_checkpoint(tmp_path / "whole", tiny_spec("ldpnetv2", num_kv_heads=2))
    vlm = load(open_checkpoint(folder), resident=True)
    embeds = torch.randn(1, 9, 256, generator=torch.Generator().manual_seed(0))
    for layer in vlm.language.model.layers:  # type: ignore[union-attr]
        layer.mlp.down_proj.weight[:, torch.arange(0, 512, 2)] = 0  # type: ignore[union-attr, index, operator]
        layer.self_attn.o_proj.weight[:, 128:] = 0  # type: ignore[union-attr, index, operator]
    before = vlm.logits(as_inputs(embeds), 0)
    small = restructure(vlm, settings(folder, "scenes", tmp_path, prune_heads=0.5, prune_channels=0.5))
    language = small.spec.language
    assert (language.num_heads, language.num_kv_heads, language.head_dim) == (2, 1, 64)
    assert language.intermediate_size == 256
    torch.testing.assert_close(small.logits(as_inputs(embeds), 0), before, atol=1e-4, rtol=1e-4)


@pytest.fixture(scope="module")
def smaller(tiny_folder: Path, captions: Path, tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    """Trained without half of its heads, a quarter of its channels, tied."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(FINETUNE))
        folder = tmp_path_factory.mktemp("smaller")
        return trained(settings(tiny_folder, captions, folder, prune_heads=0.5, prune_channels=0.25, tie=True))


def test_a_smaller_checkpoint_is_smaller(smaller: Checkpoint, tiny: Checkpoint) -> None:
    language = smaller.spec.language
    assert (language.num_heads, language.head_dim, language.intermediate_size) == (2, 64, 384)
    assert language.tie_word_embeddings
    assert "lm_head.weight" not in smaller.tensors["language"]
    size, before = ((one.path / "model.safetensors").stat().st_size for one in (smaller, tiny))
    assert size < 0.85 * before


@pytest.mark.slow
def test_a_smaller_checkpoint_exports(smaller: Checkpoint, tmp_path: Path) -> None:
    gguf_bundles.export(smaller, tmp_path / "gguf", type="f32", mmproj_type="f32")
    export_checkpoint(smaller, recipe("fp32", decoder="fp16"), tmp_path / "onnx")
    reference = ReferenceRuntime(smaller)
    prompt = ask(reference, "what is the image ?")
    tokens = reference.tokens(reference.features(reference.pixels(picture(0))))
    expected = torch.from_numpy(reference.logits(prompt, [tokens], 0))
    for name in ("gguf", "onnx"):
        runtime = open_runtime(tmp_path / name)
        try:
            found = torch.from_numpy(runtime.logits(prompt, [tokens], 0).copy())
        finally:
            runtime.close()
        assert (found - expected).norm() < 2e-3 * expected.norm(), name


@pytest.mark.slow
def test_a_teacher_is_imitated(tiny_folder: Path, captions: Path, tmp_path: Path) -> None:
    from losses import distillation
    from training import Trainer

    teacher = write_checkpoint(tmp_path / "teacher", tiny_spec("mlp2x_gelu", num_layers=1), seed=7)
    kept = {"features": tmp_path / "features", "batch": 3}
    chosen = settings(tiny_folder, captions, tmp_path, steps=30, teacher=str(teacher), teacher_weight=1.0, **kept)
    trainer = Trainer(chosen)
    losses = [trainer.advance()["teacher"] for _ in range(chosen.steps)]
    assert sum(losses[-3:]) < 0.7 * sum(losses[:3])
    logits = torch.randn(4, 9)
    assert distillation(logits, logits + 1, 2.0) == pytest.approx(0, abs=1e-6)  # a constant changes no distribution


def test_a_teacher_of_other_tokens_is_refused(tiny_folder: Path, captions: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="same tokenizer"):
        trained(settings(tiny_folder, captions, tmp_path, teacher="demo"))


def test_a_broken_run_gives_the_weights_of_an_unbroken_one(tiny_folder: Path, captions: Path, tmp_path: Path) -> None:
    from training import Trainer, state_path

    whole = trained(settings(tiny_folder, captions, tmp_path / "whole", steps=4, prune=0.5))
    chosen = settings(tiny_folder, captions, tmp_path, steps=4, prune=0.5)
    trainer = Trainer(chosen)
    for _ in range(2):
        trainer.advance()
    trainer.save(state_path(chosen.output))
    resumed = trained(chosen)
    assert not state_path(chosen.output).exists()
    for part in ("projector", "language"):
        for name, value in values(whole, part).items():
            assert torch.equal(value, resumed.tensors[part][name].torch()), name


def test_a_state_of_another_run_is_not_taken(tiny_folder: Path, captions: Path, tmp_path: Path) -> None:
    from training import Trainer, state_path

    chosen = settings(tiny_folder, captions, tmp_path)
    Trainer(chosen).save(state_path(chosen.output))
    with pytest.raises(UsageError, match="other settings, another model or other data"):
        trained(settings(tiny_folder, captions, tmp_path, rate=2e-3))


@pytest.mark.parametrize("change", ["config.json", "model.safetensors", "1.png", "captions.json"])
def test_a_state_of_another_model_or_other_data_under_the_same_names(
    change: str, tiny_folder: Path, captions: Path, tmp_path: Path
) -> None:
    from training import Trainer, state_path

    model, data = shutil.copytree(tiny_folder, tmp_path / "model"), shutil.copytree(captions.parent, tmp_path / "data")
    chosen = settings(model, data / captions.name, tmp_path)
    first = Trainer(chosen)
    first.save(state_path(chosen.output))
    Trainer(chosen).resume(state_path(chosen.output))
    if change == "config.json":
        config = json.loads((model / change).read_text())
        (model / change).write_text(json.dumps(config | {"rms_norm_eps": 1e-3}))
    elif change == "model.safetensors":
        write_checkpoint(model, tiny_spec("ldpnetv2"), seed=5)
    elif change == "1.png":
        picture(9).save(data / change)
    else:
        (data / change).write_text((data / change).read_text().replace("polite", "short"))
    with pytest.raises(UsageError, match="another model or other data"):
        Trainer(chosen).resume(state_path(chosen.output))


def test_features_that_are_kept_change_nothing(tiny_folder: Path, captions: Path, tmp_path: Path) -> None:
    from training import Trainer

    kept = settings(tiny_folder, captions, tmp_path, features=tmp_path / "features")
    losses = [Trainer(one).advance() for one in (settings(tiny_folder, captions, tmp_path), kept, kept)]
    assert losses[0] == losses[1] == losses[2]
    assert len(list((tmp_path / "features").rglob("*.npy"))) == 2


def test_bfloat16_is_near_float32(tiny_folder: Path, captions: Path, tmp_path: Path) -> None:
    from training import Trainer

    full, half = (Trainer(settings(tiny_folder, captions, tmp_path, mixed=kind)) for kind in (None, "bf16"))
    expected, found = full.advance()["answers"], half.advance()["answers"]
    assert found != expected
    assert found == pytest.approx(expected, rel=0.02)
    assert {parameter.dtype for parameter in half.vlm.parameters()} == {torch.float32}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"prune": 1.5}, "no share"),
        ({"prune_heads": 0.25}, "use one of 0.5, 0.75"),
        ({"prune_channels": 0.99}, "leaves no channel"),
        ({"stage": "projector", "tie": True}, "leaves the language model"),
        ({"qat": Path("bundle"), "tie": True}, "must keep its shape"),
        ({"qat": Path("nowhere")}, "is not a bundle"),
        ({"batch": 0}, "--batch is 0"),
        ({"data": "scenes:many"}, "no number of scenes"),
    ],
)
def test_what_cannot_be_is_refused(options: dict[str, Any], message: str, tiny_folder: Path, tmp_path: Path) -> None:
    data = options.pop("data", "scenes:4")
    with pytest.raises(UsageError, match=message):
        trained(settings(tiny_folder, data, tmp_path, **options))
    assert not (tmp_path / "out").exists()


def test_heads_of_gpt2_stay(tmp_path: Path) -> None:
    create(Design("clip:tiny", "linear", "gpt2:tiny"), tmp_path / "model")
    with pytest.raises(Unsupported, match="heads and channels of a gpt2"):
        trained(settings(tmp_path / "model", "scenes:4", tmp_path, prune_heads=0.5))


@pytest.mark.slow
def test_the_command_trains(tiny_folder: Path, tmp_path: Path) -> None:
    command = [sys.executable, str(FINETUNE / "train.py"), str(tiny_folder), "-o", str(tmp_path / "out")]
    options = ["--data", "scenes:2", "--steps", "1", "--batch", "1", "--threads", "1"]
    done = subprocess.run([*command, *options], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == str(tmp_path / "out")
    assert re.search(r"answers \d+\.\d", done.stderr)


@pytest.mark.parametrize("there", [False, True])
def test_the_command_says_what_is_wrong_in_one_line(
    there: bool, tiny_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    data, message = ("scenes:2", "exists already") if there else (str(tmp_path / "nothing.json"), "error: data ")
    if there:
        (tmp_path / "out").mkdir()
    monkeypatch.setattr("sys.argv", ["train.py", str(tiny_folder), "-o", str(tmp_path / "out"), "--data", data])
    with pytest.raises(SystemExit) as ended:
        runpy.run_path(str(FINETUNE / "train.py"), run_name="__main__")
    said = capsys.readouterr()
    assert (ended.value.code, said.out, said.err.count("\n")) == (2, "", 1)
    assert message in said.err
