from __future__ import annotations

from vlmexport.report.heat import opacity
from vlmexport.report.histogram import histogram


def test_every_value_is_in_a_bar() -> None:
    values = [0.0, 1e-12, 2e-5, 2.1e-5, 0.3, 5.0, 1e9]
    bars = histogram(values)
    assert sum(bar.count for bar in bars) == len(values)
    assert (bars[0].count, bars[-1].count) == (2, 2)
    (found,) = (bar for bar in bars if bar.count and 1e-6 < bar.low < 1e-4)
    assert found.low <= 2e-5 < found.high
    assert max(bar.share for bar in bars) == 1
    assert [bar.high for bar in bars[:-1]] == [bar.low for bar in bars[1:]]


def test_no_values_no_bars() -> None:
    assert histogram([]) == []


def test_opacity_follows_the_logarithm_of_the_loss() -> None:
    assert [opacity(1 - loss) for loss in (0.0, 1e-5, 1e-3, 0.1, 1.0, 2.0)] == [0.0, 0.0, 0.3, 0.9, 0.9, 0.9]
    assert opacity(float("nan")) == 0.9
