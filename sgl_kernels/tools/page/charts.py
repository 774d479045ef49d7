"""Charts as inline SVG: bars beside labels, and lines over steps. No script, no font, no file besides the page."""

from __future__ import annotations

import html
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

PALETTE: tuple[str, ...] = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#7f7f7f")
"""Okabe and Ito's colours: told apart by colour-blind readers, and on light as on dark paper."""
WIDTH = 860
LABEL_WIDTH = 250
BAR_HEIGHT = 22


@dataclass(frozen=True, slots=True)
class Bar:
    """One bar: what it is, how long, and what to write behind it ('' writes the value)."""

    label: str
    value: float
    text: str = ""
    group: str = ""  # bars of one group share a colour


def bar_chart(bars: Sequence[Bar], unit: str = "", reference: float | None = None) -> str:
    """Horizontal bars from zero. `reference` draws a dashed line, such as 1.0 for 'as fast as torch'."""
    if not bars:
        return ""
    groups = list(dict.fromkeys(bar.group for bar in bars))
    peak = max([bar.value for bar in bars if math.isfinite(bar.value)] + [reference or 0.0]) or 1.0
    room = WIDTH - LABEL_WIDTH - 110
    parts = []
    for index, bar in enumerate(bars):
        y = index * (BAR_HEIGHT + 6) + 4
        length = max(0.0, bar.value) / peak * room if math.isfinite(bar.value) else 0.0
        colour = PALETTE[groups.index(bar.group) % len(PALETTE)]
        text = bar.text or f"{number(bar.value)} {unit}".strip()
        parts.append(
            f'<text x="{LABEL_WIDTH - 8}" y="{y + 15}" text-anchor="end">{html.escape(bar.label)}</text>'
            f'<rect x="{LABEL_WIDTH}" y="{y}" width="{length:.1f}" height="{BAR_HEIGHT}" rx="2" fill="{colour}"/>'
            f'<text x="{LABEL_WIDTH + length + 6:.1f}" y="{y + 15}">{html.escape(text)}</text>'
        )
    height = len(bars) * (BAR_HEIGHT + 6) + 8
    if reference is not None:
        x = LABEL_WIDTH + reference / peak * room
        parts.append(f'<line class="mark" x1="{x:.1f}" y1="0" x2="{x:.1f}" y2="{height}"/>')
    legend = _legend(groups, height) if len(groups) > 1 else ""
    return _svg(height + (24 if legend else 0), "".join(parts) + legend, _spoken(bars, unit))


def line_chart(series: Mapping[str, Sequence[float]], unit: str = "", x_label: str = "step") -> str:
    """One line for each series over its index, from zero: step times of a sampling loop, say."""
    lines = {name: [v for v in values if math.isfinite(v)] for name, values in series.items()}
    lines = {name: values for name, values in lines.items() if values}
    if not lines:
        return ""
    left, top, bottom, right = 70, 10, 240, WIDTH - 20
    peak = max(max(values) for values in lines.values()) or 1.0
    longest = max(len(values) for values in lines.values())
    parts = []
    for tick in range(5):
        y = bottom - (bottom - top) * tick / 4
        parts.append(
            f'<line class="grid" x1="{left}" y1="{y:.1f}" x2="{right}" y2="{y:.1f}"/>'
            f'<text x="{left - 8}" y="{y + 4:.1f}" text-anchor="end">{number(peak * tick / 4)}</text>'
        )
    for index, values in enumerate(lines.values()):
        step = (right - left) / max(1, longest - 1)
        points = " ".join(
            f"{left + i * step:.1f},{bottom - v / peak * (bottom - top):.1f}" for i, v in enumerate(values)
        )
        colour = PALETTE[index % len(PALETTE)]
        parts.append(f'<polyline points="{points}" fill="none" stroke="{colour}" stroke-width="2"/>')
    parts.append(f'<text x="{left}" y="{bottom + 18}">{html.escape(x_label)} 1</text>')
    parts.append(f'<text x="{right}" y="{bottom + 18}" text-anchor="end">{longest}</text>')
    parts.append(f'<text x="4" y="{top + 4}">{html.escape(unit)}</text>')
    spoken = "; ".join(
        f"{name}: {number(values[0])} to {number(values[-1])} {unit}" for name, values in lines.items()
    )
    return _svg(bottom + 54, "".join(parts) + _legend(list(lines), bottom + 26), spoken)


def number(value: float) -> str:
    """A number in as few characters as keep three figures."""
    if not math.isfinite(value):
        return str(value)
    if value == 0:
        return "0"
    size = abs(value)
    if size >= 1e5 or size < 1e-3:
        return f"{value:.2e}"
    return f"{value:,.{max(0, 2 - math.floor(math.log10(size)))}f}"


def _legend(names: Sequence[str], y: float) -> str:
    parts, x = [], float(LABEL_WIDTH)
    for index, name in enumerate(names):
        if not name:
            continue
        colour = PALETTE[index % len(PALETTE)]
        parts.append(
            f'<rect x="{x:.0f}" y="{y + 6:.0f}" width="12" height="12" rx="2" fill="{colour}"/>'
            f'<text x="{x + 17:.0f}" y="{y + 16:.0f}">{html.escape(name)}</text>'
        )
        x += 34 + 7.2 * len(name)
    return "".join(parts)


def _spoken(bars: Sequence[Bar], unit: str) -> str:
    return "; ".join(f"{bar.label}: {number(bar.value)} {unit}".strip() for bar in bars)


def _svg(height: float, body: str, spoken: str) -> str:
    return (
        f'<svg viewBox="0 0 {WIDTH} {height:.0f}" role="img" aria-label="{html.escape(spoken, quote=True)}">'
        f"{body}</svg>"
    )
