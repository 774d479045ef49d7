"""Tables of the documentation that are written by the program, between marker comments."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

from benchmarks.pages import machines
from sgl_kernels.core.registry import registry
from sgl_kernels.core.settings.listing import default_text
from sgl_kernels.core.settings.variables import TABLE
from sgl_kernels.tools.inventory import backends_table, inventory
from sgl_kernels.tools.page.html import Table, markdown_table

MARKER = re.compile(r"(<!-- begin:(?P<name>[\w-]+) -->\n).*?(<!-- end:(?P=name) -->)", re.DOTALL)
BEGIN = re.compile(r"<!-- begin:([\w-]+) -->")


def backends() -> str:
    """Every backend: where it runs, what it needs, which result to expect."""
    found = backends_table(registry)
    rows = [(f"`{row[0]}`", *row[1:3], _code(row[3]), *row[4:6], _code(row[6])) for row in found.rows]
    return markdown_table(Table("", found.columns, rows))


def ops() -> str:
    """Every op with its meaning."""
    found = inventory(["ops"])["ops"]
    return markdown_table(Table("", ("op", "meaning"), [(f"`{row[0]}`", row[2]) for row in found.rows]))


def env() -> str:
    """Every environment variable, by section."""
    parts = []
    for section in dict.fromkeys(row.section for row in TABLE if row.name):
        rows = [
            (
                f"`{row.name}`",
                _plain(default_text(row)),
                row.accepted,
                row.meaning,
                "" if row.implemented else "not yet",
            )
            for row in TABLE
            if row.name and row.section == section
        ]
        columns = ("variable", "default", "accepted", "meaning", "status")
        parts.append(f"**{section}**\n\n{markdown_table(Table('', columns, rows))}")
    return "\n\n".join(parts)


def aliases() -> str:
    """What people call the backends elsewhere."""
    found = inventory(["aliases"])["aliases"]
    return markdown_table(Table("", found.columns, [(f"`{a}`", _code(b)) for a, b in found.rows]))


MAKERS: dict[str, Callable[[], str]] = {
    "backends": backends,
    "ops": ops,
    "env": env,
    "aliases": aliases,
    "machines": machines.render,
}


def _code(text: object) -> str:
    return ", ".join(f"`{part}`" for part in str(text).split(", ") if part)


def _plain(text: str) -> str:
    return f"`{text}`" if text and " " not in text else text


def refreshed(text: str, path: str = "") -> str:
    """`text` with every marked table written anew. Raises ValueError for a marker nobody knows or closes."""
    closed = {match["name"] for match in MARKER.finditer(text)}
    for name in BEGIN.findall(text):
        if name not in MAKERS:
            raise ValueError(
                f"{path}: the marker 'begin:{name}' is not known, expected one of {', '.join(MAKERS)}; correct it"
            )
        if name not in closed:
            raise ValueError(
                f"{path}: the marker 'begin:{name}' has no '<!-- end:{name} -->' after it; add one"
            )
    return MARKER.sub(lambda match: f"{match[1]}{MAKERS[match['name']]()}\n{match[3]}", text)


def marked_files(root: Path) -> list[Path]:
    """README.md and the pages of docs/ that hold a marker."""
    candidates = [root / "README.md", *sorted((root / "docs").glob("*.md"))]
    return [path for path in candidates if path.is_file() and BEGIN.search(path.read_text(encoding="utf-8"))]
