"""Run one implementation on one case and judge it; used by tests, the command line and third parties."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from sgl_kernels.core.device import Device, probe
from sgl_kernels.core.op import Case, Op
from sgl_kernels.core.registry import Registry, registry
from sgl_kernels.core.selection.implementation import Fidelity, Implementation
from sgl_kernels.core.selection.packages import VersionOf, installed_version
from sgl_kernels.core.selection.select import select
from sgl_kernels.core.selection.verdict import Rejected
from sgl_kernels.core.settings import OpPolicy
from sgl_kernels.tools.parity.tolerance import EXACT_FACTOR, FEW, FLOOR_FACTOR, Error, allowed, measure

FLOOR = "torch"
DRAWS = 16
"""Results of fewer than FEW values are judged over this many inputs together. One value may be a sum that cancels, of
which plain torch happens to get every bit: of 400 single scores 4 were off by more than twice torch's error plus a
rounding, with kernels that are as good as torch over all 400."""

Draw = tuple[tuple[Any, ...], tuple[Tensor, ...]]  # arguments, results


@dataclass(frozen=True, slots=True)
class Cell:
    """One square of the matrix: an op, a case and a dtype on a backend."""

    op: str
    case: str
    backend: str
    dtype: str
    status: str  # "pass" | "fail" | "skip"
    detail: str = ""
    error: Error | None = None
    limit: float | None = None  # relative L2 that was allowed

    def to_dict(self) -> dict[str, Any]:
        """The cell as plain data."""
        return {
            "op": self.op,
            "case": self.case,
            "backend": self.backend,
            "dtype": self.dtype,
            "status": self.status,
            "detail": self.detail,
            "error": self.error.to_dict() if self.error else None,
            "limit": self.limit,
        }


def matrix(
    source: Registry = registry,
    *,
    ops: tuple[str, ...] = (),
    backends: tuple[str, ...] = (),
    tag: str = "test",
) -> Iterator[tuple[Op, Case, Implementation, torch.dtype]]:
    """Every (op, case, implementation, dtype) of the registry. Nothing is listed by hand."""
    for op in source.ops().values():
        if ops and op.name not in ops:
            continue
        for implementation in source.implementations(op.name):
            if backends and implementation.backend not in backends:
                continue
            for case in op.cases():
                if tag in case.tags:
                    for dtype in case.dtypes:
                        yield op, case, implementation, dtype


def verdict(
    op: Op, implementation: Implementation, args: tuple[Any, ...], device: Device, version_of: VersionOf
) -> Rejected | None:
    """Why `implementation` will not run these arguments, or None."""
    facts = op.facts(*args)
    policy = OpPolicy(prefer=(implementation.backend,))
    selection = select(op.name, facts, device, version_of, policy, (implementation,))
    return selection.rejected(implementation.backend)


def run_cell(
    op: Op, case: Case, implementation: Implementation, dtype: torch.dtype, *,
    device: torch.device | str = "cpu", seed: int = 0, source: Registry = registry,
    version_of: VersionOf = installed_version,
) -> Cell:  # fmt: skip
    """Judge one square. A rejection is a skip with its reason; a wrong answer or an exception is a failure."""
    place = torch.device(device)
    name = str(dtype).removeprefix("torch.")
    cell = functools.partial(Cell, op.name, case.name, implementation.backend, name)
    args = op.canonical(*case.make(place, dtype, seed))
    op.check(*args)
    rejected = verdict(op, implementation, args, probe(place), version_of)
    if rejected is not None:
        return cell("skip", f"{rejected.reason.value}: {rejected.detail}")
    facts = op.facts(*args)
    config = implementation.configs(facts, probe(place))[0] if implementation.configs else None
    run = source.loaded(implementation, config)
    if isinstance(run, Rejected):
        return cell("skip", f"{run.reason.value}: {run.detail}")
    draws: list[Draw] = []
    while len(draws) < (DRAWS if draws and _few(draws[0][1]) else 1):
        if draws:
            args = op.canonical(*case.make(place, dtype, seed + len(draws)))
        before = tuple(a.clone() if isinstance(a, Tensor) else a for a in args)
        _poison(args)
        try:
            out = _outs(run(*args))
        except (
            Exception
        ) as error:  # any exception here is the implementation's failure to honour what it accepted
            return cell("fail", f"{type(error).__name__}: {error}")
        problem = _changed(before, args) or _metadata(op, args, out)
        if problem:
            return cell("fail", problem)
        draws.append((before, out))
    return _judge(op, implementation, dtype, draws, source, cell)


def _few(out: tuple[Tensor, ...]) -> bool:
    return any(0 < t.numel() < FEW for t in out)


def _pooled(outs: list[tuple[Tensor, ...]]) -> tuple[Tensor, ...]:
    """The outputs of several draws, one after the other."""
    if len(outs) == 1:
        return outs[0]
    return tuple(torch.cat([t.detach().double().flatten() for t in same]) for same in zip(*outs, strict=True))


def _judge(
    op: Op, implementation: Implementation, dtype: torch.dtype, draws: list[Draw], source: Registry, cell: Any
) -> Cell:
    def over_draws(run: Callable[..., Any], to: torch.dtype | None = None) -> tuple[Tensor, ...]:
        return _pooled([_outs(run(*(_to(args, to) if to else args))) for args, _ in draws])

    oracle = over_draws(op.reference, torch.float64)
    baselines, factor = [over_draws(op.reference)], FLOOR_FACTOR
    if implementation.backend != FLOOR:
        floor = next((i for i in source.implementations(op.name) if i.backend == FLOOR), None)
        run = source.loaded(floor, None) if floor is not None else None
        if run is not None and not isinstance(run, Rejected):
            baselines.append(over_draws(run))
        factor = EXACT_FACTOR
    worst: tuple[Error, float] | None = None
    results = zip(_pooled([out for _, out in draws]), oracle, draws[0][1], strict=True)
    for i, (actual, exact, first) in enumerate(results):
        error = measure(actual, exact)
        if implementation.fidelity is Fidelity.LOSSY:
            limit_abs, limit = float("inf"), op.lossy_tolerance
        else:
            plain = tuple(measure(b[i], exact) for b in baselines)
            result_dtype = first.dtype if first.is_floating_point() else dtype
            limit_abs, limit = allowed(exact, plain, result_dtype, factor)
        if not error.finite_match:
            return cell("fail", "NaN or infinities where the oracle has none, or the reverse", error, limit)
        if error.relative_l2 > limit or error.max_abs > limit_abs:
            detail = f"relative L2 {error.relative_l2:.2e} (allowed {limit:.2e}), max {error.max_abs:.2e}"
            return cell("fail", f"{detail} (allowed {limit_abs:.2e})", error, limit)
        if worst is None or error.relative_l2 > worst[0].relative_l2:
            worst = (error, limit)
    return cell("pass", "", *(worst or (None, None)))


def _outs(out: Any) -> tuple[Tensor, ...]:
    return tuple(out) if isinstance(out, tuple | list) else (out,)


def _to(args: tuple[Any, ...], dtype: torch.dtype) -> tuple[Any, ...]:
    return tuple(a.to(dtype) if isinstance(a, Tensor) and a.is_floating_point() else a for a in args)


def _poison(args: tuple[Any, ...]) -> None:
    """Fill and free buffers of likely output sizes with NaN, so that memory left unwritten shows."""
    for a in args:
        if isinstance(a, Tensor) and a.is_floating_point() and 0 < a.numel() < 1 << 22:
            for _ in range(2):
                torch.full_like(a, float("nan"), memory_format=torch.contiguous_format)


def _changed(before: tuple[Any, ...], after: tuple[Any, ...]) -> str:
    for index, (old, new) in enumerate(zip(before, after, strict=True)):
        if isinstance(old, Tensor) and not torch.equal(_bits(old), _bits(new)):
            return f"argument {index} was changed in place"
    return ""


def _bits(t: Tensor) -> Tensor:
    if t.is_floating_point() and t.dtype.itemsize == 1:
        return t.view(torch.uint8)  # torch has no nan_to_num or equal for float8
    return torch.nan_to_num(t) if t.is_floating_point() else t


def _metadata(op: Op, args: tuple[Any, ...], out: tuple[Tensor, ...]) -> str:
    meta = tuple(a.to("meta") if isinstance(a, Tensor) else a for a in args)
    for got, want in zip(out, _outs(op.fake(*meta)), strict=True):
        if got.shape != want.shape or got.dtype != want.dtype:
            return f"returned {got.dtype} {list(got.shape)}, the op promises {want.dtype} {list(want.shape)}"
    return ""


def counts(cells: list[Cell]) -> dict[str, int]:
    return {status: sum(c.status == status for c in cells) for status in ("pass", "fail", "skip")}


def summarise(cells: list[Cell]) -> str:
    """'1,204 passed, 0 failed, 310 skipped'."""
    found = counts(cells)
    return f"{found['pass']:,} passed, {found['fail']:,} failed, {found['skip']:,} skipped"
