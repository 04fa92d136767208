"""nanoVLM's own layout, every generation of it, against transformers' SigLIP, Llama and tokenizer, and torchvision."""

from __future__ import annotations

import json
import shutil
from contextlib import closing
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import torch
from transformers import AutoConfig
from transformers.models.llava.image_processing_pil_llava import LlavaImageProcessorPil

from tests.hub import COMMIT, Hub, Repository
from tests.nano_vlm import GENERATIONS, NanoVlm, modules, state, write
from tests.onnx_bundles import picture
from tests.smolvlm import real_tokens
from tests.vocabularies import write_byte_level
from vlmexport import families
from vlmexport.artifact.onnx.documents import documents
from vlmexport.checkpoint.tensors import LazyTensor
from vlmexport.errors import CheckpointError, Unsupported
from vlmexport.families import Family, nanovlm
from vlmexport.families.reading.published import Published
from vlmexport.model import VLM, load
from vlmexport.model.plugins import check_parts, token_grid
from vlmexport.pipeline import export
from vlmexport.processing.image import process
from vlmexport.processing.image_processor import read_told
from vlmexport.processing.messages import Message, Picture
from vlmexport.processing.prompt import PLACEHOLDER, Prompt
from vlmexport.recipe import Onnx, resolve
from vlmexport.runtime.open import open_runtime
from vlmexport.source.checkpoint import open_checkpoint

CLOSE = 1e-5
SIZES = ((300, 220), (64, 64), (20, 90), (200, 64), (1, 400), (256, 256), (65, 64))
LOOK = Message("user", (Picture.NEXT, "What is in it?"))
SEVERAL = (
    Message("user", ("Look:", Picture.NEXT, Picture.NEXT, " which one?\n")),
    Message("assistant", ("A chat, 12 of 34.",)),
    Message("user", ("  Sure? 漢字",)),
)
Saved = dict[str, tuple[Path, NanoVlm]]


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Saved:
    root = tmp_path_factory.mktemp("nanovlm")
    return {name: (root / name, write(root / name, name)) for name in GENERATIONS}


def with_image_token(model: NanoVlm, prompt: Prompt) -> list[int]:
    return [model.image_token if i == PLACEHOLDER else i for i in prompt.ids]


def same(found: torch.Tensor, expected: torch.Tensor) -> None:
    assert found.shape == expected.shape
    assert (found - expected).norm() <= CLOSE * expected.norm()


@torch.inference_mode()
def check_stages(path: Path, model: NanoVlm, messages: tuple[Message, ...], sizes: tuple[tuple[int, int], ...]) -> None:
    checkpoint = open_checkpoint(path)
    ours = load(checkpoint)
    images = [picture(number, size) for number, size in enumerate(sizes)]
    seen, theirs = [ours.see(image) for image in images], [model.pixels(image) for image in images]
    for image, (pixels, _) in zip(images, theirs, strict=True):
        assert (ours.pixels(image) - pixels).abs().max() <= 1e-6
        same(ours.features(pixels), model.features(pixels))
    visual = torch.cat([model.visual(model.features(pixels)) for pixels, _ in theirs])
    same(torch.cat([one.tokens for one in seen]), visual)
    prompt = checkpoint.prompts.prompt(messages, [one.views for one in seen])
    ids = model.ids(messages, [grid for _, grid in theirs])
    assert with_image_token(model, prompt) == ids
    inputs = ours.inputs(prompt, [one.tokens for one in seen])
    same(ours.logits(inputs, 0), model.logits(ids, visual))
    answer = model.answer(ids, visual, 12)
    assert [token for token, _ in ours.generate(inputs, 12)] == answer


@pytest.mark.parametrize("generation", GENERATIONS)
def test_every_stage(generation: str, saved: Saved) -> None:
    path, model = saved[generation]
    check_stages(path, model, (LOOK,), ((300, 220),))
    check_parts(open_checkpoint(path))


@pytest.mark.parametrize("generation", ["tiles", "whole", "enlarged"])
def test_several_pictures_and_turns(generation: str, saved: Saved) -> None:
    check_stages(*saved[generation], SEVERAL, ((300, 220), (64, 64)))


@pytest.mark.parametrize("generation", GENERATIONS)
def test_pixels_and_ids_of_pictures_of_any_size(generation: str, saved: Saved) -> None:
    path, model = saved[generation]
    checkpoint = open_checkpoint(path)
    spec = checkpoint.spec
    for number, size in enumerate(SIZES):
        image = picture(number, size)
        made = process(image, spec.image_processor, token_grid(spec.projector))
        pixels, grid = model.pixels(image)
        assert np.abs(made.pixel_values - pixels.numpy()).max() <= 1e-6
        prompt = checkpoint.prompts.prompt((LOOK,), [made.views])
        assert with_image_token(model, prompt) == model.ids((LOOK,), [grid])


def test_marks_that_a_user_says_are_text(saved: Saved) -> None:
    path, model = saved["whole"]
    prompts = open_checkpoint(path).prompts
    said = "a <|image|> <row_1_col_1> <|im_end|> b"
    ids = prompts.prompt((Message("user", (said,)),), []).ids
    assert prompts.tokenizer.decode(list(ids)).endswith(f"user\n{said}\nassistant\n")
    assert not {model.words.convert_tokens_to_ids(text) for text in ("<|image|>", "<row_1_col_1>")} & {*ids}


B135 = {"lm_hidden_dim": 576, "lm_inter_dim": 1536, "lm_n_heads": 9, "lm_n_kv_heads": 3, "lm_n_blocks": 30}
B360 = {"lm_hidden_dim": 960, "lm_inter_dim": 2560, "lm_n_heads": 15, "lm_n_kv_heads": 5, "lm_n_blocks": 32}
BASE = {"vit_hidden_dim": 768, "vit_inter_dim": 3072, "vit_patch_size": 16, "vit_n_heads": 12, "vit_n_blocks": 12}
PUBLISHED: dict[str, tuple[str, dict[str, Any], float]] = {
    "nanoVLM-222M": ("v0.1", B135 | {"vit_img_size": 224, "lm_vocab_size": 49152}, 222e6),
    "nanoVLM-450M": ("v0.2", B360 | {"vit_img_size": 256, "lm_vocab_size": 49153, "mp_image_token_length": 64}, 450e6),
    "nanoVLM-230M-8k": ("tiles", B135 | {"vit_img_size": 512, "lm_vocab_size": 49169}, 230e6),
    "nanoVLM-460M-8k": ("whole", B360 | {"vit_img_size": 512, "lm_vocab_size": 49218}, 460e6),
}
"""Generation, sizes of its repository's configs of that time, and the number of parameters that its name says."""


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_sizes(name: str, tmp_path: Path) -> None:
    """Every shape is that of the parts of transformers, and there are about as many parameters as the name says."""
    generation, sizes, count = PUBLISHED[name]
    config = GENERATIONS[generation] | BASE | sizes
    if "max_img_size" in config:
        config |= {"mp_image_token_length": 64, "max_img_size": 4 * config["vit_img_size"]}
    with torch.device("meta"):
        parts = modules(config)
        tensors: families.Sorted = {"vision": {}, "projector": {}, "language": {}}
        for key, value in state(config, *parts).items():
            if found := nanovlm.place(key):
                tensors[found[0]][found[1]] = LazyTensor(key, tuple(value.shape), "f32", tmp_path, 0)
    shapes = {
        part: {key: tensor.shape for key, tensor in held.items()}
        for part, held in families.arranged(cast(Family, nanovlm), tensors).items()
    }
    write_byte_level(tmp_path, "smollm")
    spec = nanovlm.spec(Published(tmp_path, name, config, shapes))
    vlm = VLM(spec)
    ours = {key: tuple(value.shape) for key, value in vlm.state_dict().items()}
    theirs = {f"{part}.{key}": shape for part, held in shapes.items() for key, shape in held.items()}
    assert ours == theirs | {"language.lm_head.weight": theirs["language.model.embed_tokens.weight"]}
    rows, columns = token_grid(spec.projector)
    assert rows * columns == config.get("mp_image_token_length", 49)
    vlm.language.tie_weights()  # type: ignore[operator]
    made = sum(value.numel() for value in vlm.parameters())
    assert made == sum(value.numel() for part in parts for value in part.parameters())
    assert made == pytest.approx(count, rel=0.01)


@pytest.mark.parametrize(
    ("generation", "change", "message"),
    [
        ("v0.1", {"vit_cls_flag": True}, "vit_cls_flag is true, which is not known"),
        ("v0.1", {"lm_attn_scaling": 0.5}, "lm_attn_scaling is 0.5, which is not known"),
        ("v0.1", {"vit_register_tokens": 4}, "vit_register_tokens is 4, which is not known"),
        ("v0.1", {"mp_pixel_shuffle_factor": 9}, "mp_pixel_shuffle_factor is 9, a side has 8 patches"),
        ("v0.1", {"vit_img_size": 128}, "image_size is 128, the tensors say 64"),
        ("v0.2", {"mp_image_token_length": 64}, "mp_image_token_length is 64, a view has 16 visual tokens"),
        ("whole", {"max_img_size": 200}, "max_img_size is 200, squares have 64 pixels"),
        ("whole", {"max_img_size": 320}, "vlm_extra_tokens calls r1c5 None"),
        ("whole", {"lm_n_heads": "four"}, "garbles num_attention_heads"),
        ("whole", {"lm_chat_template": 3}, "lm_chat_template is no text"),
    ],
)
def test_what_is_not_known_is_said(
    generation: str, change: dict[str, Any], message: str, saved: Saved, tmp_path: Path
) -> None:
    folder = shutil.copytree(saved[generation][0], tmp_path / "model")
    (folder / "config.json").write_text(json.dumps(saved[generation][1].config | change))
    with pytest.raises((Unsupported, CheckpointError), match=message) as caught:
        check_parts(open_checkpoint(folder))
    assert "\n" not in str(caught.value)
    assert caught.value.cure


def test_a_head_of_its_own(tmp_path: Path) -> None:
    check_stages(tmp_path, write(tmp_path, "v0.2", lm_tie_weights=False), (LOOK,), ((64, 64),))


def test_the_tokenizer_in_its_own_folder_with_the_tokens_that_were_added(saved: Saved, tmp_path: Path) -> None:
    """As ``model.tokenizer.save_pretrained`` puts it there: no token is added twice."""
    path, model = saved["whole"]
    folder = shutil.copytree(path, tmp_path / "model", ignore=shutil.ignore_patterns("words"))
    model.words.save_pretrained(folder)
    ours, first = (open_checkpoint(one).tokenizer for one in (folder, path))
    assert ours.texts() == first.texts()
    assert ours.special == first.special


def test_the_tokenizer_of_the_hub(hub: Hub, saved: Saved, tmp_path: Path) -> None:
    """Nothing else of that repository is fetched: its weights are none of this model's."""
    path, model = saved["whole"]
    folder = shutil.copytree(path, tmp_path / "model", ignore=shutil.ignore_patterns("words"))
    (folder / "config.json").write_text(json.dumps(model.config | {"lm_tokenizer": "someone/words"}))
    with pytest.raises(CheckpointError, match=r"no tokenizer, which is that of someone/words: .*no such") as caught:
        open_checkpoint(folder)
    assert "copy tokenizer.json and tokenizer_config.json of someone/words into the folder" in caught.value.cure
    there = shutil.copytree(path / "words", tmp_path / "words")
    (there / "model.safetensors").write_bytes(b"x")
    hub.repositories["someone/words"] = Repository({COMMIT: there})
    assert open_checkpoint(folder).tokenizer.texts() == open_checkpoint(path).tokenizer.texts()
    assert set(hub.asked) == {f"someone/words/{name}" for name in ("tokenizer.json", "tokenizer_config.json")}
    hub.broken = 500
    assert open_checkpoint(folder).spec.stop_token_ids == open_checkpoint(path).spec.stop_token_ids


def test_without_a_tokenizer(saved: Saved, tmp_path: Path) -> None:
    folder = shutil.copytree(saved["v0.1"][0], tmp_path / "model", ignore=shutil.ignore_patterns("words"))
    with pytest.raises(CheckpointError, match=r"holds no tokenizer, which is that of words: copy tokenizer\.json"):
        open_checkpoint(folder)


def test_the_real_vocabulary(smollm2_vocabulary: Path, tmp_path: Path) -> None:
    model = write(tmp_path, "whole", real=real_tokens(smollm2_vocabulary))
    checkpoint = open_checkpoint(tmp_path)
    spec = checkpoint.spec
    views = process(picture(0, (300, 220)), spec.image_processor, token_grid(spec.projector)).views
    prompt = checkpoint.prompts.prompt((LOOK,), [views])
    assert with_image_token(model, prompt) == model.ids((LOOK,), [views.tiles])
    assert checkpoint.tokenizer.texts()[49152] == "<image>"


def check_bundle(made_of: Path, model: NanoVlm) -> None:
    """A picture's answer, by nothing but the bundle's files."""
    image = picture(0, (300, 220))
    with closing(open_runtime(made_of)) as runtime, torch.inference_mode():
        made = runtime.pixels(image)
        tokens = runtime.tokens(runtime.features(made))
        prompt = runtime.prompt((LOOK,), [made.views])
        found = [token.id for token in runtime.generate(prompt, [tokens], 8)]
        pixels, grid = model.pixels(image)
        np.testing.assert_allclose(made.pixel_values, pixels.numpy(), atol=1e-6)
        ids, visual = model.ids((LOOK,), [grid]), model.visual(model.features(pixels))
        same(torch.from_numpy(tokens), visual)
        assert with_image_token(model, prompt) == ids
        assert found == model.answer(ids, visual, 8)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["v0.2", "whole"])
def test_a_bundle_answers_as_the_model(name: str, saved: Saved, tmp_path: Path) -> None:
    """No client opens that of a grid, and none sees something else."""
    path, model = saved[name]
    bundle = export(str(path), resolve("onnx-fp32", environ={}), tmp_path / "bundle")
    check_bundle(bundle, model)
    if name == "whole":
        assert {"processor_config.json", "genai_config.json"}.isdisjoint(file.name for file in bundle.iterdir())
        with pytest.raises(ValueError, match="nanovlm"):
            AutoConfig.from_pretrained(bundle)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["v0.1", "whole"])
def test_a_hybrid_answers_as_the_model(name: str, saved: Saved, tmp_path: Path) -> None:
    """Its decoder in llama.cpp, with the tokens that the config adds and the template around the images."""
    path, model = saved[name]
    hybrid = resolve("gguf-f32", {"gguf.vision": "onnx", "onnx.vision": "fp32"}, environ={})
    check_bundle(export(str(path), hybrid, tmp_path / "bundle"), model)


def test_what_clients_are_told_of_one_square(saved: Saved, tmp_path: Path) -> None:
    """A LLaVA's documents, whose image processor in transformers makes the same pixels."""
    path, model = saved["v0.2"]
    checkpoint = open_checkpoint(path)
    for name, text in documents(checkpoint, Onnx(), ()).items():
        (tmp_path / name).write_text(text)
    assert json.loads((tmp_path / "config.json").read_text())["model_type"] == "llava"
    spec = checkpoint.spec.image_processor
    assert read_told(tmp_path, spec) == spec
    image = picture(0, (300, 220))
    told = json.loads((tmp_path / "processor_config.json").read_text())["image_processor"]
    found = LlavaImageProcessorPil(**told)(image, return_tensors="pt")["pixel_values"]
    assert (found - model.pixels(image)[0]).abs().max() <= 1e-6


def test_an_mmproj_cannot_hold_it(saved: Saved, tmp_path: Path) -> None:
    with pytest.raises(Unsupported, match=r"no mmproj holds a pixel shuffle behind such a SigLIP.*--vision onnx"):
        export(str(saved["whole"][0]), resolve("gguf-f16", environ={}), tmp_path / "bundle")
