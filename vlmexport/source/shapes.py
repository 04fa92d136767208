"""Names and shapes that tower and language model must have; reads no weights, imports no torch.

A projector's are in its own file in ``model/projector``.
"""

from __future__ import annotations

from collections.abc import Mapping

from vlmexport.checkpoint.spec import LanguageSpec, Spec, VisionSpec
from vlmexport.checkpoint.tensors import LazyTensor
from vlmexport.errors import CheckpointError, Unsupported

Shapes = dict[str, tuple[int, ...]]
_SHOWN = 4
_HEAD = "lm_head.weight"


def clip(spec: VisionSpec) -> Shapes:
    """Of transformers' ``CLIPVisionModel``, without ``vision_model.``."""
    patch = {"embeddings.patch_embedding.weight": _patches(spec)}
    own: Shapes = {"embeddings.class_embedding": (spec.hidden_size,), **_with_bias("pre_layrnorm", (spec.hidden_size,))}
    return own | patch | _transformer(spec, spec.grid**2 + 1)


def idefics3(spec: VisionSpec) -> Shapes:
    """Of transformers' ``SiglipVisionModel`` without its head."""
    return _with_bias("embeddings.patch_embedding", _patches(spec)) | _transformer(spec, spec.grid**2)


def _patches(spec: VisionSpec) -> tuple[int, ...]:
    return (spec.hidden_size, 3, spec.patch_size, spec.patch_size)


def _transformer(spec: VisionSpec, positions: int) -> Shapes:
    """Positions, layers and the last norm."""
    width, inner = spec.hidden_size, spec.intermediate_size
    found = {"embeddings.position_embedding.weight": (positions, width), **_with_bias("post_layernorm", (width,))}
    for layer in range(spec.num_layers):
        place = f"encoder.layers.{layer}"
        for name in ("q_proj", "k_proj", "v_proj", "out_proj"):
            found |= _with_bias(f"{place}.self_attn.{name}", (width, width))
        found |= _with_bias(f"{place}.mlp.fc1", (inner, width)) | _with_bias(f"{place}.mlp.fc2", (width, inner))
        found |= _with_bias(f"{place}.layer_norm1", (width,)) | _with_bias(f"{place}.layer_norm2", (width,))
    return found


def _with_bias(name: str, shape: tuple[int, ...]) -> Shapes:
    return {f"{name}.weight": shape, f"{name}.bias": shape[:1]}


def llama(spec: LanguageSpec) -> Shapes:
    """Of transformers' ``LlamaForCausalLM``; ``lm_head`` too where it is tied."""
    width, inner = spec.hidden_size, spec.intermediate_size
    queries, keys = spec.num_heads * spec.head_dim, spec.num_kv_heads * spec.head_dim
    layer: Shapes = {
        "self_attn.q_proj": (queries, width), "self_attn.k_proj": (keys, width), "self_attn.v_proj": (keys, width),
        "self_attn.o_proj": (width, queries), "mlp.gate_proj": (inner, width), "mlp.up_proj": (inner, width),
        "mlp.down_proj": (width, inner), "input_layernorm": (width,), "post_attention_layernorm": (width,),
    }  # fmt: skip
    found: Shapes = {
        "model.embed_tokens.weight": (spec.vocab_size, width),
        "model.norm.weight": (width,),
        "lm_head.weight": (spec.vocab_size, width),
    }
    for i in range(spec.num_layers):
        found |= {f"model.layers.{i}.{name}.weight": shape for name, shape in layer.items()}
    return found


_VISION = {"clip": clip, "idefics3": idefics3}
_LANGUAGE = {"llama": llama}
KNOWN_ENCODERS, KNOWN_LANGUAGES = frozenset(_VISION), frozenset(_LANGUAGE)
"""Kinds of the published layouts, which are checked here; the others by their module (``model.plugins``)."""


def check_parts(spec: Spec, tensors: Mapping[str, dict[str, LazyTensor]], where: str) -> None:
    """Tower and language model, where their kind is known here; a projector is checked by ``model.plugins``.

    Raises:
        CheckpointError: a tensor is missing or of another shape.
        Unsupported: a tensor is unknown.
    """
    for component, layers in (("vision", spec.vision.num_layers), ("language", spec.language.num_layers)):
        if layers > len(tensors[component]):
            raise CheckpointError(
                f"{where}: the config says {layers} layers, the weights have {len(tensors[component])} tensors "
                f"({component})", "config and weights belong to different models",
            )  # fmt: skip
    if spec.vision.kind in _VISION:
        check_shapes(_VISION[spec.vision.kind](spec.vision), tensors["vision"], f"{where} vision")
    if spec.language.kind in _LANGUAGE:
        check_language(spec.language, _LANGUAGE[spec.language.kind](spec.language), tensors["language"], where)


def check_language(spec: LanguageSpec, shapes: Shapes, found: Mapping[str, LazyTensor], where: str) -> None:
    """Compare a language model's tensors with ``shapes``, where the head may be missing if it is tied; errors as
    ``check_shapes``."""
    missing = spec.tie_word_embeddings and _HEAD not in found
    expected = {name: shape for name, shape in shapes.items() if not (missing and name == _HEAD)}
    check_shapes(expected, found, f"{where} language")


def check_shapes(expected: Mapping[str, tuple[int, ...]], found: Mapping[str, LazyTensor], where: str) -> None:
    """Compare names and shapes of a component with those its modules expect.

    Raises:
        CheckpointError: names the first tensors that are missing, or the first of another shape.
        Unsupported: names the first tensors that are unknown.
    """
    missing = sorted(set(expected) - set(found))
    if missing:
        raise CheckpointError(f"{where}: {_list(missing, 'missing')}", "download it again, or merge its parts first")
    unknown = sorted(set(found) - set(expected))
    if unknown:
        raise Unsupported(f"{where}: {_list(unknown, 'unknown')}", "this is not the model its config says")
    for name, shape in expected.items():
        if found[name].shape != shape:
            raise CheckpointError(
                f"{where}: {name} has the shape {list(found[name].shape)}, its config says {list(shape)}",
                "config and weights belong to different models",
            )


def _list(names: list[str], what: str) -> str:
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    count = "1 tensor is" if len(names) == 1 else f"{len(names)} tensors are"
    return f"{count} {what}: {', '.join(names[:_SHOWN])}{more}"
