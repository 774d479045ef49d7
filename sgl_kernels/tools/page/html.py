"""Reports for people: a self-contained HTML page out of sections, and what ran as a rich table."""

from __future__ import annotations

import base64
import html
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from sgl_kernels.core.wrapping.record import Report
from sgl_kernels.tools.page.charts import Bar, bar_chart, line_chart

if TYPE_CHECKING:
    from rich.table import Table as RichTable

TONES: tuple[str, ...] = ("", "good", "bad", "warn", "muted")
MIME = {".png": "image/png", ".jpg": "image/jpeg", ".jpeg": "image/jpeg", ".svg": "image/svg+xml"}


@dataclass(frozen=True, slots=True)
class Mark:
    """A table cell with a tone: 'good', 'bad', 'warn' or 'muted'. `hint` shows on hovering."""

    text: str
    tone: str = ""
    hint: str = ""

    def __str__(self) -> str:
        return self.text


@dataclass(frozen=True, slots=True)
class Text:
    """Paragraphs; a blank line starts a new one."""

    title: str
    body: str


@dataclass(frozen=True, slots=True)
class Code:
    """Text with its line breaks kept."""

    title: str
    body: str


@dataclass(frozen=True, slots=True)
class Table:
    """Rows under column names. A cell is anything with a str(), or a Mark."""

    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[object]]
    note: str = ""


@dataclass(frozen=True, slots=True)
class Picture:
    """An image carried inside the page."""

    title: str
    data: bytes = field(repr=False)
    mime: str = "image/png"
    caption: str = ""


@dataclass(frozen=True, slots=True)
class Bars:
    """Horizontal bars; `reference` draws a dashed line."""

    title: str
    bars: Sequence[Bar]
    unit: str = ""
    reference: float | None = None
    note: str = ""


@dataclass(frozen=True, slots=True)
class Lines:
    """Values over steps, one line for each name: step times of stock and of ours, say."""

    title: str
    series: Mapping[str, Sequence[float]]
    unit: str = ""
    x_label: str = "step"
    note: str = ""


Section = Text | Code | Table | Picture | Bars | Lines


def picture(path: str | Path, title: str, caption: str = "") -> Picture:
    """An image file as a section. Raises ValueError for a kind browsers do not show."""
    path = Path(path)
    mime = MIME.get(path.suffix.lower())
    if mime is None:
        raise ValueError(f"picture is {path.name!r}, expected a file that ends in {', '.join(MIME)}")
    return Picture(title, path.read_bytes(), mime, caption)


def ran(report: Report, title: str = "What ran") -> Table:
    """A `sgl_kernels.report()` as a section: op, backend, calls, time, shapes and the reason."""
    rows = [
        (
            entry.op,
            entry.backend,
            f"{entry.calls:,}" if entry.calls else "",
            f"{entry.seconds * 1e3:,.2f}" if entry.calls else "",
            entry.dtype,
            entry.shapes,
            entry.why,
        )
        for entry in report.entries
    ]
    note = "" if rows else "Nothing was recorded: call inside `with sgl_kernels.record():`."
    return Table(title, ("op", "backend", "calls", "ms", "dtype", "shapes", "why"), rows, note)


def rich_table(table: Table) -> RichTable:
    """A table section for the terminal."""
    from rich.markup import escape
    from rich.table import Table as RichTable

    colours = {"good": "green", "bad": "bold red", "warn": "yellow", "muted": "dim"}
    result = RichTable(title=table.title or None, caption=table.note or None, title_justify="left")
    for index, name in enumerate(table.columns):
        numeric = bool(table.rows) and all(_is_number(str(row[index])) for row in table.rows)
        result.add_column(name, justify="right" if numeric else "left", overflow="fold")
    for row in table.rows:
        cells = []
        for cell in row:
            text = escape(str(cell))
            colour = colours.get(cell.tone) if isinstance(cell, Mark) else None
            cells.append(f"[{colour}]{text}[/{colour}]" if colour else text)
        result.add_row(*cells)
    return result


def markdown_table(table: Table) -> str:
    """A table section as GitHub Markdown, without its title."""

    def line(cells: Iterable[object]) -> str:
        return "| " + " | ".join(str(c).replace("|", "\\|").replace("\n", " ") for c in cells) + " |"

    return "\n".join([line(table.columns), line(["---"] * len(table.columns)), *map(line, table.rows)])


def render_html(sections: Iterable[Section], *, title: str = "sgl_kernels report", subtitle: str = "") -> str:
    """One HTML page with everything inside it: no script, no font, no file or address besides."""
    body = "\n".join(_section(section) for section in sections)
    under = f'<p class="muted">{html.escape(subtitle)}</p>' if subtitle else ""
    return (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        f'<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{html.escape(title)}</title><style>{STYLE}</style></head>\n"
        f"<body><h1>{html.escape(title)}</h1>{under}\n{body}\n</body></html>\n"
    )


def _section(section: Section) -> str:
    heading = f"<h2>{html.escape(section.title)}</h2>" if section.title else ""
    if isinstance(section, Text):
        inner = "".join(f"<p>{html.escape(p)}</p>" for p in section.body.split("\n\n") if p.strip())
    elif isinstance(section, Code):
        inner = f"<pre>{html.escape(section.body)}</pre>"
    elif isinstance(section, Table):
        inner = _table(section) + _note(section.note)
    elif isinstance(section, Picture):
        data = base64.b64encode(section.data).decode("ascii")
        alt = html.escape(section.caption or section.title, quote=True)
        inner = f'<figure><img alt="{alt}" src="data:{section.mime};base64,{data}"></figure>'
        inner += _note(section.caption)
    elif isinstance(section, Bars):
        inner = bar_chart(section.bars, section.unit, section.reference) + _note(section.note)
    else:
        inner = line_chart(section.series, section.unit, section.x_label) + _note(section.note)
    return f"<section>{heading}{inner}</section>"


def _note(text: str) -> str:
    return f'<p class="muted">{html.escape(text)}</p>' if text else ""


def _table(table: Table) -> str:
    if not table.rows:
        return ""
    head = "".join(f"<th>{html.escape(name)}</th>" for name in table.columns)
    rows = "".join("<tr>" + "".join(map(_cell, row)) + "</tr>" for row in table.rows)
    return f'<div class="scroll"><table><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table></div>'


def _cell(cell: object) -> str:
    names = []
    hint = ""
    if isinstance(cell, Mark):
        names.append(cell.tone)
        hint = f' title="{html.escape(cell.hint, quote=True)}"' if cell.hint else ""
    if _is_number(str(cell)):
        names.append("number")
    names = [name for name in names if name]
    kind = f' class="{" ".join(names)}"' if names else ""
    return f"<td{kind}{hint}>{html.escape(str(cell))}</td>"


def _is_number(text: str) -> bool:
    head = text.strip().removesuffix("%").removesuffix("x").strip().replace(",", "")
    if not head:
        return True  # an empty cell does not decide the side of its column
    try:
        float(head)
    except ValueError:
        return False
    return True


STYLE = """
:root { color-scheme: light dark; --line: #8884; --muted: #777; --good: #17823b; --bad: #c62828; --warn: #a86500; }
@media (prefers-color-scheme: dark) { :root { --good: #6fd08c; --bad: #ff8a80; --warn: #ffc46b; --muted: #999; } }
body { font: 15px/1.5 system-ui, sans-serif; max-width: 72rem; margin: 2rem auto; padding: 0 1rem; }
h1 { font-size: 1.7rem; margin-bottom: .2rem; } h2 { font-size: 1.2rem; margin: 2rem 0 .6rem; }
.muted { color: var(--muted); } .good { color: var(--good); } .bad { color: var(--bad); font-weight: 600; }
.warn { color: var(--warn); } .number { text-align: right; font-variant-numeric: tabular-nums; }
.scroll { overflow-x: auto; } table { border-collapse: collapse; font-size: .92em; }
th, td { border-bottom: 1px solid var(--line); padding: .25rem .7rem .25rem 0; text-align: left; vertical-align: top; }
pre { overflow-x: auto; border: 1px solid var(--line); border-radius: 4px; padding: .7rem; font-size: .88em; }
figure { margin: 0; } img { max-width: 100%; image-rendering: pixelated; }
svg { max-width: 54rem; width: 100%; font: 12px system-ui, sans-serif; }
svg text { fill: currentColor; } svg .grid { stroke: var(--line); }
svg .mark { stroke: currentColor; stroke-dasharray: 4 4; }
"""
