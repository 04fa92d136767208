"""A language model as GGUF: names, row order, types and metadata, after what the file of its kind says."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

import numpy as np

from vlmexport.artifact.gguf import metadata, tokenizer
from vlmexport.artifact.gguf.imatrix import ImportanceMatrix
from vlmexport.artifact.gguf.rows import Entry
from vlmexport.checkpoint.spec import LanguageSpec
from vlmexport.checkpoint.tensors import LazyTensor
from vlmexport.errors import Unsupported, UsageError
from vlmexport.families.reading.bundles import Field
from vlmexport.model import plugins
from vlmexport.quantize.gguf_mix import Mix, in_order, needs_importance, tensor_types
from vlmexport.quantize.gguf_override import given_types
from vlmexport.quantize.gguf_rules import Decoder
from vlmexport.source.checkpoint import Checkpoint

_QUANTIZATION_VERSION = 2


def gguf_name(spec: LanguageSpec, name: str) -> str:
    """The GGUF name of a tensor.

    Raises:
        Unsupported: a model or a tensor that llama.cpp does not have.
    """
    plugin = plugins.language(spec)
    held = plugin.gguf(spec)
    match = re.fullmatch(rf"{re.escape(plugin.LAYERS)}(\d+)\.(.+)\.(weight|bias)", name)
    if match and match[2] in held.inside:
        return f"blk.{match[1]}.{held.inside[match[2]]}.{match[3]}"
    if name in held.outside:
        return held.outside[name]
    raise Unsupported(f"GGUF cannot hold the language model's tensor {name}", "use an ONNX bundle")


def tensors_of(checkpoint: Checkpoint) -> dict[str, LazyTensor]:
    """GGUF name → tensor; a tied output is left out."""
    spec = checkpoint.spec.language
    found = {gguf_name(spec, name): tensor for name, tensor in checkpoint.tensors["language"].items()}
    if spec.tie_word_embeddings:
        found.pop("output.weight", None)
    return found


def importance_names(spec: LanguageSpec) -> dict[str, str]:
    """Layer path of the statistics → GGUF name of its weight. A tied output weighs the embedding."""
    plugin = plugins.language(spec)
    names = {
        f"language.{plugin.LAYERS}{layer}.{part}": f"blk.{layer}.{name}.weight"
        for layer in range(spec.num_layers)
        for part, name in plugin.gguf(spec).inside.items()
        if not name.endswith("norm")
    }
    names["language.lm_head"] = "token_embd.weight" if spec.tie_word_embeddings else "output.weight"
    return names


def types_of(
    spec: LanguageSpec,
    mix: Mix,
    texts: Sequence[str],
    shapes: Mapping[str, tuple[int, ...]],
    importance: ImportanceMatrix | None,
) -> dict[str, str]:
    """The type of every tensor of the language model.

    Args:
        texts: types given by hand, ``REGEX=TYPE`` each.

    Raises:
        UsageError: a type that cannot be given, or one that needs an importance matrix where there is none.
    """
    decoder = Decoder(spec.num_layers, spec.num_heads // spec.num_kv_heads)
    types = tensor_types(mix, shapes, decoder, importance is not None, given_types(texts, shapes))
    measured = importance.columns if importance else {}
    for name, kind in types.items():
        if needs_importance(name, kind) and name not in measured:
            raise UsageError(
                f"{mix.name} would make {name} {kind}, which needs an importance matrix that covers it",
                "use --imatrix auto or a file, or a type such as q2_k or q3_k_m",
            )
    return types


def entries(
    spec: LanguageSpec,
    tensors: Mapping[str, LazyTensor],
    types: Mapping[str, str],
    importance: ImportanceMatrix | None,
) -> list[Entry]:
    """The file's tensors."""
    held = plugins.language(spec).gguf(spec)
    found = []
    for name in in_order([*tensors, *held.made]):
        if name in held.made:
            values = np.array(held.made[name], np.float32)
            found.append(Entry(name, values.shape, "f32", values))
            continue
        tensor, heads = tensors[name], held.heads.get(name.split(".")[-2], 0)
        column = importance.columns.get(name) if importance else None
        weights = column.mean if column else None
        found.append(Entry(name, tensor.shape, types[name], tensor, heads, weights))
    return found


def fields(checkpoint: Checkpoint, mix: Mix, rows: int) -> dict[str, Field]:
    """Metadata of the language model and its tokenizer; ``rows`` of the embedding are the vocabulary."""
    spec = checkpoint.spec.language
    held = plugins.language(spec).gguf(spec)
    sizes = {
        "vocab_size": rows,
        "context_length": spec.max_positions,
        "embedding_length": spec.hidden_size,
        "block_count": spec.num_layers,
        "feed_forward_length": spec.intermediate_size,
        "attention.head_count": spec.num_heads,
        "attention.head_count_kv": spec.num_kv_heads,
    }
    found: dict[str, Field] = {
        "general.type": ("str", "model"),
        "general.file_type": ("u32", mix.file_type),
        "general.quantization_version": ("u32", _QUANTIZATION_VERSION),
    }
    found |= {f"{held.architecture}.{key}": ("u32", value) for key, value in sizes.items()}
    found |= {f"{held.architecture}.{key}": value for key, value in held.fields.items()}
    found |= metadata.fields(checkpoint, "language") | metadata.sampling(checkpoint.about)
    return found | tokenizer.fields(checkpoint.tokenizer, checkpoint.spec, rows)
