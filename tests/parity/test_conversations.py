"""Several images and several turns: transformers' processor and model, the float model, ONNX Runtime and llama.cpp."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from tokenizers import normalizers
from transformers import CLIPImageProcessor, LlamaTokenizer, LlavaForConditionalGeneration, LlavaProcessor

from tests.checkpoints import canonical_state, hf_config, hf_new, published, tiny_spec, write_checkpoint, write_json
from tests.command import vlmexport
from tests.gguf_bundles import export as export_gguf
from tests.onnx_bundles import picture, recipe
from tests.prompts import with_image
from vlmexport.calibrate import Sample, collect
from vlmexport.calibrate.samples import Shown
from vlmexport.model import load
from vlmexport.parity.compare.over_samples import Comparison
from vlmexport.parity.reference.values import Live
from vlmexport.pipeline import export_checkpoint
from vlmexport.processing.messages import Message, Picture
from vlmexport.runtime.open import open_runtime
from vlmexport.runtime.reference import ReferenceRuntime
from vlmexport.runtime.stages import Runtime, see
from vlmexport.source.checkpoint import Checkpoint, open_checkpoint

IMAGE = 384
TEMPLATE = (
    "{% for message in messages %}{% if message['role'] != 'system' %}{{ message['role'].upper() + ': ' }}{% endif %}"
    "{% for part in message['content'] | selectattr('type', 'equalto', 'image') %}{{ '<image>\n' }}{% endfor %}"
    "{% for part in message['content'] | selectattr('type', 'equalto', 'text') %}{{ part['text'] + ' ' }}{% endfor %}"
    "{% endfor %}{% if add_generation_prompt %}{{ 'ASSISTANT:' }}{% endif %}"
)
"""LLaVA-1.5's as transformers' checkpoint has it."""

CONVERSATION = (
    Message("user", (Picture.NEXT, "what is the image ?")),
    Message("assistant", ("a chat",)),
    Message("user", (Picture.NEXT, "and curious user ?")),
)


def processor(path: Path) -> LlavaProcessor:
    """With the published tokenizer's rules, by which each text between special tokens begins with a space."""
    tokenizer = LlamaTokenizer.from_pretrained(
        path, extra_special_tokens={"image_token": "<image>"}, add_bos_token=True
    )
    spaces = [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
    tokenizer.backend_tokenizer.normalizer = normalizers.Sequence(spaces)
    tokenizer.backend_tokenizer.pre_tokenizer = None
    images = CLIPImageProcessor(size={"shortest_edge": 168}, crop_size={"height": 168, "width": 168})
    return LlavaProcessor(
        images, tokenizer, patch_size=14, vision_feature_select_strategy="default", chat_template=TEMPLATE,
        num_additional_image_tokens=1,
    )  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny LLaVA-1.5 whose processor transformers saved."""
    path, spec = (
        tmp_path_factory.mktemp("conversations") / "hf",
        tiny_spec("mlp2x_gelu", image_size=168, num_layers=1, vocab_size=448),
    )
    state = published(canonical_state(spec), hf_new)
    write_checkpoint(path, spec, state=state, pieces=384, config=hf_config(spec))
    decoder = {"384": {"content": "<image>", "special": True}, "385": {"content": "<pad>", "special": True}}
    write_json(path / "tokenizer_config.json", {"added_tokens_decoder": decoder, "pad_token": "<pad>"})
    processor(path).save_pretrained(path)
    return path


@pytest.fixture(scope="module")
def checkpoint(folder: Path) -> Checkpoint:
    return open_checkpoint(folder)


@pytest.fixture(scope="module")
def pictures() -> list[Image.Image]:
    """Of the model's size, so that nobody resizes them."""
    return [picture(seed, (168, 168)) for seed in (1, 2)]


@pytest.fixture(scope="module", params=["float", pytest.param("onnx", marks=pytest.mark.slow), "gguf"])
def runtime(
    request: pytest.FixtureRequest, checkpoint: Checkpoint, tmp_path_factory: pytest.TempPathFactory
) -> Iterator:
    if request.param == "float":
        yield ReferenceRuntime(checkpoint)
        return
    bundle = tmp_path_factory.mktemp("bundle") / request.param
    if request.param == "gguf":
        export_gguf(checkpoint, bundle, type="f32", mmproj_type="f32")
    else:
        export_checkpoint(checkpoint, recipe("fp32"), bundle)
    with closing(open_runtime(bundle)) as opened:
        yield opened


def test_the_checkpoints_template_is_taken(checkpoint: Checkpoint) -> None:
    assert checkpoint.spec.chat_template == TEMPLATE
    assert checkpoint.spec.max_images is None


def test_ids_and_logits_are_transformers(runtime: Runtime, folder: Path, pictures: list[Image.Image]) -> None:
    process = processor(folder)
    theirs = LlavaForConditionalGeneration.from_pretrained(folder, dtype=torch.float32).eval()
    documents = [message.document() for message in CONVERSATION]
    text = process.apply_chat_template(documents, add_generation_prompt=True)
    given = process(text=text, images=pictures, return_tensors="pt")
    seen = [see(runtime, one) for one in pictures]
    prompt, tokens = runtime.prompt(CONVERSATION, [one.views for one in seen]), [one.tokens for one in seen]
    assert prompt.text == text
    assert with_image(prompt, *[IMAGE] * 144) == given["input_ids"][0].tolist()
    with torch.inference_mode():
        expected = theirs(**given).logits.numpy()
    np.testing.assert_allclose(runtime.logits(prompt, tokens, 0), expected, atol=5e-3)  # libmtmd makes its own pixels
    swapped = runtime.logits(prompt, tokens[::-1], 0)
    assert np.abs(swapped - expected).max() > 0.05, "the order of the images counts"


def shown(number: int) -> Sample:
    """Two images and two turns."""
    return Sample(
        f"{number}", "one", "and curious user ?", lambda: picture(1, (168, 168)), answer="a chat",
        more=(Shown("two", lambda: picture(2, (168, 168))),), conversation=CONVERSATION,
    )  # fmt: skip


def test_a_check_compares_conversations(runtime: Runtime, checkpoint: Checkpoint) -> None:
    comparison = Comparison(Live(ReferenceRuntime(checkpoint)), runtime)
    comparison.run([shown(0)])
    assert not comparison.measured.errors
    (answer,) = comparison.measured.answers["chained"]
    assert answer.equal
    assert comparison.measured.arrays["tokens", "chained"].metrics()["nmse"] < 1e-6


def test_calibration_sees_both_images(checkpoint: Checkpoint) -> None:
    layer = collect(load(checkpoint), checkpoint.prompts, [shown(0)]).layers["language.model.layers.0.self_attn.q_proj"]
    assert layer.count_image == 288


def test_run_takes_several_images(folder: Path, pictures: list[Image.Image], tiny_folder: Path, tmp_path: Path) -> None:
    paths = [tmp_path / "1.png", tmp_path / "2.png"]
    for path, one in zip(paths, pictures, strict=True):
        one.save(path)
    flags = [flag for path in paths for flag in ("--image", path)]
    done = vlmexport("run", folder, "what is polite ?", *flags, "--max-new-tokens", "3")
    assert (done.returncode, done.stderr) == (0, "")
    refused = vlmexport("run", tiny_folder, "what is polite ?", *flags)
    assert refused.returncode == 2
    assert "the conversation has 2 images, and the model was trained with one image a prompt" in refused.stderr
