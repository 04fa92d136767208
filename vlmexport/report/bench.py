"""What bundles cost, side by side on the terminal, and as a plot of size against parity and speed."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from rich.table import Table

from vlmexport.bench import BundleBench, Spread
from vlmexport.report.scatter import Panel, Point, svg

_MEGA, _MILLI = 1e-6, 1e3
NOT_MEASURABLE = "not measurable here"
ANSWERS_AT_ONCE = "answers at once"


def table(found: Sequence[BundleBench]) -> Table:
    """A column for each bundle, medians with least and greatest."""
    new_tokens = max(one.new_tokens for one in found)
    shown = Table(title=f"{found[0].threads} threads, {new_tokens} new tokens", title_justify="left")
    shown.add_column("")
    for one in found:
        shown.add_column(f"{one.bundle}\n{one.runtime}", justify="right")
    for name, cell in _ROWS.items():
        shown.add_row(name, *(cell(one) for one in found))
    shown.caption = (
        "median (least–greatest); cold: a fresh process opens the bundle, whose files the system has read before"
    )
    shown.caption_justify = "left"
    return shown


def plot(found: Sequence[BundleBench]) -> str:
    """SVG: size against the KL divergence of the last check, and against tokens a second."""
    losses = {one.bundle: kld(one) for one in found}
    parity = [Point(one.bundle, one.bytes * _MEGA, loss) for one in found if (loss := losses[one.bundle])]
    speed = [Point(one.bundle, one.bytes * _MEGA, rate) for one in found if (rate := one.decode_rate)]
    panels = [
        Panel("parity: mean KL divergence, lower is better", "MB", "nats", parity, is_log=True),
        Panel("speed: tokens a second, higher is better", "MB", "tokens/s", speed),
    ]
    return svg([panel for panel in panels if panel.points])


def unchecked(found: Sequence[BundleBench]) -> list[str]:
    """Bundles that no check was run on, so that the plot cannot show their parity."""
    return [one.bundle for one in found if kld(one) is None]


def kld(one: BundleBench) -> float | None:
    """Mean KL divergence of the last check, in nats."""
    return one.parity.stages.get("logits", {}).get("kld") if one.parity else None


def _milliseconds(spread: Spread) -> str:
    low, middle, high = (f"{value * _MILLI:.1f}" for value in (spread.low, spread.median, spread.high))
    return f"{middle} ({low}–{high})"


def _memory(name: str) -> Callable[[BundleBench], str]:
    def cell(one: BundleBench) -> str:
        component = next(part for part in one.components if part.name == name)
        peak = "?" if component.peak_bytes is None else f"{component.peak_bytes * _MEGA:.0f}"
        return f"{component.bytes * _MEGA:.1f}, {peak}"

    return cell


def _energy(one: BundleBench) -> str:
    return NOT_MEASURABLE if one.joules is None else f"{one.joules.median:.1f}"


def _parity(one: BundleBench) -> str:
    if one.parity is None:
        return "not checked"
    loss = kld(one)
    verdict = "pass" if one.parity.passed else f"FAIL at {one.parity.broken_stage}"
    return verdict if loss is None else f"{verdict}, KLD {loss:.2g}"


_ROWS: dict[str, Callable[[BundleBench], str]] = {
    "int8 kernels": lambda one: str(one.kernels) if one.kernels else "none",
    "files, MB": lambda one: f"{one.bytes * _MEGA:.1f}",
    "vision: files, peak memory, MB": _memory("vision"),
    "decoder: files, peak memory, MB": _memory("decoder"),
    "image, ms": lambda one: _milliseconds(one.image) + (f", {one.views} views" if one.views > 1 else ""),
    "prompt, ms": lambda one: _milliseconds(one.prompt),
    "prompt, the runtime alone, ms": lambda one: _milliseconds(one.decoder_prompt),
    "image to first token, ms": lambda one: f"{one.first_token * _MILLI:.1f}",
    "the same, cold, ms": lambda one: _milliseconds(one.cold),
    "prompt, tokens/s": lambda one: f"{one.prompt_rate:.0f} (of {one.positions})",
    "token, ms": lambda one: _milliseconds(one.token) if one.token else ANSWERS_AT_ONCE,
    "token, the runtime alone, ms": lambda one: _milliseconds(one.decoder_token) if one.decoder_token else "",
    "decode, tokens/s": lambda one: f"{one.decode_rate:.1f}" if one.decode_rate else ANSWERS_AT_ONCE,
    "energy of an answer, J": _energy,
    "last check": _parity,
}
