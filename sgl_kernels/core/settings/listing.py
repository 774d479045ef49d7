"""What every setting is and where its value came from, for the command line and for docs/settings.md."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from .layer import policy_ops, split_policy_key
from .settings import Settings
from .variable import Variable, show
from .variables import TABLE


@dataclass(frozen=True, slots=True)
class Described:
    """One line of `sgl-kernels env`."""

    name: str
    value: str
    origin: str
    default: str
    meaning: str
    status: str  # "active" or "not yet"
    section: str
    key: str
    accepted: str


def describe(settings: Settings, environ: Mapping[str, str]) -> list[Described]:
    """Every environment variable with its value, where that came from, its default and its meaning.

    `environ` tells a variable that is set to nothing from one that is not set. Secrets are masked.
    """
    return [_describe(row, settings, environ) for row in TABLE if row.name]


def _describe(row: Variable, settings: Settings, environ: Mapping[str, str]) -> Described:
    origin = settings.origin(row.key)
    about = split_policy_key(row.key)
    if about is not None and settings.value(row.key):
        origin = settings.policy(policy_ops(about[0])[0]).origin or origin
    if row.key.startswith("cache_dit.secondary.") and origin == "built-in":
        origin = f"from primary ({settings.origin(row.key.replace('.secondary', ''))})"
    elif origin == "built-in" and row.name in environ:
        origin = "built-in (the variable is empty)"
    value = show(row, settings.value(row.key))
    return Described(
        name=row.name,
        value=value or "not set",
        origin=origin,
        default=default_text(row),
        meaning=row.meaning,
        status="active" if row.implemented else "not yet",
        section=row.section,
        key=row.key,
        accepted=row.accepted,
    )


def default_text(row: Variable) -> str:
    """The default as the listing prints it."""
    return row.default_text or show(row, row.default) or "not set"


def markdown() -> str:
    """The table of variables for docs/settings.md, one part for each section of the user's page."""
    lines: list[str] = []
    for section in dict.fromkeys(row.section for row in TABLE):
        lines += [
            f"### {section}",
            "",
            "| Variable | Key in a file | Default | Accepted | Meaning | Status |",
        ]
        lines.append("|---|---|---|---|---|---|")
        for row in TABLE:
            if row.section == section:
                name = f"`{row.name}`" if row.name else "(files only)"
                key = f"`{row.key}`" if row.in_file else "not in files"
                status = "active" if row.implemented else "not yet"
                default = default_text(row).replace("|", "\\|")
                lines.append(f"| {name} | {key} | {default} | {row.accepted} | {row.meaning} | {status} |")
        lines.append("")
    return "\n".join(lines)
