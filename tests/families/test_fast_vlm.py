"""FastVLM in both layouts against transformers' own class and processor, on weights that it saved."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from transformers import FastVlmConfig, FastVlmForConditionalGeneration, LlavaProcessor
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

pytest.importorskip("timm", reason="timm is not installed")

from tests.fast_vlm import PREFIX, SIDE, apples_names, noise, padded, write_apple, write_transformers
from tests.fast_vlm import fast_vlm as fast_vlm_model
from tests.onnx_bundles import picture
from tests.prompts import as_inputs, texts, with_image
from tests.vocabularies import byte_level
from vlmexport.checkpoint.spec import Spec
from vlmexport.design import Design, create
from vlmexport.errors import CheckpointError, Unsupported
from vlmexport.families import fast_vlm, llava_qwen2
from vlmexport.families.reading.published import Published
from vlmexport.model import VLM, load
from vlmexport.model.plugins import check_parts
from vlmexport.processing.messages import Message, Picture, asked
from vlmexport.processing.prompt import Views
from vlmexport.source.checkpoint import open_checkpoint


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, FastVlmForConditionalGeneration, LlavaProcessor]:
    """A folder with transformers' layout in ``hf`` and Apple's in ``apple``; the model and the processor."""
    root = tmp_path_factory.mktemp("fast_vlm")
    model, processor = write_transformers(root / "hf")
    write_apple(root / "apple", root / "hf")
    return root, model, processor


Saved = tuple[Path, FastVlmForConditionalGeneration, LlavaProcessor]


def test_both_layouts_are_one_model(saved: Saved) -> None:
    root, _, _ = saved
    theirs, apples = open_checkpoint(root / "hf"), open_checkpoint(root / "apple")
    for checkpoint in (theirs, apples):
        check_parts(checkpoint)
    assert (theirs.spec.layout, apples.spec.layout) == ("fast-vlm", "llava-qwen2")
    assert (theirs.spec.image_processor.do_pad, apples.spec.image_processor.do_pad) == (False, True)
    assert theirs.spec.image_processor.with_padding(True) == apples.spec.image_processor
    assert theirs.spec.vision == apples.spec.vision
    assert (theirs.spec.projector, theirs.spec.language) == (apples.spec.projector, apples.spec.language)
    assert theirs.spec.image_processor.mean == (0.0, 0.0, 0.0)
    assert theirs.spec.image_processor.std == (1.0, 1.0, 1.0)
    assert (theirs.spec.image_token_id, apples.spec.image_token_id) == (383, None)
    for part in ("vision", "projector", "language"):
        assert set(theirs.tensors[part]) == set(apples.tensors[part])


@torch.inference_mode()
@pytest.mark.parametrize("layout", ["hf", "apple"])
def test_features_tokens_and_logits_are_those_of_transformers(layout: str, saved: Saved) -> None:
    root, model, _ = saved
    vlm, pixels = load(open_checkpoint(root / layout)), noise(SIDE, 2)
    expected = model.model.get_image_features(pixels, return_dict=True)
    features = vlm.features(pixels)
    torch.testing.assert_close(features, expected.last_hidden_state.flatten(2).transpose(1, 2), atol=1e-5, rtol=1e-5)
    tokens = vlm.tokens(features)
    torch.testing.assert_close(tokens, expected.pooler_output, atol=1e-5, rtol=1e-5)
    ids = [5, 6, *[383] * 16, 7, 8, 9]
    found = vlm.logits(as_inputs(torch.cat([vlm.embed(ids[:2]), tokens[:1], vlm.embed(ids[18:])], 1)), 0)
    want = model(input_ids=torch.tensor([ids]), pixel_values=pixels[:1]).logits
    assert found.shape == want.shape
    assert (found - want).norm() < 1e-5 * want.norm()


@torch.inference_mode()
def test_a_head_of_its_own_counts_though_the_config_says_tied(saved: Saved, tmp_path: Path) -> None:
    """transformers does not tie what differs in the file."""
    folder = tmp_path / "tied"
    write_transformers(folder, tie_word_embeddings=True)
    state = load_file(folder / "model.safetensors")
    table = state["model.language_model.embed_tokens.weight"]
    state["lm_head.weight"] = torch.randn(table.shape, generator=torch.Generator().manual_seed(1)).to(table.dtype)
    save_file(state, folder / "model.safetensors", metadata={"format": "pt"})
    theirs = FastVlmForConditionalGeneration.from_pretrained(folder, dtype=torch.float32).eval()
    ours, ids = load(open_checkpoint(folder)), [5, 6, 7, 8, 9]
    want = theirs(input_ids=torch.tensor([ids])).logits
    assert (ours.logits(as_inputs(ours.embed(ids)), 0) - want).norm() < 1e-5 * want.norm()


@pytest.mark.parametrize("name", ["CLIPImageProcessorFast", "CLIPFeatureExtractor"])
def test_other_names_of_the_image_processor_mean_it(name: str, saved: Saved, tmp_path: Path) -> None:
    folder = shutil.copytree(saved[0] / "hf", tmp_path / "hf")
    file = folder / "processor_config.json"
    document = json.loads(file.read_text())
    document["image_processor"]["image_processor_type"] = name
    file.write_text(json.dumps(document))
    assert open_checkpoint(folder).spec.image_processor == open_checkpoint(saved[0] / "hf").spec.image_processor


@pytest.mark.parametrize("prefix", ["model.vision_tower.", "model.vision_tower.timm_model."])
def test_every_spelling_of_transformers_is_placed(prefix: str) -> None:
    """Old names and new ones, the tower with and without timm's level."""
    assert fast_vlm.place(f"{prefix}stem.0.reparam_conv.weight") == ("vision", "stem.0.reparam_conv.weight")
    assert fast_vlm.place("model.multi_modal_projector.linear_2.bias") == ("projector", "2.bias")
    for name in ("model.language_model.norm.weight", "language_model.model.norm.weight"):
        assert fast_vlm.place(name) == ("language", "model.norm.weight")
    for name in ("lm_head.weight", "language_model.lm_head.weight"):
        assert fast_vlm.place(name) == ("language", "lm_head.weight")


def test_apples_head_is_not_used() -> None:
    assert llava_qwen2.place("model.vision_tower.vision_tower.model.head.proj") is None
    assert llava_qwen2.place("model.mm_projector.2.weight") == ("projector", "2.weight")
    assert llava_qwen2.place("model.norm.weight") == ("language", "model.norm.weight")


Change = Callable[[dict[str, Any]], None]
REFUSED: dict[str, tuple[str, Change, str]] = {
    "other-tower": (
        "apple", lambda config: config.update(mm_vision_tower="google/siglip-so400m-patch14-384"),
        "a llava_qwen2 with the vision tower 'google/siglip-so400m-patch14-384' is not known",
    ),
    "no-tower": ("apple", lambda config: config.pop("mm_vision_tower"), "the vision tower 'None' is not known"),
    "tiles": ("apple", lambda config: config.update(image_aspect_ratio="anyres"), "image_aspect_ratio 'anyres'"),
    "merge": ("apple", lambda config: config.update(mm_patch_merge_type="spatial"), "merge_type 'spatial'"),
    "marks": ("apple", lambda config: config.update(mm_use_im_start_end=True), "mm_use_im_start_end is true"),
    "width": ("apple", lambda config: config.update(mm_hidden_size=3072), "3072 wide, the tensors say 128"),
    "side": ("apple", lambda config: config.update(mm_vision_tower="mobileclip_l_1000"), "1000 pixels do not divide"),
    "sliding": ("apple", lambda config: config.update(use_sliding_window=True), "a sliding window is not known"),
    "architecture": (
        "hf", lambda config: config["vision_config"].update(architecture="vit_base_patch16_224"),
        "a 'timm_wrapper' tower, 'vit_base_patch16_224', is not known",
    ),
    "training": ("hf", lambda config: config["vision_config"].update(model_args={}), "branches that training alone"),
    "argument": (
        "hf", lambda config: config["vision_config"]["model_args"].update(act_layer="relu"),
        'model_args: act_layer is "relu", which is not known',
    ),
    "decoder": ("hf", lambda config: config["text_config"].update(model_type="llama"), "a 'llama' language model"),
    "projector": ("hf", lambda config: config.update(projector_hidden_act="relu"), 'projector_hidden_act is "relu"'),
    "bias": ("hf", lambda config: config.update(multimodal_projector_bias=False), "projector_bias is false"),
}  # fmt: skip


@pytest.mark.parametrize("name", sorted(REFUSED))
def test_what_is_not_known_is_refused_by_name(name: str, saved: Saved, tmp_path: Path) -> None:
    layout, change, message = REFUSED[name]
    folder = saved[0] / layout
    for file in folder.iterdir():
        (tmp_path / file.name).symlink_to(file)
    config = json.loads((folder / "config.json").read_text())
    change(config)
    (tmp_path / "config.json").unlink()
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises((Unsupported, CheckpointError), match=message) as caught:
        open_checkpoint(tmp_path)
    assert "\n" not in str(caught.value)
    assert caught.value.cure


@pytest.mark.parametrize("layout", ["hf", "apple"])
def test_branches_that_are_not_merged_are_named(layout: str, saved: Saved, tmp_path: Path) -> None:
    """Whatever the config says: nobody's code reads such tensors into the form that it names."""
    folder = shutil.copytree(saved[0] / layout, tmp_path / layout)
    state = load_file(folder / "model.safetensors")
    prefix = {"hf": PREFIX, "apple": "model.vision_tower.vision_tower.model."}[layout]
    for apple, timm in apples_names(merged=False).items():
        state.setdefault(prefix + {"hf": timm, "apple": apple}[layout], torch.zeros(1))
    save_file(state, folder / "model.safetensors")
    with pytest.raises(Unsupported, match=r"branches that training alone has is not known: .*reparameterize_model"):
        open_checkpoint(folder)


@torch.inference_mode()
def test_the_cure_for_branches_gives_what_is_read(saved: Saved) -> None:
    """timm merges them to the tensors of the published form, and features stay what they were."""
    from timm.utils import reparameterize_model

    branched = fast_vlm_model(inference_mode=False).model.vision_tower.timm_model
    merged = reparameterize_model(branched)
    assert set(merged.state_dict()) == set(saved[1].model.vision_tower.timm_model.state_dict())
    pixels = noise(SIDE)
    torch.testing.assert_close(merged.forward_features(pixels), branched.forward_features(pixels), atol=1e-4, rtol=1e-4)


def test_old_names_are_read(saved: Saved, tmp_path: Path) -> None:
    """``language_model.model.…`` beside ``vision_tower.…``, as transformers wrote LLaVA before 4.52."""
    for file in (saved[0] / "hf").iterdir():
        if file.suffix != ".safetensors":
            (tmp_path / file.name).symlink_to(file)
    renamed = {}
    for name, value in load_file(saved[0] / "hf" / "model.safetensors").items():
        inner = name.removeprefix("model.")
        inner = inner.replace("language_model.", "language_model.model.")
        renamed[inner if inner != "lm_head.weight" else "language_model.lm_head.weight"] = value
    save_file(renamed, tmp_path / "model.safetensors")
    ours, theirs = open_checkpoint(tmp_path), open_checkpoint(saved[0] / "hf")
    assert {part: sorted(found) for part, found in ours.tensors.items()} == {
        part: sorted(found) for part, found in theirs.tensors.items()
    }


SIZES = {
    "0.5b": {"hidden_size": 896, "intermediate_size": 4864, "num_hidden_layers": 24, "num_attention_heads": 14,
             "num_key_value_heads": 2, "vocab_size": 151936},
    "1.5b": {"hidden_size": 1536, "intermediate_size": 8960, "num_hidden_layers": 28, "num_attention_heads": 12,
             "num_key_value_heads": 2, "vocab_size": 151936},
    "7b": {"hidden_size": 3584, "intermediate_size": 18944, "num_hidden_layers": 28, "num_attention_heads": 28,
           "num_key_value_heads": 4, "vocab_size": 152064},
}  # fmt: skip
"""Qwen2's sizes, as arXiv:2407.10671 has them."""


def full_size(text: dict[str, Any], folder: Path) -> tuple[Spec, FastVlmForConditionalGeneration]:
    """Our Spec of a sparse config as it is published, and transformers' model of it, both without weights."""
    vision = {"model_type": "timm_wrapper", "architecture": "fastvit_mci3", "model_args": {"inference_mode": True}}
    config = {
        "model_type": "fast_vlm", "text_config": {"model_type": "qwen2", "eos_token_id": 151645, **text},
        "vision_config": vision | {"hidden_size": 3072},
    }  # fmt: skip
    with torch.device("meta"):
        model = FastVlmForConditionalGeneration(
            FastVlmConfig(**{key: value for key, value in config.items() if key != "model_type"})
        )
    shapes: dict[str, dict[str, tuple[int, ...]]] = {"vision": {}, "projector": {}, "language": {}}
    for name, value in model.state_dict().items():
        placed = fast_vlm.place(name)
        assert placed is not None
        shapes[placed[0]][placed[1]] = tuple(value.shape)
    return fast_vlm.spec(Published(folder, "full", config, shapes)), model


@pytest.mark.parametrize(
    ("name", "millions", "published"), [("0.5b", 758.8, "0.8B"), ("1.5b", 1909.2, "2B"), ("7b", 7764.6, "8B")]
)
def test_full_size(name: str, millions: float, published: str, tmp_path: Path) -> None:
    """Every shape and the number of parameters are those of transformers' class of that size; with the tower's head
    [3072, 768], which Apple's files carry and nothing uses, there are as many as the Hub shows of Apple's models."""
    spec, model = full_size(SIZES[name], tmp_path)
    assert (spec.vision.variant, spec.vision.image_size, spec.vision.num_patches) == ("mci3", 1024, 256)
    vlm = VLM(spec)
    theirs = {}
    for key, value in model.state_dict().items():
        part, canonical = fast_vlm.place(key) or ("", "")
        if not canonical.endswith("num_batches_tracked"):
            theirs[f"{part}.{canonical}"] = tuple(value.shape)
    assert {key: tuple(value.shape) for key, value in vlm.state_dict().items()} == theirs
    count = sum(value.numel() for value in vlm.parameters())
    assert count == sum(value.numel() for value in model.parameters())
    count += 3072 * 768
    assert count / 1e6 == pytest.approx(millions, abs=0.05)
    assert f"{count / 1e9:.1g}B" == published


PICTURES = ((300, 220), (220, 300), (256, 256), (1000, 90), (40, 31))


@pytest.mark.parametrize("size", PICTURES)
def test_the_middle_is_cut_out_in_transformers_layout(size: tuple[int, int], saved: Saved) -> None:
    """What the saved processor makes, by Pillow; torchvision rounds resized pixels otherwise, by one level."""
    root, _, _ = saved
    theirs = CLIPImageProcessorPil(**json.loads((root / "hf" / "processor_config.json").read_text())["image_processor"])
    image = picture(3, size)
    expected = theirs(image, return_tensors="np")["pixel_values"]
    found = load(open_checkpoint(root / "hf"), components=()).pixels(image)
    np.testing.assert_allclose(found.numpy(), expected, atol=1e-6)


@pytest.mark.parametrize("size", PICTURES)
def test_black_is_padded_in_apples(size: tuple[int, int], saved: Saved) -> None:
    """Apple's code pads with the mean colour, which is 0, and resizes with Pillow."""
    root, _, _ = saved
    image = picture(3, size)
    square = padded(image).resize((SIDE, SIDE), Image.Resampling.BICUBIC)
    expected = np.asarray(square, np.float32).transpose(2, 0, 1)[None] / 255
    found = load(open_checkpoint(root / "apple"), components=()).pixels(image)
    np.testing.assert_allclose(found.numpy(), expected, atol=1e-6)


def test_the_same_weights_see_different_pixels(saved: Saved) -> None:
    """Of a picture that is no square: each layout by its own file."""
    images = [
        load(open_checkpoint(saved[0] / name), components=()).pixels(picture(3)).numpy() for name in ("hf", "apple")
    ]
    assert np.abs(images[0] - images[1]).mean() > 0.05


QUESTIONS = ("what is the chat ?", "  two\n\nlines <|im_end|> 漢字 1234 🙂", "don't", "\nnew line first")


def system_prompt(question: str) -> str:
    """The prompt that Apple's code makes (its template ``qwen_2``)."""
    return (
        "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n<|im_start|>user\n<image>\n"
        f"{question}<|im_end|>\n<|im_start|>assistant\n"
    )


@pytest.mark.parametrize("question", QUESTIONS)
def test_prompt_ids_are_those_of_the_processor(question: str, saved: Saved) -> None:
    """Special tokens in a question are plain text with us, and tokens to transformers: left out here."""
    root, _, processor = saved
    plain = question.replace("<|im_end|>", "end")
    content = [{"type": "text", "text": plain}, {"type": "image", "image": picture(3)}]
    expected = processor.apply_chat_template(
        [{"role": "user", "content": content}], add_generation_prompt=True, tokenize=True, return_dict=True
    )["input_ids"][0]
    prompt = open_checkpoint(root / "hf").prompts.prompt(asked(plain), [Views(((4, 4),))])
    assert with_image(prompt, *[383] * 16) == [int(i) for i in expected]
    assert prompt.text == system_prompt(plain)


def test_a_conversation_about_three_pictures_is_that_of_the_processor(saved: Saved) -> None:
    """Two pictures in the first turn and one in the second, each with its sixteen tokens."""
    root, _, processor = saved
    images = [{"type": "image", "image": picture(seed)} for seed in range(3)]
    turns: list[tuple[str, list[dict[str, Any]], str]] = [
        ("user", images[:2], "what is the chat ?"), ("assistant", [], "curious"), ("user", images[2:], "don't 12"),
    ]  # fmt: skip
    expected = processor.apply_chat_template(
        [{"role": role, "content": [*shown, {"type": "text", "text": text}]} for role, shown, text in turns],
        add_generation_prompt=True, tokenize=True, return_dict=True,
    )["input_ids"][0]  # fmt: skip
    messages = [Message(role, (*[Picture.NEXT] * len(shown), text)) for role, shown, text in turns]
    prompt = open_checkpoint(root / "hf").prompts.prompt(messages, [Views(((4, 4),))] * 3)
    assert with_image(prompt, *[383] * 16) == [int(i) for i in expected]
    assert [span.image for span in prompt.spans] == [0, 1, 2]


@pytest.mark.parametrize("question", QUESTIONS)
def test_prompt_ids_are_those_of_chunks_in_apples_layout(question: str, saved: Saved) -> None:
    """``tokenizer_image_token``: each text around the image is tokenized by itself, and no BOS is put before."""
    tokenizer = byte_level()
    before, after = system_prompt(question.replace("<|im_end|>", "end")).split("<image>")
    prompt = open_checkpoint(saved[0] / "apple").prompts.prompt(
        asked(question.replace("<|im_end|>", "end")), [Views(((4, 4),))]
    )
    assert list(texts(prompt)) == [tuple(tokenizer.encode(text).ids) for text in (before, after)]


@pytest.mark.parametrize("layout", ["hf", "apple"])
def test_a_design_takes_the_template_with_the_language_model(layout: str, saved: Saved, tmp_path: Path) -> None:
    """Prompts of ``vlmexport new --from`` are those of the origin, with no token before the first."""
    create(Design(projector="pool_avg", origin=str(saved[0] / layout)), tmp_path / "design")
    source, made = open_checkpoint(saved[0] / layout), open_checkpoint(tmp_path / "design")
    assert made.spec.chat_template == source.spec.chat_template
    assert (made.spec.bos_token_id, made.spec.stop_token_ids) == (None, source.spec.stop_token_ids)
    assert made.spec.image_processor == source.spec.image_processor
    for question in QUESTIONS:
        prompts = [one.prompts.prompt(asked(question), [Views(((4, 4),))]) for one in (source, made)]
        assert prompts[0] == prompts[1]
    create(Design(language="llama:tiny", projector="linear", origin=str(saved[0] / layout)), tmp_path / "other")
    assert open_checkpoint(tmp_path / "other").spec.chat_template == ""


def test_a_template_that_is_no_text_is_refused(saved: Saved, tmp_path: Path) -> None:
    create(Design(projector="pool_avg", origin=str(saved[0] / "hf")), tmp_path / "design")
    config = json.loads((tmp_path / "design" / "config.json").read_text())
    (tmp_path / "design" / "config.json").write_text(json.dumps(config | {"chat_template": 3}))
    with pytest.raises(CheckpointError, match="chat_template is no text"):
        open_checkpoint(tmp_path / "design")


def test_a_question_ends_no_turn(saved: Saved) -> None:
    """What a user writes is text, whatever it looks like."""
    for layout in ("hf", "apple"):
        checkpoint = open_checkpoint(saved[0] / layout)
        (end,) = {checkpoint.tokenizer.added["<|im_end|>"]}
        ids = checkpoint.prompts.prompt(asked("a <|im_end|> b"), [Views(((4, 4),))]).ids
        assert ids.count(end) == 2
        assert checkpoint.prompts.end_of_turn == end


def test_every_stop_token_is_read(saved: Saved) -> None:
    root, _, _ = saved
    theirs, apples = open_checkpoint(root / "hf").spec, open_checkpoint(root / "apple").spec
    assert (theirs.stop_token_ids, theirs.eos_token_id, theirs.bos_token_id) == ((382, 380), 382, None)
    assert apples.stop_token_ids == (382,)


@torch.inference_mode()
@pytest.mark.parametrize("layout", ["hf", "apple"])
def test_greedy_ids_are_those_of_transformers(layout: str, saved: Saved) -> None:
    root, model, _ = saved
    checkpoint = open_checkpoint(root / layout)
    vlm = load(checkpoint)
    pixels = vlm.pixels(picture(3))
    tokens = vlm.tokens(vlm.features(pixels))
    prompt = checkpoint.prompts.prompt(asked(QUESTIONS[0]), [Views(((4, 4),))])
    ids = torch.tensor([with_image(prompt, *[383] * 16)])
    expected = model.generate(
        input_ids=ids, attention_mask=torch.ones_like(ids), pixel_values=pixels, max_new_tokens=12, do_sample=False
    )[0, ids.shape[1] :].tolist()
    found = [token for token, _ in vlm.generate(vlm.inputs(prompt, tokens), 12)]
    assert found == expected
    want = model(input_ids=ids, pixel_values=pixels).logits
    logits = vlm.logits(vlm.inputs(prompt, tokens), 0)
    assert (logits - want).norm() < 1e-5 * want.norm()
