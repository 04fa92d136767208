"""The result of a check, as it is written to ``parity.json``."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from vlmexport.bench.result import Component
from vlmexport.calibrate.samples import Task
from vlmexport.measures.stage_result import GateResult, Mode, StageResult
from vlmexport.runtime.int8_kernels import Int8Kernels


class _Model(BaseModel):
    model_config = ConfigDict(extra="forbid")


class Change(GateResult):
    """A measure held against an earlier one; ``bound`` is what that one and the slack allow."""

    old: float


class Answer(_Model):
    """One question, answered by both. ``first_difference`` is a token index; ``margin`` the reference's there.

    ``decisions`` are the tokens that both chose after the same text, the one where they part included; ``lost`` is how
    much the reference preferred its own token there (``measures.logits.preference``), 0 where the answers are equal.

    ``expected`` are the answers that are right, none where that is not known.
    ``kld`` is the mean KL divergence over the positions of the float model's answer, in nats.
    """

    sample: str
    question: str
    expected: list[str]
    task: Task = "exact"
    reference: str
    bundle: str
    equal: bool
    first_difference: int | None = None
    margin: float | None = None
    decisions: int = Field(1, ge=1)
    lost: float = 0.0
    kld: float | None = None


class View(_Model):
    """A view of a picture: what it shows, and how well each patch and each visual token of it arrived, chained."""

    box: tuple[float, float, float, float] = Field(description="Left, top, right and bottom, in pixels of the JPEG.")
    cosines: dict[str, list[float]] = Field(description="Stage → cosine of each row.")
    grids: dict[str, tuple[int, int]] = Field(
        description="Stage → rows and columns in which these lie in the view; without a stage whose rows lie nowhere."
    )


class Picture(_Model):
    """An image as the model sees it."""

    image: str
    rank: Literal["worst", "median"]
    views: list[View]
    jpeg: str = Field(description="Base64, the longest side of 224 pixels.")
    size: tuple[int, int] = Field(description="Width and height of the JPEG.")
    stretched: bool = Field(False, description="Whether it is drawn wider, or higher, than it is: a strip.")


class StockResult(_Model):
    """The bundle as the installed library computes it without our repairs, chained, on the first samples."""

    samples: int
    stages: list[StageResult]
    gates: list[GateResult]
    passed: bool
    broken_stage: str | None


class ViewsResult(_Model):
    """What a budget of views costs by itself: the float model under it, held against itself with all views of a
    picture. It is told and not judged.

    Attributes:
        most: views of a picture, at most, under the budget; ``without``: and without it, None where there is no limit.
        stages: logits and answers. What belongs to the float model with all views is called ``reference_``.
    """

    most: int
    without: int | None
    samples: int
    stages: list[StageResult]


class BaselineResult(_Model):
    """An earlier result of the same comparison. ``stages`` are its own; ``slack`` is a share of its losses."""

    bundle: str
    versions: dict[str, str]
    slack: float
    stages: list[StageResult]
    changes: list[Change]
    passed: bool


class Inputs(_Model):
    """What was compared: two results are of the same comparison where all but ``files`` is equal."""

    weights: dict[str, str] = Field(description="Of the float model: file name → BLAKE3.")
    files: dict[str, str] = Field(description="Of the bundle: path → SHA-256.")
    samples: str = Field(description="SHA-256 of the samples' ids, questions and right answers.")
    images: dict[str, str] = Field(description="Image → SHA-256 of its file, or what it was drawn from.")
    spec: dict[str, Any] = Field(description="What the float model's configuration and preprocessor say.")

    @property
    def model(self) -> tuple[dict[str, str], dict[str, Any]]:
        """What tells the float model."""
        return self.weights, self.spec


class CoreResult(_Model):
    """The bundle on a core of another machine, chained: against the float model, and against the run here.

    Attributes:
        beside: of each stage, the share of values that are the same to the bit as here (of answers, the share that are
            equal token by token), and the largest difference.
    """

    core: str
    runtime: str
    kernels: Int8Kernels | None = None
    stages: list[StageResult]
    gates: list[GateResult]
    answers: list[Answer]
    passed: bool
    broken_stage: str | None
    beside: list[StageResult]


class LayerFault(_Model):
    """A layer, by its path in the float model, and what is wrong with it."""

    layer: str
    stage: str
    what: str


class WeightsResult(_Model):
    """Int8 weights held against the float model's.

    Attributes:
        layers: stage → how many of its layers were compared.
        not_compared: layers whose float weight the checkpoint does not hold as it is.
        faults: layers whose weight is no rounding of it, in the order in which they run.
    """

    layers: dict[str, int]
    not_compared: list[str]
    faults: list[LayerFault]


class LayerDifference(_Model):
    """A layer's output beside the float model's, both components fed the same; ``nmse`` None where it is no number."""

    layer: str
    stage: str
    nmse: float | None
    note: str | None = None


class LayerLoss(_Model):
    """What a layer costs that alone is int8 in the float model: ``metric`` of the stage, nmse or kld."""

    layer: str
    stage: str
    metric: str
    loss: float


class BisectResult(_Model):
    """Layer by layer, on one sample.

    Attributes:
        layers: in the order in which they run.
        first: stage → the first layer of it that diverges; none where its layers are right.
        losses: int8 layers, the most expensive first.
    """

    sample: str
    layers: list[LayerDifference]
    first: dict[str, str]
    losses: list[LayerLoss] = Field(default_factory=list)


class ParityResult(_Model):
    """``parity.json``. ``stock`` is None where nothing was repaired; with ``strict_stock`` it counts in ``passed``.

    Where the bundle ran on other cores too, ``passed`` and ``broken_stage`` are theirs; all else is of the run here.
    """

    schema_version: Literal[3] = 3
    bundle: str
    kind: str
    recipe: str
    target: str
    reference: str
    runtime: str
    kernels: Int8Kernels | None = Field(None, description="That int8 layers ran on; None where there are none.")
    notes: list[str]
    data: str = Field("held-out scenes", description="Where the samples are from.")
    samples: int
    images: int
    stages: list[StageResult]
    gates: list[GateResult]
    answers: list[Answer]
    passed: bool
    broken_stage: str | None
    seconds: float
    stock: StockResult | None = None
    strict_stock: bool = False
    inputs: Inputs
    versions: dict[str, str]
    baseline: BaselineResult | None = None
    pictures: list[Picture] = Field(default_factory=list, description="The worst image and the median one.")
    cores: list[CoreResult] = Field(default_factory=list)
    components: list[Component] = Field(default_factory=list, description="Empty where memory was not asked for.")
    bisect: BisectResult | None = Field(None, description="None where --bisect was not asked for.")
    views: ViewsResult | None = Field(None, description="None without a budget of views, or where it was not recorded.")
    weights: WeightsResult | None = Field(None, description="None where no layer is int8, or no float model at hand.")

    def metric(self, stage: str, metric: str, mode: Mode = "chained") -> float | None:
        """One measured value."""
        for result in self.stages:
            if result.stage == stage and result.mode == mode:
                return result.metrics.get(metric)
        return None
