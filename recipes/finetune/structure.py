"""A language model with less in it: without its weakest heads or channels, or with one table for words in and out.

What is left out is left out of the checkpoint too, which is smaller and exports like any other.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from settings import Settings

from vlmexport.checkpoint.spec import LanguageSpec
from vlmexport.errors import Unsupported, UsageError
from vlmexport.model import VLM, plugins

State = dict[str, torch.Tensor]
CHANNELS = 32
"""Channels are left in multiples of it: the smallest block that GGUF and int4 quantize (K-quants take 256)."""


def restructure(vlm: VLM, settings: Settings) -> VLM:
    """The model without the heads and channels that ``settings`` leave out, and tied where they say so.

    Raises:
        Unsupported: a language model without Llama's layers.
        UsageError: a share that leaves nothing, or heads that no config can tell.
    """
    spec, state = vlm.spec.language, dict(vlm.language.state_dict())
    if not plugins.language(spec).FUSED and (settings.prune_heads or settings.prune_channels):
        raise Unsupported(f"heads and channels of a {spec.kind} cannot be left out", "use --prune, which takes weights")
    if settings.prune_heads:
        state, spec = without_heads(state, spec, settings.prune_heads)
    if settings.prune_channels:
        state, spec = without_channels(state, spec, settings.prune_channels)
    if settings.tie:
        state, spec = tied(state, spec)
    if spec == vlm.spec.language:
        return vlm
    language = plugins.language(spec).build(spec)
    language.load_state_dict(state, assign=True, strict=False)
    if spec.tie_word_embeddings:
        language.tie_weights()  # type: ignore[operator]
    vlm.spec, vlm.language = replace(vlm.spec, language=spec), language
    return vlm.eval()


def without_channels(state: State, spec: LanguageSpec, share: float) -> tuple[State, LanguageSpec]:
    """The MLPs without a share of their channels: those of the least product of norms of gate, up and down.

    The product does not change when a channel is scaled in one matrix and back in the next, which is how outliers get
    into real Llamas; each matrix counts with the gain of the norm before it.
    """
    left = round((1 - share) * spec.intermediate_size / CHANNELS) * CHANNELS
    if left == 0:
        raise UsageError(f"--prune-channels {share:g} leaves no channel of {spec.intermediate_size}", "pass less")
    made = dict(state)
    for layer in _layers(spec):
        gain = state[f"{layer}post_attention_layernorm.weight"].float()
        gate, up, down = (f"{layer}mlp.{name}_proj.weight" for name in ("gate", "up", "down"))
        scores = (state[gate] * gain).norm(dim=1) * (state[up] * gain).norm(dim=1) * state[down].norm(dim=0)
        kept = _best(scores, left)
        made |= {gate: state[gate][kept], up: state[up][kept], down: state[down][:, kept].contiguous()}
    return made, replace(spec, intermediate_size=left)


def without_heads(state: State, spec: LanguageSpec, share: float) -> tuple[State, LanguageSpec]:
    """Attention without a share of its heads, those of the least product of norms of value and output. Where several
    heads read one head of keys, they go and stay together; a head's width stays.

    Raises:
        UsageError: the heads that are left do not divide the width, which transformers refuses.
    """
    groups, width = spec.num_heads // spec.num_kv_heads, spec.head_dim
    left = round((1 - share) * spec.num_kv_heads)
    fitting = [n for n in range(1, spec.num_kv_heads + 1) if spec.hidden_size % (n * groups) == 0]
    if left not in fitting:
        known = ", ".join(f"{1 - n / spec.num_kv_heads:.4g}" for n in reversed(fitting[:-1]))
        raise UsageError(
            f"--prune-heads {share:g} leaves {left * groups} heads, which do not divide a width of {spec.hidden_size}",
            f"use one of {known}",
        )
    made = dict(state)
    for layer in _layers(spec):
        gain = state[f"{layer}input_layernorm.weight"].float()
        value, output = (state[f"{layer}self_attn.{name}_proj.weight"] for name in ("v", "o"))
        norms = torch.unflatten(value * gain, 0, (spec.num_kv_heads, width)).norm(dim=(1, 2))
        kept = _best(norms * torch.unflatten(output, 1, (spec.num_kv_heads, groups * width)).norm(dim=(0, 2)), left)
        for name, rows in (("q", groups * width), ("k", width), ("v", width)):
            for part in ("weight", "bias"):
                path = f"{layer}self_attn.{name}_proj.{part}"
                if path in state:
                    made[path] = (
                        torch.unflatten(state[path], 0, (spec.num_kv_heads, rows))[kept].flatten(0, 1).contiguous()
                    )
        columns = torch.unflatten(output, 1, (spec.num_kv_heads, groups * width))[:, kept]
        made[f"{layer}self_attn.o_proj.weight"] = columns.flatten(1).contiguous()
    return made, replace(spec, num_heads=left * groups, num_kv_heads=left)


def tied(state: State, spec: LanguageSpec) -> tuple[State, LanguageSpec]:
    """The output layer takes the embedding's table. Where Llama's last norm makes its input, its gain takes over the
    size that the output layer had beside the table, by least squares."""
    made = dict(state)
    head, table = made.pop("lm_head.weight"), state[plugins.language(spec).TABLES[0]]
    if "model.norm.weight" in state and not spec.tie_word_embeddings:
        made["model.norm.weight"] = state["model.norm.weight"] * (head * table).sum() / table.square().sum()
    return made, replace(spec, tie_word_embeddings=True)


def _layers(spec: LanguageSpec) -> list[str]:
    return [f"{plugins.language(spec).LAYERS}{layer}." for layer in range(spec.num_layers)]


def _best(scores: torch.Tensor, count: int) -> torch.Tensor:
    """Indices of the highest scores, in their order."""
    return scores.argsort(descending=True, stable=True)[:count].sort().values
