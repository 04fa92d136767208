"""Static int8 schemes: what torch's ``fbgemm`` and ``qnnpack`` configurations mean, as integers.

Weights are signed and symmetric in all of them. Activations are affine. torch's ``fbgemm`` narrows activations to
0…127 (``reduce_range``) because ``vpmaddubsw`` of AVX2 saturates at int16. Half the levels cost 6 dB of every input, so
activations keep all 256 here, and weights make room where it is needed (``pair_max``, chosen by ``quantize.choice``).
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from vlmexport.errors import UsageError


@dataclass(frozen=True)
class Scheme:
    """Integers of activations and weights."""

    name: str
    activation_min: int
    activation_max: int
    weight_min: int
    weight_max: int
    per_channel: bool
    eps: float
    """The smallest scale of activations."""
    pair_max: int | None = None
    """The largest |v + w| of two weights of an output that are multiplied by neighbouring inputs; None: any."""

    @property
    def signed(self) -> bool:
        """Activations are int8, else uint8."""
        return self.activation_min < 0

    @property
    def steps(self) -> int:
        """Steps between the lowest and the highest activation."""
        return self.activation_max - self.activation_min

    def with_pairs(self, pair_max: int | None) -> Scheme:
        """The same with a bound on pairs of weights."""
        return replace(self, pair_max=pair_max)


_EPS = 2.0**-23
_SCHEMES = (
    Scheme("fbgemm", 0, 255, -128, 127, True, _EPS),
    Scheme("qnnpack", -128, 127, -127, 127, True, 2.0**-12),
    Scheme("qnnpack-per-tensor", 0, 255, -128, 127, False, _EPS),
)


def find_scheme(name: str) -> Scheme:
    """A scheme by its recipe name.

    Raises:
        UsageError: there is none.
    """
    for scheme in _SCHEMES:
        if scheme.name == name:
            return scheme
    known = ", ".join(scheme.name for scheme in _SCHEMES)
    raise UsageError(f"there is no int8 scheme {name!r}", f"known: {known}")
