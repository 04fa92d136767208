"""Several images, views and turns: transformers, the float model, ONNX Runtime and llama.cpp."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
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
from vlmexport import processing
from vlmexport.artifact.bundle.manifest import read_manifest
from vlmexport.artifact.bundle.source import ImageProcessor
from vlmexport.calibrate import Sample, collect
from vlmexport.calibrate.samples import Shown
from vlmexport.model import load
from vlmexport.parity.compare.over_samples import Comparison
from vlmexport.parity.reference.values import Live
from vlmexport.pipeline import export_checkpoint
from vlmexport.processing import image as image_module
from vlmexport.processing.image import PIXELS
from vlmexport.processing.messages import Message, Picture
from vlmexport.processing.prompt import Views
from vlmexport.runtime.joined import Joined
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

FOUR_VIEWS = '''
"""The left half of a picture, its right half, all of it, and its middle."""
import numpy as np
from vlmexport.processing import square

def boxes(size, spec):
    width, height = size
    middle = (width / 4, height / 4, 3 * width / 4, 3 * height / 4)
    return (0, 0, width / 2, height), (width / 2, 0, width, height), (0, 0, width, height), middle

def tiles(size, spec):
    return 0, 0

def arrays(image, spec):
    views = [image.crop([round(place) for place in box]) for box in boxes(image.size, spec)]
    return {"pixel_values": np.concatenate([square.arrays(view, spec)["pixel_values"] for view in views])}
'''

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
def bundle(
    request: pytest.FixtureRequest, checkpoint: Checkpoint, tmp_path_factory: pytest.TempPathFactory
) -> Path | None:
    """None is the float model."""
    if request.param == "float":
        return None
    bundle = tmp_path_factory.mktemp("bundle") / request.param
    if request.param == "gguf":
        export_gguf(checkpoint, bundle, type="f32", mmproj_type="f32")
    else:
        export_checkpoint(checkpoint, recipe("fp32"), bundle)
    return bundle


@pytest.fixture(scope="module")
def runtime(bundle: Path | None, checkpoint: Checkpoint) -> Iterator[Runtime]:
    with closing(open_runtime(bundle) if bundle else ReferenceRuntime(checkpoint)) as opened:
        yield opened


@pytest.fixture(scope="module")
def cut(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Checkpoint]:
    """The model with pictures that are cut into four views, by a file that is in ``processing`` for the time."""
    files = tmp_path_factory.mktemp("processing")
    (files / "anyres.py").write_text(FOUR_VIEWS, encoding="utf-8")
    found = open_checkpoint(folder)
    found.spec = replace(found.spec, image_processor=replace(found.spec.image_processor, mode="anyres"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(processing, "__path__", [*processing.__path__, str(files)])
        patch.setattr(image_module, "VIEWS_AT_ONCE", 3)
        yield found


@pytest.fixture(scope="module")
def cutting(bundle: Path | None, cut: Checkpoint) -> Iterator[Runtime]:
    """The same halves. libmtmd makes pixels of its own: what it decodes is seen by the float model."""
    reference = ReferenceRuntime(cut)
    if bundle is None:
        yield reference
        return
    manifest = read_manifest(bundle)
    spec = manifest.source.spec.model_copy(update={"image_processor": ImageProcessor.of(cut.spec.image_processor)})
    manifest = manifest.model_copy(update={"source": manifest.source.model_copy(update={"spec": spec})})
    with closing(open_runtime(bundle, manifest)) as opened:
        assert isinstance(opened, Joined)
        yield Joined(reference, opened.decoding) if manifest.kind == "gguf" else opened


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


def test_several_views_are_transformers(cutting: Runtime, folder: Path) -> None:
    """Their model takes each view as an image of its own: the same visual tokens in the same places. A run of four is
    longer than a batch of llama.cpp."""
    theirs = LlavaForConditionalGeneration.from_pretrained(folder, dtype=torch.float32).eval()
    pictures = [picture(seed, size) for seed, size in ((1, (336, 168)), (2, (200, 500)))]
    seen = [see(cutting, one) for one in pictures]
    assert [one.views for one in seen] == [Views(((12, 12),) * 4)] * 2
    prompt, tokens = cutting.prompt(CONVERSATION, [one.views for one in seen]), [one.tokens for one in seen]
    given = {
        "input_ids": torch.tensor([with_image(prompt, *[IMAGE] * 144)]),
        "pixel_values": torch.from_numpy(np.concatenate([cutting.pixels(one).pixel_values for one in pictures])),
    }
    with torch.inference_mode():
        expected = theirs(**given).logits.numpy()
        mask = torch.ones_like(given["input_ids"])
        greedy = theirs.generate(**given, attention_mask=mask, max_new_tokens=8, do_sample=False)[0, mask.shape[1] :]
    np.testing.assert_allclose(cutting.logits(prompt, tokens, 0), expected, atol=1e-3)
    assert [token.id for token in cutting.generate(prompt, tokens, 8)] == greedy.tolist()
    swapped = [np.concatenate([rows[144:288], rows[:144], rows[288:]]) for rows in tokens]
    assert np.abs(cutting.logits(prompt, swapped, 0) - expected).max() > 0.05, "the order of the views counts"


def test_views_are_computed_a_few_at_a_time(cut: Checkpoint) -> None:
    parts = [*ReferenceRuntime(cut).pixels(picture(0)).slices()]
    assert [part[PIXELS].shape for part in parts] == [(3, 3, 168, 168), (1, 3, 168, 168)]


def test_a_check_compares_views(cutting: Runtime, cut: Checkpoint) -> None:
    comparison = Comparison(Live(ReferenceRuntime(cut)), cutting)
    comparison.run([shown(0)])
    assert not comparison.measured.errors
    (answer,) = comparison.measured.answers["chained"]
    assert answer.equal
    rows = comparison.measured.images["one"]
    assert {stage: [len(view) for view in views] for stage, views in rows.cosines.items()} == dict.fromkeys(
        ("features", "tokens"), [144] * 4
    )
    assert rows.grids == ((12, 12),) * 4
    assert comparison.measured.arrays["tokens", "chained"].metrics()["nmse"] < 1e-6


def test_calibration_sees_all_views(cut: Checkpoint) -> None:
    found = collect(load(cut), cut.prompts, [shown(0)]).layers
    assert found["language.model.layers.0.self_attn.q_proj"].count_image == 8 * 144
    assert found["projector.0"].count_image == 8 * 144


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
