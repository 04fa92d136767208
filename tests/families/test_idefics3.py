"""Idefics3 and SmolVLM against transformers' own classes and processors, on weights that they saved."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from math import prod
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.onnx_bundles import picture
from tests.smolvlm import (
    CLASSES,
    CONVERSATIONS,
    FIRST,
    M256,
    M500,
    PICTURES,
    PLACED,
    SMALL,
    TEMPLATE,
    Model,
    Processor,
    asked_of,
    new_model,
    processor,
    tokenizer,
    write_25_patches,
    write_model,
)
from vlmexport import families
from vlmexport.errors import CheckpointError, Unsupported
from vlmexport.families import idefics3, smolvlm
from vlmexport.families.reading.published import Published
from vlmexport.model import VLM, load
from vlmexport.model.plugins import check_parts, token_grid
from vlmexport.model.vision import idefics3 as encoder
from vlmexport.processing.messages import Picture
from vlmexport.processing.prompt import PLACEHOLDER
from vlmexport.report.inspection import inspection, table
from vlmexport.source import shapes as expected_shapes
from vlmexport.source.checkpoint import open_checkpoint

CLOSE = 1e-5
"""The norm of a difference by that of the expected values."""

Saved = dict[str, tuple[Path, Model, Processor]]


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Saved:
    """A folder, the model and the processor of each layout; ``first`` has the tokens of SmolVLM's first 2.2B."""
    root, found = tmp_path_factory.mktemp("tiles"), {}
    for name, marks in (("idefics3", PLACED), ("smolvlm", PLACED), ("first", FIRST)):
        kind = "smolvlm" if name == "smolvlm" else "idefics3"
        found[name] = (root / name, *write_model(root / name, kind, marks))
    return found


def same(found: torch.Tensor, expected: torch.Tensor) -> None:
    assert found.shape == expected.shape
    assert (found - expected).norm() <= CLOSE * expected.norm()


@torch.inference_mode()
def check_stages(path: Path, model: Model, made: Processor, name: str) -> None:
    """All stages of one conversation: pixels, features, tokens, ids of the prompt, logits, greedy ids."""
    messages, ours = CONVERSATIONS[name], load(open_checkpoint(path))
    count = sum(part is Picture.NEXT for message in messages for part in message.content)
    images = [picture(number, size) for number, size in enumerate(PICTURES[:count])]
    given = asked_of(made, messages, images)
    seen = [ours.see(image) for image in images]
    if images:
        pixels = torch.cat([ours.pixels(image) for image in images])
        assert (pixels - given["pixel_values"][0]).abs().max() <= CLOSE
        expected = model.model.get_image_features(
            given["pixel_values"], given["pixel_attention_mask"], return_dict=True
        )
        same(ours.features(pixels), expected.last_hidden_state)
        same(torch.cat([one.tokens for one in seen]), torch.cat(expected.pooler_output))
    prompt = open_checkpoint(path).prompts.prompt(messages, [one.views for one in seen])
    image = model.config.image_token_id
    assert [image if i == PLACEHOLDER else i for i in prompt.ids] == given["input_ids"][0].tolist()
    inputs = ours.inputs(prompt, [one.tokens for one in seen])
    same(ours.logits(inputs, 0), model(**given).logits)
    answer = model.generate(**given, max_new_tokens=12, do_sample=False)[0, len(prompt.ids) :].tolist()
    assert [token for token, _ in ours.generate(inputs, 12)] == answer


@pytest.mark.parametrize(
    ("layout", "name"),
    [
        ("idefics3", "question"), ("idefics3", "turns"), ("smolvlm", "between"), ("smolvlm", "no-image"),
        ("first", "two-images"),
    ],
)  # fmt: skip
def test_every_stage_is_that_of_transformers(layout: str, name: str, saved: Saved) -> None:
    path, model, made = saved[layout]
    check_stages(path, model, made, name)
    check_parts(open_checkpoint(path))


def test_the_spec(saved: Saved) -> None:
    specs = {name: open_checkpoint(path).spec for name, (path, _, _) in saved.items()}
    for name, spec in specs.items():
        assert spec.layout == ("idefics3" if name == "first" else name)
        assert (spec.projector.kind, spec.projector.in_tokens) == ("shuffle4_linear", 64)
        assert (spec.vision.select_layer, spec.vision.used_layers) == (-1, 2)
        assert spec.image_processor.side == spec.vision.image_size == 64
        assert (spec.bos_token_id, spec.max_images) == (None, None)
        tokens = saved[name][2].tokenizer
        assert spec.stop_token_ids == (tokens.eos_token_id,)
        assert spec.image_token_id == tokens.convert_tokens_to_ids("<image>")


def test_inspect_tells_of_views(saved: Saved) -> None:
    facts = inspection(open_checkpoint(saved["smolvlm"][0]))
    assert (facts["visual_tokens"], facts["views"]) == (4, 17)
    shown = " ".join(str(cell) for cell in table(facts).columns[-1].cells)
    assert "64 patches → 4 visual tokens, in each of the 17 views of a square picture" in shown


@pytest.mark.parametrize("splits", [True, False])
def test_pictures_that_are_not_resized(splits: bool, saved: Saved, tmp_path: Path) -> None:
    """Of 300x220 pixels there are 5x4 tiles of 64: as many as it takes."""
    path, model, made = saved["smolvlm"]
    shutil.copytree(path, tmp_path, dirs_exist_ok=True)
    as_it_is = processor("smolvlm", made.tokenizer, do_resize=False, do_image_splitting=splits)
    as_it_is.save_pretrained(tmp_path)
    check_stages(tmp_path, model, as_it_is, "two-images")
    facts = inspection(open_checkpoint(tmp_path))
    assert facts["views"] == (None if splits else 1)
    shown = " ".join(str(cell) for cell in table(facts).columns[-1].cells)
    assert ("4 visual tokens, in each view, as many as a picture takes" in shown) is splits


@pytest.mark.parametrize("kind", ["idefics3", "smolvlm"])
def test_a_fine_tune(kind: str, tmp_path: Path) -> None:
    """bfloat16, an embedding of another size with an added token, and a head that is the embedding."""
    tokens = tokenizer()
    model = new_model(kind, tokens, {"tie_word_embeddings": True}, tie_word_embeddings=True)
    tokens.add_tokens(["<new>"])
    model.resize_token_embeddings(len(tokens))
    made = processor(kind, tokens)
    model.bfloat16().save_pretrained(tmp_path)
    made.save_pretrained(tmp_path)
    opened = open_checkpoint(tmp_path)
    assert "lm_head.weight" not in opened.tensors["language"]
    assert (opened.spec.language.vocab_size, opened.spec.torch_dtype) == (len(tokens), "bfloat16")
    check_stages(tmp_path, CLASSES[kind][1].from_pretrained(tmp_path, dtype=torch.float32).eval(), made, "question")


def test_a_head_of_its_own_counts_though_the_config_says_tied(saved: Saved, tmp_path: Path) -> None:
    folder = shutil.copytree(saved["smolvlm"][0], tmp_path / "tied")
    edit(folder, lambda config: config.update(tie_word_embeddings=True))
    model = CLASSES["smolvlm"][1].from_pretrained(folder, dtype=torch.float32).eval()
    check_stages(folder, model, saved["smolvlm"][2], "no-image")


@torch.inference_mode()
def test_positions_of_a_side_that_fractions_do_not_divide(tmp_path: Path) -> None:
    """25 patches a side: transformers gives two of them one position."""
    model, made = write_25_patches(tmp_path)
    assert len(set(encoder.places(25).tolist())) < 25
    check_stages(tmp_path, model, made, "question")


@pytest.mark.parametrize("side", [1, 2, *encoder._IN_ORDER])
def test_positions_of_published_sides_follow_each_other(side: int) -> None:
    assert encoder.places(side).tolist() == list(range(side))


@pytest.mark.parametrize("family", [idefics3, smolvlm])
@pytest.mark.parametrize("prefix", ["model.", ""])
def test_every_spelling_is_placed(prefix: str, family: Any) -> None:
    names = {
        "vision_model.encoder.layers.0.mlp.fc1.bias": ("vision", "encoder.layers.0.mlp.fc1.bias"),
        "vision_model.post_layernorm.weight": ("vision", "post_layernorm.weight"),
        "connector.modality_projection.proj.weight": ("projector", "proj.weight"),
        "text_model.layers.1.mlp.up_proj.weight": ("language", "model.layers.1.mlp.up_proj.weight"),
    }
    for name, expected in names.items():
        assert family.place(prefix + name) == expected
    assert family.place("lm_head.weight") == ("language", "lm_head.weight")


def edit(folder: Path, change: Callable[[dict[str, Any]], object], name: str = "config.json") -> None:
    """Change a JSON document of a folder."""
    document = json.loads((folder / name).read_text())
    change(document)
    (folder / name).write_text(json.dumps(document))


def test_a_config_with_all_that_published_ones_say(saved: Saved, tmp_path: Path) -> None:
    """What SmolVLM-256M's says beside what its class reads."""
    folder = shutil.copytree(saved["idefics3"][0], tmp_path / "published")
    expected = open_checkpoint(folder).spec

    def published(config: dict[str, Any]) -> None:
        config |= {"transformers.js_config": {"kv_cache_dtype": {"q4f16": "float16"}}, "vocab_size": 49280,
                   "use_reentrant_checkpointing": False, "use_cache": True}  # fmt: skip
        config["text_config"] |= {
            "_flash_attn_2_enabled": True, "architectures": ["VLlama3ForCausalLM"], "is_llama_config": True,
            "neftune_noise_alpha": 0.0, "perceiver_config": {"model_type": "vllama3", "resampler_depth": 6},
            "pixel_shuffle_factor": 4, "qk_layer_norms": False, "rope_interleaved": False, "use_resampler": False,
            "transformers.js_config": {"kv_cache_dtype": {}}, "_name_or_path": "None",
        }  # fmt: skip
        config["vision_config"] |= {
            "model_type": "idefics3", "size": {"longest_edge": 2048}, "max_image_size": {"longest_edge": 512},
            "use_base_siglip": True, "tie_word_embeddings": False,
        }  # fmt: skip

    edit(folder, published)
    pixels = json.loads((folder / "processor_config.json").read_text())["image_processor"]
    (folder / "processor_config.json").unlink()
    video = {"video_sampling": {"fps": 1, "max_frames": 64, "video_size": {"longest_edge": 512}}}
    (folder / "preprocessor_config.json").write_text(json.dumps(pixels | video | {"processor_class": "X"}))
    (folder / "processor_config.json").write_text(json.dumps({"image_seq_len": 4, "processor_class": "X"}))
    assert open_checkpoint(folder).spec.__dict__ == expected.__dict__ | {"name": "published"}


REFUSED: dict[str, tuple[str, Callable[[dict[str, Any]], object], str]] = {
    "tower": (
        "config.json", lambda config: config["vision_config"].update(model_type="clip_vision_model"),
        "a 'clip_vision_model' tower is not known",
    ),
    "decoder": (
        "config.json", lambda config: config["text_config"].update(model_type="mistral"), "a 'mistral' language model"
    ),
    "resampler": (
        "config.json", lambda config: config["text_config"].update(use_resampler=True), "use_resampler is true"
    ),
    "factor": (
        "config.json", lambda config: config.update(scale_factor=2), r"image_seq_len is 4, a view has 16"
    ),
    "no-factor": ("config.json", lambda config: config.update(scale_factor=0), "scale_factor is 0, a side has 8"),
    "half-a-factor": ("config.json", lambda config: config.update(scale_factor=1.5), "scale_factor .* is no whole"),
    "length": (
        "processor_config.json", lambda config: config.update(image_seq_len=169),
        "image_seq_len is 169, a view has 4 visual tokens",
    ),
    "side": (
        "processor_config.json", lambda config: config["image_processor"].update(max_image_size={"longest_edge": 32}),
        "the image processor makes 32 pixels, the tower takes 64",
    ),
    "square": (
        "processor_config.json",
        lambda config: config.update(image_processor={"size": 64, "crop_size": 64}),
        "the image processor cuts no tiles",
    ),
    "no-processor": (
        "processor_config.json", lambda config: config.pop("image_processor"), "has no preprocessor_config.json"
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", sorted(REFUSED))
def test_what_is_not_known_is_refused_by_name(name: str, saved: Saved, tmp_path: Path) -> None:
    file, change, message = REFUSED[name]
    folder = shutil.copytree(saved["smolvlm"][0], tmp_path / "model")
    edit(folder, change, file)
    with pytest.raises((Unsupported, CheckpointError), match=message) as caught:
        check_parts(open_checkpoint(folder))
    assert "\n" not in str(caught.value)
    assert caught.value.cure


LARGE = {
    "hidden_size": 1152, "intermediate_size": 4304, "num_hidden_layers": 27, "num_attention_heads": 16,
    "image_size": 384, "patch_size": 14,
}  # fmt: skip
B2 = {"hidden_size": 2048, "intermediate_size": 8192, "num_hidden_layers": 24, "vocab_size": 49280}
PUBLISHED: dict[str, tuple[str, dict[str, Any], dict[str, Any], int, int]] = {
    "SmolVLM-256M-Instruct": ("idefics3", SMALL, M256, 4, 256_484_928),
    "SmolVLM-500M-Instruct": ("idefics3", SMALL, M500, 4, 507_482_304),
    "SmolVLM-Instruct": ("idefics3", LARGE, B2 | {"vocab_size": 49155}, 3, 2_246_272_880),
    "SmolVLM2-256M-Video-Instruct": ("smolvlm", SMALL, M256, 4, 256_484_928),
    "SmolVLM2-500M-Video-Instruct": ("smolvlm", SMALL, M500, 4, 507_482_304),
    "SmolVLM2-2.2B-Instruct": ("smolvlm", LARGE, B2, 3, 2_246_784_880),
    "SmolDocling-256M-preview": ("idefics3", SMALL, M256, 4, 256_484_928),
    "granite-docling-258M": ("idefics3", SMALL, M256 | {"vocab_size": 100352}, 4, 257_517_120),
}
"""Layout, tower, language model, scale factor and number of parameters."""

FILES = {
    "SmolVLM-256M-Instruct": ("BF16", 2, 513_028_808),
    "SmolVLM-500M-Instruct": ("BF16", 2, 1_015_025_832),
    "SmolVLM2-500M-Video-Instruct": ("F32", 4, 2_029_990_624),
    "SmolDocling-256M-preview": ("BF16", 2, 513_028_808),
    "granite-docling-258M": ("BF16", 2, 515_093_104),
}
"""Type of the weights, its width, and bytes of the published ``model.safetensors``. Of the 2.2B of SmolVLM2 the number
of parameters is published; of SmolVLM's first one and of SmolVLM2's 256M neither was at hand."""


def file_size(shapes: dict[str, tuple[int, ...]], kind: str, width: int) -> int:
    """Bytes of a ``.safetensors`` file of such tensors, with the header that transformers writes."""
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name, shape in sorted(shapes.items()):
        start, end = end, end + prod(shape) * width
        header[name] = {"dtype": kind, "shape": list(shape), "data_offsets": [start, end]}
    length = len(json.dumps(header, separators=(",", ":")))
    return 8 + length + -length % 8 + end


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_sizes(name: str, tmp_path: Path) -> None:
    """Every shape is that of transformers' class of that size, and they fill the published file to the byte."""
    kind, vision, text, factor, count = PUBLISHED[name]
    tied = {"tie_word_embeddings": True} if name.startswith("granite") else {}
    config = {"model_type": kind, "scale_factor": factor, "vision_config": vision, **tied,
              "text_config": {"model_type": "llama", "max_position_embeddings": 8192, **text}}  # fmt: skip
    with torch.device("meta"):
        model = CLASSES[kind][1](
            CLASSES[kind][0](**{key: value for key, value in config.items() if key != "model_type"})
        )
    side = vision["image_size"]
    write_documents(tmp_path, side)
    shapes: dict[str, dict[str, tuple[int, ...]]] = {"vision": {}, "projector": {}, "language": {}}
    for key, value in model.state_dict().items():
        part, canonical = families.family(kind).place(key) or ("", "")
        shapes[part][canonical] = tuple(value.shape)
    spec = families.family(kind).spec(Published(tmp_path, name, config, shapes))
    vlm = VLM(spec)
    theirs = {f"{part}.{key}": shape for part, found in shapes.items() for key, shape in found.items()}
    assert {key: tuple(value.shape) for key, value in vlm.state_dict().items()} == theirs
    assert expected_shapes.idefics3(spec.vision) == shapes["vision"]
    grid = side // vision["patch_size"] // factor
    assert (spec.projector.kind, token_grid(spec.projector)) == (f"shuffle{factor}_linear", (grid, grid))
    assert spec.vision.layer_norm_eps == 1e-6
    assert sum(value.numel() for value in model.parameters()) == count
    if tied:
        vlm.language.tie_weights()  # type: ignore[operator]
    assert sum(value.numel() for value in vlm.parameters()) == count
    if name in FILES:
        dtype, width, published = FILES[name]
        held = {
            key: tuple(value.shape) for key, value in model.state_dict().items() if not tied or "lm_head" not in key
        }
        assert file_size(held, dtype, width) == published


def write_documents(folder: Path, side: int) -> None:
    """Those beside ``config.json`` that a Spec is read from, as they are published."""
    pixels = {"image_processor_type": "Idefics3ImageProcessor", "size": {"longest_edge": 4 * side},
              "max_image_size": {"longest_edge": side}}  # fmt: skip
    (folder / "preprocessor_config.json").write_text(json.dumps(pixels))
    (folder / "chat_template.json").write_text(json.dumps({"chat_template": TEMPLATE}))
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": 49279}))


def test_without_a_chat_template(saved: Saved, tmp_path: Path) -> None:
    folder = shutil.copytree(saved["smolvlm"][0], tmp_path / "model")
    (folder / "chat_template.jinja").unlink()
    with pytest.raises(CheckpointError, match="has no chat template: save the processor beside the model"):
        open_checkpoint(folder)
