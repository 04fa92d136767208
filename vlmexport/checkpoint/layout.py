"""Recognise a checkpoint's layout and sort its tensors into vision, projector and language."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from vlmexport.checkpoint.spec import LanguageSpec, ProjectorSpec, PromptSpec, Spec, VisionSpec
from vlmexport.checkpoint.tensors import LazyTensor, open_tensors, weight_files
from vlmexport.checkpoint.tokenizer import Tokenizer, open_tokenizer
from vlmexport.errors import CheckpointError, Unsupported

COMPONENTS = ("vision", "projector", "language")
_TOWER = "model.vision_tower.vision_tower."
_PROJECTOR = "model.mm_projector."
_SKIPPED = ("rotary_emb.inv_freq", "embeddings.position_ids")
_ARCHITECTURES = {
    "mobilevlm": "mobilevlm",
    "MobileLlamaForCausalLM": "mobilevlm",
    "llava": "llava",
    "llava_llama": "llava",
    "LlavaLlamaForCausalLM": "llava",
}


@dataclass
class Checkpoint:
    """A checkpoint folder, opened: its Spec, and its tensors by component under canonical names.

    Canonical names are those of transformers' ``CLIPVisionModel`` (vision), of the published projector after
    ``model.mm_projector.`` (projector), and of ``LlamaForCausalLM`` (language).
    """

    path: Path
    origin: str
    spec: Spec
    config: dict[str, Any]
    tensors: dict[str, dict[str, LazyTensor]] = field(repr=False)

    @cached_property
    def tokenizer(self) -> Tokenizer:
        """The checkpoint's tokenizer."""
        return open_tokenizer(self.path)

    @property
    def weight_files(self) -> list[Path]:
        """The files that hold the weights."""
        return weight_files(self.path)

    def parameters(self, component: str) -> int:
        """Number of values in a component."""
        return sum(tensor.numel for tensor in self.tensors[component].values())


def open_checkpoint(path: Path, origin: str | None = None) -> Checkpoint:
    """Open a checkpoint folder in a published layout; reads no weights.

    Args:
        origin: how to find it again (a Hub id, ``demo``); its absolute path where it is None.

    Raises:
        CheckpointError: not a folder, not a checkpoint, damaged, or it contradicts itself.
        Unsupported: a model type that is not known.
    """
    config = _read_config(path)
    layout = _layout(config, path)
    tensors = _sort(open_tensors(path))
    vision = _vision(config, tensors["vision"], path)
    language = _language(config)
    for component in COMPONENTS:
        if not tensors[component]:
            raise CheckpointError(f"{path} holds no {component} tensors", "pass a merged checkpoint with all three")
    projector = ProjectorSpec(
        kind=str(config.get("mm_projector_type", "linear")),
        in_features=vision.hidden_size,
        out_features=language.hidden_size,
        in_tokens=vision.num_patches,
    )
    spec = Spec(
        name=Path(origin).name if origin else path.resolve().name,
        layout=layout,
        vision=vision,
        projector=projector,
        language=language,
        prompt=PromptSpec(),
        bos_token_id=int(config.get("bos_token_id", 1)),
        eos_token_id=int(config.get("eos_token_id", 2)),
        pad_token_id=config.get("pad_token_id"),
        torch_dtype=str(config.get("torch_dtype", config.get("dtype", "float16"))),
    )
    return Checkpoint(path, origin or str(path.resolve()), spec, config, tensors)


def _read_config(path: Path) -> dict[str, Any]:
    if not path.exists():
        raise CheckpointError(f"{path} does not exist", "pass the folder of a checkpoint, or `demo`")
    file = path / "config.json"
    if not file.is_file():
        raise CheckpointError(f"{path} is not a checkpoint (it has no config.json)", "pass the folder that holds it")
    try:
        config = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise CheckpointError(f"{file} is not JSON ({error})", "download it again") from error
    if not isinstance(config, dict):
        raise CheckpointError(f"{file} is not a JSON object", "download it again")
    return config


def _layout(config: dict[str, Any], path: Path) -> str:
    names = [str(config.get("model_type", "")), *map(str, config.get("architectures") or [])]
    for name in names:
        if name in _ARCHITECTURES:
            return _ARCHITECTURES[name]
    raise Unsupported(
        f"{path / 'config.json'}: model type {names[0] or 'missing'!r} is not a known vision-language model",
        f"known: {', '.join(sorted(_ARCHITECTURES))}",
    )


def _sort(tensors: dict[str, LazyTensor]) -> dict[str, dict[str, LazyTensor]]:
    found: dict[str, dict[str, LazyTensor]] = {component: {} for component in COMPONENTS}
    for name, tensor in tensors.items():
        if name.endswith(_SKIPPED):
            continue
        if name.startswith(_TOWER):
            found["vision"][name.removeprefix(_TOWER).removeprefix("vision_model.")] = tensor
        elif name.startswith(_PROJECTOR):
            found["projector"][name.removeprefix(_PROJECTOR)] = tensor
        else:
            found["language"][name] = tensor
    return found


def _vision(config: dict[str, Any], tensors: dict[str, LazyTensor], path: Path) -> VisionSpec:
    """Sizes from ``vision_config`` where there is one, else from the tensors (heads of 64, as in every CLIP)."""
    try:
        patch = tensors["embeddings.patch_embedding.weight"].shape
        positions = tensors["embeddings.position_embedding.weight"].shape[0]
        inner = tensors["encoder.layers.0.mlp.fc1.weight"].shape[0]
    except KeyError as error:
        raise CheckpointError(
            f"{path} holds no vision tower (tensor {error} is missing)",
            "pass a merged checkpoint that carries its tower",
        ) from error
    given = config.get("vision_config") or {}
    layers = 1 + max(int(name.split(".")[2]) for name in tensors if name.startswith("encoder.layers."))
    measured = {
        "hidden_size": patch[0],
        "patch_size": patch[2],
        "image_size": round((positions - 1) ** 0.5) * patch[2],
        "intermediate_size": inner,
        "num_hidden_layers": layers,
    }
    for key, value in measured.items():
        if key in given and given[key] != value:
            raise CheckpointError(
                f"{path / 'config.json'}: vision_config.{key} is {given[key]}, the tensors say {value}",
                "config and weights belong to different models: fix one of them",
            )
    return VisionSpec(
        kind=str(given.get("kind", "clip")),
        image_size=measured["image_size"],
        patch_size=measured["patch_size"],
        hidden_size=measured["hidden_size"],
        intermediate_size=measured["intermediate_size"],
        num_layers=layers,
        num_heads=int(given.get("num_attention_heads", measured["hidden_size"] // 64)),
        hidden_act=str(given.get("hidden_act", "quick_gelu")),
        layer_norm_eps=float(given.get("layer_norm_eps", 1e-5)),
        select_layer=int(config.get("mm_vision_select_layer", -2)),
        select_feature=str(config.get("mm_vision_select_feature", "patch")),
        aspect_ratio="pad" if config.get("image_aspect_ratio") == "pad" else "crop",
    )


def _language(config: dict[str, Any]) -> LanguageSpec:
    try:
        hidden, heads = int(config["hidden_size"]), int(config["num_attention_heads"])
        rope = config.get("rope_parameters") or {}
        return LanguageSpec(
            kind="llama",
            vocab_size=int(config["vocab_size"]),
            hidden_size=hidden,
            intermediate_size=int(config["intermediate_size"]),
            num_layers=int(config["num_hidden_layers"]),
            num_heads=heads,
            num_kv_heads=int(config.get("num_key_value_heads") or heads),
            head_dim=int(config.get("head_dim") or hidden // heads),
            rms_norm_eps=float(config.get("rms_norm_eps", 1e-6)),
            rope_theta=float(config.get("rope_theta") or rope.get("rope_theta", 10000.0)),
            max_positions=int(config.get("max_position_embeddings", 2048)),
            tie_word_embeddings=bool(config.get("tie_word_embeddings", False)),
        )
    except (KeyError, TypeError, ValueError) as error:
        raise CheckpointError(f"config.json lacks or garbles {error}", "use the published config.json") from error


def check_shapes(expected: dict[str, tuple[int, ...]], found: dict[str, LazyTensor], where: str) -> None:
    """Compare names and shapes of a component with those its modules expect.

    Raises:
        CheckpointError: names the first tensor that is missing, unknown or of another shape.
    """
    missing = sorted(set(expected) - set(found))
    if missing:
        raise CheckpointError(
            f"{where}: {len(missing)} tensors are missing: {', '.join(missing[:4])}", "download it again"
        )
    unknown = sorted(set(found) - set(expected))
    if unknown:
        raise Unsupported(
            f"{where}: {len(unknown)} tensors are unknown: {', '.join(unknown[:4])}",
            "this is not the model its config says",
        )
    for name, shape in expected.items():
        if found[name].shape != shape:
            raise CheckpointError(
                f"{where}: {name} has the shape {list(found[name].shape)}, its config says {list(shape)}",
                "config and weights belong to different models",
            )
