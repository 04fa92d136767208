"""What was measured of a bundle."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import median
from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from vlmexport.artifact.bundle.summary import ParitySummary
from vlmexport.runtime.int8_kernels import Int8Kernels


class _Model(BaseModel):
    model_config = ConfigDict(extra="forbid")


class Spread(_Model):
    """Median, least and greatest of several measurements."""

    median: float
    low: float
    high: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread:
        """Of at least one value."""
        return cls(median=median(values), low=min(values), high=max(values))


class Component(_Model):
    """``vision`` (tower and projector) or ``decoder``, each in a process of its own."""

    name: str
    bytes: int = Field(description="Of its files.")
    peak_bytes: int | None = Field(description="Peak resident size of the process that runs it; None: not measurable.")


class BundleBench(_Model):
    """One bundle on this machine. Times are seconds."""

    bundle: str
    kind: str
    recipe: str
    runtime: str
    kernels: Int8Kernels | None = Field(None, description="That int8 products run on here; None where none are needed.")
    threads: int
    positions: int = Field(description="Length of the prompt: text and visual tokens.")
    views: int = Field(1, description="That the image is cut into.")
    new_tokens: int = Field(description="Length of an answer; 1 where it is a class.")
    bytes: int = Field(description="Of all files.")
    components: list[Component]
    cold: Spread = Field(description="Opening the bundle up to the first token, in a fresh process.")
    image: Spread = Field(description="Pixels, features and tokens of one image, warm.")
    prompt: Spread = Field(description="From visual tokens and question to the first token, warm.")
    token: Spread | None = Field(description="One more token, warm; None: an answer is a class.")
    decoder_prompt: Spread = Field(description="Of the prompt, the runtime's own calls: what its benchmarks measure.")
    decoder_token: Spread | None = Field(description="Of one more token, the same.")
    joules: Spread | None = Field(description="Energy of one warm answer; None: not measurable here.")
    parity: ParitySummary | None = Field(description="The last check's result, from the manifest.")

    @property
    def first_token(self) -> float:
        """Median seconds from an image to the first token, warm."""
        return self.image.median + self.prompt.median

    @property
    def prompt_rate(self) -> float:
        """Positions a second."""
        return self.positions / self.prompt.median

    @property
    def decode_rate(self) -> float | None:
        """Tokens a second; None where an answer is a class."""
        return 1 / self.token.median if self.token else None

    def facts(self) -> dict[str, Any]:
        """In plain data."""
        rates = {"first_token": self.first_token, "prompt_tokens_per_second": self.prompt_rate,
                 "decode_tokens_per_second": self.decode_rate}  # fmt: skip
        return self.model_dump(mode="json") | rates
