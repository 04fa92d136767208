"""FastViT's tensors: which published sizes there are, and under which names Apple and timm publish them.

Canonical are timm's names. Apple counts stages, what makes a map smaller, and what tells positions in one list,
``network``; timm has stages that hold all three.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

from vlmexport.errors import Unsupported


@dataclass(frozen=True)
class Sizes:
    """Blocks and channels of each stage."""

    blocks: tuple[int, ...]
    widths: tuple[int, ...]

    @property
    def features(self) -> int:
        """Channels of the last map: the last convolution doubles them."""
        return 2 * self.widths[-1]


SIZES = {
    "mci3": Sizes((2, 12, 24, 4, 2), (96, 192, 384, 768, 1536)),
    "mci4": Sizes((2, 12, 24, 4, 4), (128, 256, 512, 1024, 2048)),
    "tiny": Sizes((1, 2, 1, 1, 1), (16, 16, 32, 32, 64)),
}
"""timm's name after ``fastvit_`` → sizes; ``mci3`` is FastViTHD, ``tiny`` is for tests."""

_STAGES = {0: 0, 1: 1, 2: 1, 3: 2, 4: 2, 5: 3, 6: 3, 7: 3, 8: 4, 9: 4, 10: 4}
"""Apple's place in ``network`` → stage."""

_RENAMED = (
    ("patch_embed.", "stem."), ("conv_exp.", "final_conv."), (".convffn.", ".mlp."), (".se.reduce.", ".se.fc1."),
    (".se.expand.", ".se.fc2."), (".lkb_reparam.", ".reparam_conv."), (".lkb_origin.", ".large_conv."),
    (".rbr_conv.", ".conv_kxk."), (".rbr_scale.", ".conv_scale."), (".rbr_skip.", ".identity."),
    (".activation.", ".act."),
)  # fmt: skip
_SCALE = re.compile(r"\.layer_scale(_[12])?$")
_PLACE = re.compile(r"network\.(\d+)\.(proj|pe|reparam_conv|\d+)\.")
_BLOCK = re.compile(r"stages\.(\d+)\.blocks\.\d+\.mlp\.fc1\.weight")


def variant_of(shapes: Mapping[str, tuple[int, ...]], where: str) -> str:
    """The key of ``SIZES`` that a tower's tensors show.

    Args:
        shapes: by timm's names.
        where: the tower's place, for messages.

    Raises:
        Unsupported: other sizes; the message says which are known.
    """
    widths = sorted((int(found[1]), shapes[name][1]) for name in shapes if (found := _BLOCK.fullmatch(name)))
    stages = sorted(set(widths))
    seen = Sizes(tuple(widths.count(stage) for stage in stages), tuple(width for _, width in stages))
    for name, sizes in SIZES.items():
        if sizes == seen:
            return name
    raise Unsupported(
        f"{where}: a FastViT of {seen.blocks} blocks, {seen.widths} wide is not known", f"known: {', '.join(SIZES)}"
    )


def timm_name(name: str) -> str:
    """Apple's name of a tensor → timm's; one that is timm's stays as it is.

    Args:
        name: without what comes before ``patch_embed``, ``network``, ``conv_exp`` or ``head``.
    """
    name = _SCALE.sub(r".layer_scale\1.gamma", _PLACE.sub(_in_stage, name))
    for old, new in _RENAMED:
        name = name.replace(old, new)
    return name


def _in_stage(found: re.Match[str]) -> str:
    number, part = int(found[1]), found[2]
    if number not in _STAGES:
        return found[0]
    inside = {"proj": "downsample.proj", "pe": "pos_emb.pos_enc", "reparam_conv": "pos_emb.reparam_conv"}
    return f"stages.{_STAGES[number]}.{inside.get(part, f'blocks.{part}')}."
