"""A family whose tower, projector and language model exist is one file: here one that nobody publishes."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest

from tests.checkpoints import canonical_state, published, tiny_spec, write_checkpoint, write_preprocessor
from tests.onnx_bundles import sample
from vlmexport import families
from vlmexport.checkpoint.spec import ImageProcessorSpec, Spec, VisionSpec
from vlmexport.errors import CheckpointError, Unsupported
from vlmexport.parity.check import check
from vlmexport.pipeline import export
from vlmexport.recipe import resolve
from vlmexport.source.checkpoint import open_checkpoint

FILE = '''
"""Made up: SigLIP, an MLP and Qwen2, each in a section of the config."""

from vlmexport.checkpoint.spec import ProjectorSpec, PromptSpec, Spec
from vlmexport.families.reading import language, vision
from vlmexport.families.reading.published import pad_id, stored_type, token_id

ARCHITECTURES = ("MadeUpForConditionalGeneration",)
MODEL_TYPES = ("made_up",)
SECTIONS = ("text_config", "vision_config")
_PREFIXES = {"model.sight.": "vision", "model.bridge.": "projector", "speech.": "language"}


def place(name):
    for prefix, component in _PREFIXES.items():
        if name.startswith(prefix):
            return component, name.removeprefix(prefix)
    return "language", name


def tower(config):
    return None


def spec(published):
    text, given, file = published.config["text_config"], published.config["vision_config"], published.file
    decoder = language.language(text, file, "qwen2")
    encoder = vision.layered_tower(
        "siglip", given, published.shapes["vision"], file,
        select_layer=-1, select_feature="patch",
    )
    return Spec(
        name=published.name, layout="made-up",
        image_processor=published.image_processor(encoder.image_size),
        vision=encoder, language=decoder, prompt=PromptSpec(system="Hello."),
        projector=ProjectorSpec("mlp2x_gelu", encoder.hidden_size, decoder.hidden_size, encoder.num_patches),
        bos_token_id=token_id(text, "bos_token_id", 1, file), eos_token_id=token_id(text, "eos_token_id", 2, file),
        pad_token_id=pad_id(text), torch_dtype=stored_type(text),
    )
'''
BUNDLES = """

from vlmexport.errors import Unsupported
from vlmexport.families.reading.bundles import OWN, Clients


def clients(spec):
    return Clients(copied=OWN, genai=None, changes={"preprocessor_config.json": {"do_convert_rgb": True}})


def gguf(spec):
    raise Unsupported("nobody has written it for libmtmd", "use --vision onnx")
"""
"""What it may say of its bundles."""


@pytest.fixture(params=[FILE])
def made_up(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The file in a folder of families."""
    (tmp_path / "families").mkdir()
    (tmp_path / "families" / "made_up.py").write_text(request.param)
    monkeypatch.setattr(families, "__path__", [*families.__path__, str(tmp_path / "families")])
    yield
    sys.modules.pop("vlmexport.families.made_up", None)
    if hasattr(families, "made_up"):
        del families.made_up


def small() -> Spec:
    vision = VisionSpec("siglip", 96, 16, 64, 128, 2, 1, "gelu_pytorch_tanh", 1e-6, select_layer=-1)
    pixels = ImageProcessorSpec.square(96, pads=False, image_mean=(0.5, 0.5, 0.5), image_std=(0.5, 0.5, 0.5))
    spec = tiny_spec("mlp2x_gelu", kind="qwen2", num_layers=1, num_kv_heads=2, rms_norm_eps=1e-6)
    return replace(
        spec, layout="made-up", image_processor=pixels, vision=vision, projector=replace(spec.projector, in_tokens=36)
    )


def config(spec: Spec) -> dict[str, Any]:
    language, vision = spec.language, spec.vision
    return {
        "architectures": ["MadeUpForConditionalGeneration"], "model_type": "made_up",
        "vision_config": {
            "image_size": 96, "hidden_act": vision.hidden_act, "layer_norm_eps": 1e-6, "num_attention_heads": 1,
        },
        "text_config": {
            "vocab_size": language.vocab_size, "hidden_size": language.hidden_size, "num_attention_heads": 4,
            "intermediate_size": language.intermediate_size, "num_hidden_layers": 1, "num_key_value_heads": 2,
        },
    }  # fmt: skip


def write(folder: Path) -> tuple[Path, Spec]:
    spec, prefixes = small(), {"vision": "model.sight.", "projector": "model.bridge.", "language": "speech."}
    state = published(canonical_state(spec), lambda part, name: prefixes[part] + name)
    path = write_checkpoint(folder / "model", spec, state=state, config=config(spec))
    write_preprocessor(path, spec)
    return path, spec


@pytest.mark.usefixtures("made_up", "short_answers")
@pytest.mark.slow
def test_one_file_adds_a_family(tmp_path: Path) -> None:
    path, spec = write(tmp_path)
    found = open_checkpoint(path)
    assert asdict(found.spec) == asdict(replace(spec, name="model", prompt=replace(spec.prompt, system="Hello.")))
    bundle = export(str(path), resolve("onnx-fp32", environ={}), tmp_path / "bundle")
    result = check(bundle, samples=[sample(seed) for seed in range(20)])
    assert result.passed
    assert {stage.stage for stage in result.stages} == {"pixels", "features", "tokens", "logits", "answer"}


@pytest.mark.slow
@pytest.mark.usefixtures("made_up")
@pytest.mark.parametrize("made_up", [FILE + BUNDLES], indirect=True)
def test_its_file_says_what_its_bundles_carry(tmp_path: Path) -> None:
    """The checkpoint's own documents, with what is transformers.js' own in its config; and no mmproj."""
    path, spec = write(tmp_path)
    own = {name: {"of": name} for name in ("processor_config.json", "special_tokens_map.json")}
    own["tokenizer_config.json"] = {"tokenizer_class": "Own", "chat_template": "{{ messages }}"}
    for name, document in own.items():
        (path / name).write_text(json.dumps(document))
    (path / "chat_template.jinja").write_text("{{ messages }}")
    bundle = export(str(path), resolve("onnx-fp32", environ={}), tmp_path / "bundle")
    held = {file.name: json.loads(file.read_text()) for file in bundle.glob("*.json")}
    settings = held["config.json"].pop("transformers.js_config")
    assert set(settings["dtype"].values()) == {"fp32"}
    assert held["config.json"] == config(spec)
    pixels = json.loads((path / "preprocessor_config.json").read_text())
    assert held["preprocessor_config.json"] == pixels | {"do_convert_rgb": True}
    assert {name: held[name] for name in own} == own
    assert (bundle / "chat_template.jinja").read_text() == "{{ messages }}"
    assert held["generation_config.json"]["eos_token_id"] == spec.eos_token_id  # it has none of its own
    assert "genai_config.json" not in held
    with pytest.raises(Unsupported, match="nobody has written it for libmtmd"):
        export(str(path), resolve("gguf-f16", environ={}), tmp_path / "gguf")
    hybrid = resolve("gguf-f16", {"gguf.vision": "onnx", "onnx.vision": "fp32"}, environ={})
    export(str(path), hybrid, tmp_path / "hybrid")
    assert (
        json.loads((tmp_path / "hybrid" / "preprocessor_config.json").read_text()) == held["preprocessor_config.json"]
    )


def test_without_its_file_it_is_unknown(tmp_path: Path) -> None:
    path, _ = write(tmp_path)
    with pytest.raises(Unsupported, match="model type 'made_up' is not a known vision-language model") as caught:
        open_checkpoint(path)
    assert "LlavaForConditionalGeneration" in caught.value.cure


@pytest.mark.usefixtures("made_up")
def test_its_tensors_are_checked(tmp_path: Path) -> None:
    path, spec = write(tmp_path)
    changed = config(spec)
    changed["text_config"]["hidden_size"] = 128
    write_checkpoint(path, spec, state={}, config=changed)
    with pytest.raises(CheckpointError):
        open_checkpoint(path)


def test_no_two_families_answer_to_one_architecture() -> None:
    from importlib import import_module

    found = [name for file in families.names() for name in import_module(f"vlmexport.families.{file}").ARCHITECTURES]
    assert len(found) == len(set(found))
    assert {"LlavaForConditionalGeneration", "MobileLlamaForCausalLM"} <= set(found)
