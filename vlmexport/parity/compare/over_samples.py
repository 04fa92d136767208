"""Run reference and bundle over samples, stage by stage, local and chained, and measure the difference."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence

from PIL import Image

from vlmexport.calibrate import Sample
from vlmexport.checkpoint.spec import ImageProcessorSpec
from vlmexport.parity.compare.clients import SIZES, Client
from vlmexport.parity.compare.machines import KernelDifference
from vlmexport.parity.compare.measured import Measured
from vlmexport.parity.compare.one_runtime import Side
from vlmexport.parity.compare.views import WithoutBudget
from vlmexport.parity.reference.values import Expected
from vlmexport.processing.image import process
from vlmexport.processing.prompt import Seen
from vlmexport.runtime import Runtime
from vlmexport.runtime.stages import F32, Repairing


class Comparison:
    """Reference against bundle.

    Args:
        expected: the float model's values.
        stock: of this many samples, the first ones, also what the bundle's library computes without our repairs,
            chained; where that makes no difference nothing is run twice.
        cores: the same bundle on other machines' kernels, by name; chained too.
        clients: who makes pixels of it; the cores are fed by the first alone.
        spec: the float model's image processor, to hold the pixels of pictures of all ``SIZES`` against it; none where
            it is None.
        without: the float model without the budget of views that both have.
    """

    def __init__(
        self,
        expected: Expected,
        bundle: Runtime,
        stock: int = 0,
        cores: Mapping[str, Runtime] | None = None,
        clients: Sequence[Client] = (),
        spec: ImageProcessorSpec | None = None,
        without: WithoutBudget | None = None,
    ) -> None:
        self.expected, self._spec, self._without = expected, spec, without
        self._bundle, self._first = Side(bundle, clients=clients), stock
        self._stock: Side | None = None
        self._cores = {name: Side(runtime, ("chained",), clients[:1]) for name, runtime in (cores or {}).items()}
        self._beside = {name: KernelDifference() for name in self._cores}
        self._seen: dict[str, Seen[F32]] = {}

    @property
    def measured(self) -> Measured:
        """Of the bundle."""
        return self._bundle.measured

    @property
    def stock(self) -> Measured | None:
        """Of the bundle without our repairs; None where there are none."""
        return self._stock.measured if self._stock else None

    @property
    def cores(self) -> dict[str, tuple[Measured, KernelDifference]]:
        """Of each core: against the float model, and against the bundle here."""
        return {name: (side.measured, self._beside[name]) for name, side in self._cores.items()}

    def run(self, samples: Sequence[Sample], advance: Callable[[], None] = lambda: None) -> None:
        """Compare over samples. Images that several samples share are computed once; their visual tokens stay in memory
        until the last of these samples, so neighbours should share them."""
        left = Counter(one.image_id for sample in samples for one in sample.alone())
        self._open_stock(samples[: self._first])
        if self._spec is not None and samples:
            self._sizes(samples[0].image(), self._spec)
        for number, sample in enumerate(samples):
            sides = [self._bundle, *self._cores.values()]
            if self._stock is not None and number < self._first:
                sides.append(self._stock)
            for one in sample.alone():
                if one.image_id not in self._seen:
                    self._image(one, sides)
            self._question(sample, sides)
            for one in sample.alone():
                left[one.image_id] -= 1
                if not left[one.image_id]:
                    self._forget(one.image_id)
            advance()

    def _sizes(self, image: Image.Image, spec: ImageProcessorSpec) -> None:
        for size in SIZES:
            picture = image.resize(size)
            self._bundle.pixels(picture, process(picture, spec, (1, 1)))

    def _open_stock(self, samples: Sequence[Sample]) -> None:
        runtime = self._bundle.runtime
        if self._stock is None and samples and isinstance(runtime, Repairing):
            images = {one.image_id: one for sample in samples for one in sample.alone()}.values()
            as_is = runtime.stock(one.image() for one in images)
            self._stock = None if as_is is None else Side(as_is, ("chained",), goes_on=True)

    def _forget(self, image: str) -> None:
        del self._seen[image]
        for side in (self._bundle, self._stock, self._without, *self._cores.values()):
            if side is not None:
                side.forget(image)

    def _image(self, sample: Sample, sides: list[Side]) -> None:
        expected, image = self.expected.image(sample), sample.image()
        self._seen[sample.image_id] = expected.seen
        for side in sides:
            side.image(sample.image_id, image, expected)
        self._compare_cores()

    def _question(self, sample: Sample, sides: list[Side]) -> None:
        seen = [self._seen[one.image_id] for one in sample.alone()]
        expected, tokens = self.expected.question(sample, seen), [one.tokens for one in seen]
        for side in sides:
            side.question(sample, expected, tokens)
        if self._without is not None:
            self._without.question(sample, expected, tokens)
        self._compare_cores()

    def _compare_cores(self) -> None:
        for name, side in self._cores.items():
            self._beside[name].add(self._bundle.values, side.values)
