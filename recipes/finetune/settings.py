"""What a run is asked to do; everything here but the places decides what comes out."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from vlmexport.errors import UsageError

STAGES = {"projector": (1e-3, 0.0), "projector+language": (1e-3, 2e-5), "instruct": (4e-5, 4e-5)}
"""Stage → learning rates of projector and language model. The first two are pre-training on captions as MobileVLM
(arXiv:2312.16886) and MobileVLM V2 (arXiv:2402.03766) do it, the last is V2's multi-task training."""

_PLACES = ("output", "features", "force", "threads", "save_every")


@dataclass(frozen=True)
class Settings:
    """The options of ``train.py``, by their names there."""

    model: str
    output: Path
    vision_tower: str | None = None
    data: str = "scenes"
    stage: str = "instruct"
    teacher: str | None = None
    teacher_weight: float = 0.5
    temperature: float = 2.0
    prune: float = 0.0
    prune_heads: float = 0.0
    prune_channels: float = 0.0
    tie: bool = False
    mixed: str | None = None
    qat: Path | None = None
    steps: int = 300
    batch: int = 4
    rate: float | None = None
    seed: int = 0
    features: Path | None = None
    force: bool = False
    threads: int = 2
    save_every: int = 100

    @property
    def rates(self) -> tuple[float, float]:
        """Of projector and language model; ``rate`` takes the place of those that are not 0."""
        projector, language = STAGES[self.stage]
        if self.rate is None:
            return projector, language
        return self.rate, self.rate if language else 0.0

    def facts(self) -> dict[str, Any]:
        """What decides the result, as JSON holds it; a run is resumed where this is the same."""
        found = asdict(self)
        return {key: str(value) if isinstance(value, Path) else value
                for key, value in found.items() if key not in _PLACES}  # fmt: skip

    def check(self) -> None:
        """Refuse what cannot be, before anything is read.

        Raises:
            UsageError: names the option.
        """
        for name, most in (("prune", 0.99), ("prune_heads", 0.99), ("prune_channels", 0.99), ("teacher_weight", 1.0)):
            if not 0 <= getattr(self, name) <= most:
                option = name.replace("_", "-")
                raise UsageError(f"--{option} {getattr(self, name):g} is no share", f"pass a number from 0 to {most:g}")
        for name in ("batch", "threads", "save_every", "temperature"):
            if getattr(self, name) <= 0:
                raise UsageError(f"--{name.replace('_', '-')} is {getattr(self, name)}", "pass a positive number")
        if self.steps < 0 or (self.rate is not None and self.rate <= 0):
            raise UsageError("--steps or --rate is negative", "pass a positive number")
        if self.qat and (self.prune_heads or self.prune_channels or self.tie):
            raise UsageError(
                "--qat takes the scales of a bundle, and the model that it was made from must keep its shape",
                "prune or tie first, export what comes out, and pass that bundle",
            )
        if not self.rates[1] and (self.prune or self.prune_heads or self.prune_channels or self.tie):
            raise UsageError(
                f"the stage {self.stage} leaves the language model as it is", "use the stage projector+language"
            )
