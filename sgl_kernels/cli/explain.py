"""sgl-kernels explain: which backend would serve a call, and a reason against every other."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Any

import typer

from sgl_kernels.cli import _common
from sgl_kernels.cli._common import Json


def explain(
    op: Annotated[str, typer.Argument(help="An op of `sgl-kernels list ops`.")],
    shape: Annotated[
        str | None, typer.Option(help="Of q, as batch,seqlen,heads,head_dim; else of x.")
    ] = None,
    kv_shape: Annotated[str | None, typer.Option(help="Of k and v, where it differs from q.")] = None,
    dtype: Annotated[str, typer.Option(help="bfloat16, float16, float32 or float64.")] = "bfloat16",
    device: Annotated[
        str | None,
        typer.Option(help="A machine you need not have: cuda:sm90, rocm:gfx942, mps:m3, cpu:avx512."),
    ] = None,
    backend: Annotated[str | None, typer.Option(help="Ask as if the call said backend=...")] = None,
    case: Annotated[str | None, typer.Option(help="Shapes of a case of the op: see `list cases`.")] = None,
    causal: Annotated[bool, typer.Option("--causal", help="is_causal=True.")] = False,
    mask: Annotated[str, typer.Option(help="none, bool, float or padding.")] = "none",
    window: Annotated[str | None, typer.Option(help="Attention window LEFT,RIGHT; -1 is unlimited.")] = None,
    lengths: Annotated[
        str | None, typer.Option(help="Sequence lengths of a packed batch: 512,77,1024.")
    ] = None,
    params: Annotated[
        str | None, typer.Option(help="adaLN parameters: vector, batch (the default), token or frame.")
    ] = None,
    grad: Annotated[bool, typer.Option("--grad", help="As if inputs required a gradient.")] = False,
    set_: Annotated[
        list[str] | None, typer.Option("--set", help="Any plain argument: --set softcap=30 --set norm=rms")
    ] = None,
    tensor: Annotated[
        list[str] | None, typer.Option(help="Any tensor argument: --tensor cos=4096x64:float32")
    ] = None,
    package: Annotated[
        list[str] | None,
        typer.Option(
            help="Pretend a package is installed: --package flash-attn=2.8.3; NAME= pretends it is not."
        ),
    ] = None,
    as_json: Json = False,
) -> None:
    """Which backend would serve a call, and why not the others. Runs nothing, loads nothing, needs no device.

    Exit code 1 when nothing would serve the call.
    """
    from sgl_kernels.core.registry import registry
    from sgl_kernels.tools.explain import imagined_call as q

    name = _common.one_of("OP", op, registry.ops())
    definition = registry.op(name)
    given = [q.parse_value("--set", item) for item in set_ or ()]
    for option, spelled in _spelled(causal, window).items():
        if any(argument not in [a.name for a in definition.arguments] for argument, _ in spelled):
            raise typer.BadParameter(f"{option} is given, but {name} has no such argument; leave it out")
        given += spelled
    values = _common.once("--set", given)
    asked = q.Question(
        shape=q.parse_shape("--shape", shape) if shape is not None else None,
        kv_shape=q.parse_shape("--kv-shape", kv_shape) if kv_shape is not None else None,
        dtype=_common.dtype_of("--dtype", dtype),
        mask=_common.one_of("--mask", mask, q.MASKS),
        lengths=q.parse_shape("--lengths", lengths) if lengths is not None else (),
        params=_common.one_of("--params", params, q.PARAMS) if params is not None else "",
        grad=grad,
        values=values,
        tensors=_common.once("--tensor", (q.parse_tensor("--tensor", item) for item in tensor or ())),
        case=case or "",
    )
    arguments = q.arguments(definition, asked)
    where = _place(device)
    if "layout" not in values:
        arguments = definition.place(arguments, where)
    selection = _decide(name, arguments, where, backend, package or [])
    if as_json:
        _common.emit_json(selection.to_dict())
    else:
        note = "" if shape or case else f"No --shape given: case {q.default_case(definition).name}."
        _print(selection, note)
    if not selection.chosen:
        raise typer.Exit(_common.FAILED)


def _place(device: str | None) -> Any:
    """The machine asked about: the one named, else the one the settings aim at."""
    from sgl_kernels.core.device import probe, target_device
    from sgl_kernels.core.dispatch import current

    if device is not None:
        return _common.machine("--device", device)
    return probe(target_device(current().settings.target_device))


def _decide(
    name: str, arguments: tuple[Any, ...], where: Any, backend: str | None, packages: list[str]
) -> Any:
    from sgl_kernels.core.control import explain as decide

    if backend is not None:
        _common.backend_names("--backend", backend)
    return decide(name, *arguments, device=where, backend=backend, version_of=_pretend(packages))


def _spelled(causal: bool, window: str | None) -> dict[str, list[tuple[str, Any]]]:
    """The options that are short for --set, each with the arguments it gives."""
    found: dict[str, list[tuple[str, Any]]] = {}
    if causal:
        found["--causal"] = [("is_causal", True)]
    if window is not None:
        found["--window"] = list(zip(("window_left", "window_right"), _window(window), strict=True))
    return found


def _window(text: str) -> tuple[int, int]:
    left, comma, right = text.partition(",")
    try:
        return int(left), int(right) if comma else -1
    except ValueError:
        raise typer.BadParameter(
            f"--window is {text!r}, expected LEFT,RIGHT as whole numbers, such as 512,0; -1 is unlimited"
        ) from None


def _pretend(packages: list[str]) -> Callable[[str], Any]:
    """What is installed here, with `packages` ('name=version') laid over it."""
    from packaging.utils import canonicalize_name
    from packaging.version import InvalidVersion, Version

    from sgl_kernels.core.selection.packages import installed_version

    pretended: list[tuple[str, Any]] = []
    asked = _asked_for()
    for item in packages:
        name, equals, version = item.replace("==", "=").partition("=")
        try:
            if not equals or not name.strip():
                raise InvalidVersion
            pretended.append((canonicalize_name(name.strip()), Version(version) if version.strip() else None))
        except InvalidVersion:
            raise typer.BadParameter(
                f"--package is {item!r}, expected NAME=VERSION, such as flash-attn=2.8.3"
            ) from None
        _common.one_of("--package", pretended[-1][0], asked)
    laid_over = _common.once("--package", pretended)

    def version_of(name: str) -> Any:
        key = canonicalize_name(name)
        return laid_over[key] if key in laid_over else installed_version(name)

    return version_of


def _asked_for() -> list[str]:
    """Every package that some backend asks for: pretending another would change nothing."""
    from packaging.requirements import Requirement
    from packaging.utils import canonicalize_name

    from sgl_kernels.core.registry import registry

    found = set()
    for op in registry.ops():
        for implementation in registry.implementations(op):
            found |= {Requirement(text).name for text in implementation.requires.packages}
            found |= {bug.package for bug in implementation.bugs if bug.package}
    return sorted({canonicalize_name(name) for name in found})


def _print(selection: Any, note: str) -> None:
    from rich.markup import escape

    from sgl_kernels.core.selection.verdict import describe_facts
    from sgl_kernels.tools.page.html import Mark, Table, rich_table

    console = _common.console()
    console.print(f"[bold]{selection.op}[/bold] on {escape(str(selection.device))}")
    console.print(f"[dim]{escape(describe_facts(selection.facts))}[/dim]")
    rows: list[tuple[Any, ...]] = []
    for candidate in selection.candidates:
        if candidate.backend == selection.chosen:
            rows.append((Mark(f"→ {candidate.backend}", "good"), Mark("runs", "good"), selection.why, ""))
        elif candidate.rejected is None:
            rows.append((f"  {candidate.backend}", "could", candidate.note, ""))
        else:
            reason = Mark(candidate.rejected.reason.value, "muted")
            rows.append(
                (f"  {candidate.backend}", reason, candidate.rejected.detail, candidate.rejected.hint)
            )
    console.print(rich_table(Table("", ("backend", "verdict", "why", "how to change it"), rows, note)))
    if selection.config is not None:
        console.print(f"config: {escape(str(selection.config))}")
    if not selection.chosen:
        console.print(f"[bold red]No backend serves this call[/bold red] ({escape(selection.why)}).")
