"""A language model's Spec from its section of a config."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from vlmexport.checkpoint.documents import flag, whole
from vlmexport.checkpoint.rope import read_scaling
from vlmexport.checkpoint.spec import LanguageSpec
from vlmexport.errors import CheckpointError, Unsupported
from vlmexport.families.reading.defaults import defaults, refuse_unread

READ = frozenset((
    "vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads",
    "num_key_value_heads", "head_dim", "hidden_act", "rms_norm_eps", "rope_theta", "rope_scaling", "rope_parameters",
    "max_position_embeddings", "tie_word_embeddings", "bos_token_id", "eos_token_id", "pad_token_id",
))  # fmt: skip
"""Keys of a language model's section that ``published`` reads."""


def published(
    section: Mapping[str, Any], path: Path, kind: str = "llama", others: Collection[str] = ()
) -> LanguageSpec:
    """The Spec of a published layout's language model, with its section; errors as ``language``.

    Args:
        kind: the file in ``model/language``, and transformers' model type.
        others: keys of the section that somebody else reads.
    """
    if section.get("hidden_act", "silu") != "silu":
        raise Unsupported(f"{path}: a language model with {section['hidden_act']!r} is not known", "known: silu")
    layers = set(section.get("layer_types") or ())
    if section.get("use_sliding_window") or not layers <= {"full_attention"}:
        raise Unsupported(f"{path}: attention with a sliding window is not known", "known: every layer sees all")
    read = {*READ, *others, "layer_types", "use_sliding_window", "sliding_window", "max_window_layers"}
    refuse_unread(section, kind, read, str(path))
    known = {key: value for key, value in section.items() if key in defaults(kind) and key not in (*READ, "model_type")}
    return replace(language(section, path, kind), section=known)


def language(text: Mapping[str, Any], path: Path, kind: str = "llama") -> LanguageSpec:
    """A language model's Spec; ``text`` is in the terms of ``LlamaConfig``.

    Raises:
        CheckpointError: a size is missing or no number.
        Unsupported: something that would change the result and is not known.
    """
    theta = text.get("rope_theta")
    try:
        scaling, rope = read_scaling(text, path), text.get("rope_parameters") or {}
        hidden, heads = whole(text, "hidden_size"), whole(text, "num_attention_heads")
        spec = LanguageSpec(
            kind=kind,
            vocab_size=whole(text, "vocab_size"),
            hidden_size=hidden,
            intermediate_size=whole(text, "intermediate_size"),
            num_layers=whole(text, "num_hidden_layers"),
            num_heads=heads,
            num_kv_heads=whole(text, "num_key_value_heads", heads),
            head_dim=whole(text, "head_dim", 0) or hidden // heads,
            rms_norm_eps=float(text.get("rms_norm_eps", 1e-6)),
            rope_theta=float(rope.get("rope_theta", 10000.0) if theta is None else theta),
            max_positions=whole(text, "max_position_embeddings", 2048),
            tie_word_embeddings=flag(text, "tie_word_embeddings"),
            hidden_act=str(text.get("hidden_act", LanguageSpec.hidden_act)),
            rope_scaling=scaling,
            classes=_classes(text.get("classes", [])),
        )
    except (KeyError, TypeError, ValueError, ArithmeticError) as error:
        raise CheckpointError(f"{path} lacks or garbles {error}", "use the published config.json") from error
    sizes = (spec.vocab_size, hidden, spec.intermediate_size, spec.num_layers, heads, spec.num_kv_heads, spec.head_dim)
    if min(sizes) < 1 or heads % spec.num_kv_heads:
        raise CheckpointError(
            f"{path}: {heads} heads, {spec.num_kv_heads} of keys, in {spec.num_layers} layers {hidden} wide cannot be",
            "use the published config.json",
        )
    return spec


def _classes(answers: object) -> tuple[str, ...]:
    """A classifier's answers."""
    if not isinstance(answers, list) or not all(isinstance(answer, str) for answer in answers):
        raise TypeError("classes (a list of texts)")
    return tuple(answers)
