"""What a call costs before the kernel starts: ours, and diffusers' dispatcher, measured in the same turns.

The overhead is measured twice. Alone: the function at the end of the dispatch is exchanged for one that returns
its first argument, so what remains is dispatch; this is the figure that is compared. And with torch's SDPA on a
toy of 16 tokens at the end, where it can be seen beside a real call. CPU time of one thread, medians over turns.
"""

from __future__ import annotations

import contextlib
import datetime
import functools
import statistics
import time
from collections.abc import Callable, Iterator
from typing import Any

import torch
import torch.nn.functional as F

import sgl_kernels
from sgl_kernels.core.dispatch import Dispatcher, activate
from sgl_kernels.core.selection.packages import installed_version
from sgl_kernels.core.settings import load_settings
from sgl_kernels.ops import _fingerprint
from sgl_kernels.ops.attention import api as attention_api
from sgl_kernels.tools.bench.clock import threads, waiter
from sgl_kernels.tools.bench.results import describe_machine
from sgl_kernels.tools.doctor.diagnosis import versions
from sgl_kernels.tools.page.html import Table

SHAPE = (1, 16, 2, 64)
REPEAT = 500
SLOW = "ours without the C++ module, around an empty function"
GOAL_NS = 1000.0

Call = Callable[[], Any]
MODES: dict[str, Callable[[], Any]] = {
    "grad mode": contextlib.nullcontext,
    "no_grad": torch.no_grad,
    "inference_mode": torch.inference_mode,
}


def measure(rounds: int = 200, device: torch.device = torch.device("cpu")) -> dict[str, Any]:  # noqa: B008
    """Nanoseconds for each call, by mode, and the overheads that follow from them. Tensors are on `device`."""
    modes = {}
    with threads(1), activate(Dispatcher(load_settings({}))):
        for mode, enter in MODES.items():
            with enter():
                modes[mode] = _overheads(_turns(rounds, device))
    return {
        "schema": 1,
        "date": datetime.date.today().isoformat(),
        "machine": describe_machine(device),
        "versions": versions(),
        "clock": "CPU time of one thread",
        "shape": list(SHAPE),
        "unit": "ns for one call",
        "goal_ns": GOAL_NS,
        "modes": modes,
    }


def _turns(rounds: int, device: torch.device) -> dict[str, float]:
    """The median cost of every call, all of them taking turns."""
    with contextlib.ExitStack() as stack:
        loops = _loops(stack, device)
        wait = waiter(device)
        samples: dict[str, list[float]] = {name: [] for name in loops}
        for loop in loops.values():
            loop(REPEAT)
        for number in range(rounds):
            names = list(loops)
            turn = number % len(names)
            for name in names[turn:] + names[:turn]:
                samples[name].append(loops[name](REPEAT))
                wait()  # a queue of the device that is full would make the next loop wait for it
    return {name: statistics.median(found) for name, found in samples.items()}


def _loops(stack: contextlib.ExitStack, device: torch.device) -> dict[str, Callable[[int], float]]:
    q, k, v = (torch.randn(SHAPE, device=device) for _ in range(3))
    attention, sdpa = sgl_kernels.attention, F.scaled_dot_product_attention
    rest = (None, False, "bottom_right", None, -1, -1, 0.0)

    def first(*args: Any, **kwargs: Any) -> Any:
        return q

    real = Dispatcher(load_settings({}))
    with activate(real):
        attention(q, k, v)
    bound = next(iter(real.bound.values()))
    empty = Dispatcher(load_settings({}))
    with activate(empty):
        attention(q, k, v)
    empty.bound[next(iter(empty.bound))] = first
    bare = Dispatcher(load_settings({}))
    with activate(bare), _without_module():
        attention(q, k, v)
        bare.bound[next(iter(bare.bound))] = first

    loops = {
        "an empty function": _loop(lambda n: [first(q, k, v, *rest) for _ in range(n)]),
        "ours, around an empty function": _loop(lambda n: [attention(q, k, v) for _ in range(n)], empty),
        SLOW: _slow(lambda n: [attention(q, k, v) for _ in range(n)], bare),
        "the bound backend": _loop(lambda n: [bound(q, k, v, *rest) for _ in range(n)]),
        "ours": _loop(lambda n: [attention(q, k, v) for _ in range(n)], real),
        "torch SDPA on transposed views": _loop(
            lambda n: [
                sdpa(q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2)).transpose(1, 2)
                for _ in range(n)
            ]
        ),
    }
    if installed_version("diffusers") is not None:
        loops |= _diffusers(stack, q, k, v, first)
    return loops


def _loop(body: Callable[[int], Any], dispatcher: Dispatcher | None = None) -> Callable[[int], float]:
    def run(n: int) -> float:
        with activate(dispatcher) if dispatcher is not None else contextlib.nullcontext():
            start = time.thread_time_ns()
            body(n)
            return (time.thread_time_ns() - start) / n

    return run


@contextlib.contextmanager
def _without_module() -> Iterator[None]:
    """Keys made through tensor attributes, as where the C++ module of keys is not built."""
    before = attention_api._key
    attention_api._key = _slow_key()
    try:
        yield
    finally:
        attention_api._key = before


@functools.cache
def _slow_key() -> Any:
    return _fingerprint.in_python(attention_api.ATTENTION)[0]


def _slow(body: Callable[[int], Any], dispatcher: Dispatcher) -> Callable[[int], float]:
    inner = _loop(body, dispatcher)

    def run(n: int) -> float:
        with _without_module():
            return inner(n)

    return run


def _diffusers(
    stack: contextlib.ExitStack, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, first: Call
) -> dict[str, Callable[[int], float]]:
    try:
        from diffusers.models import attention_dispatch as theirs
    except Exception:  # another release, or one that does not import here: one line less in the table
        return {}
    dispatch, registry = theirs.dispatch_attention_fn, theirs._AttentionBackendRegistry

    @contextlib.contextmanager
    def exchanged(function: Any | None, checks: bool) -> Iterator[None]:
        name, before = registry.get_active_backend()
        checked = registry._checks_enabled
        registry._checks_enabled = checks
        if function is not None:
            registry._backends[name] = function
        try:
            yield
        finally:
            registry._backends[name] = before
            registry._checks_enabled = checked

    def loop(function: Any | None, checks: bool) -> Callable[[int], float]:
        def run(n: int) -> float:
            with exchanged(function, checks):
                start = time.thread_time_ns()
                [dispatch(q, k, v) for _ in range(n)]
                return (time.thread_time_ns() - start) / n

        return run

    return {
        "diffusers, around an empty function": loop(first, False),
        "diffusers with checks, around an empty function": loop(first, True),
        "diffusers": loop(None, False),
    }


def _overheads(found: dict[str, float]) -> dict[str, Any]:
    base = found["an empty function"]
    overheads = {
        "ours": found["ours, around an empty function"] - base,
        "ours without the C++ module": found[SLOW] - base,
    }
    for name in ("diffusers", "diffusers with checks"):
        if f"{name}, around an empty function" in found:
            overheads[name] = found[f"{name}, around an empty function"] - base
    real = {"ours": found["ours"] - found["the bound backend"]}
    if "diffusers" in found:
        real["diffusers"] = found["diffusers"] - found["torch SDPA on transposed views"]
    return {
        "calls": {name: round(value, 1) for name, value in found.items()},
        "overhead": {name: round(value, 1) for name, value in overheads.items()},
        "overhead_with_kernel": {name: round(value, 1) for name, value in real.items()},
    }


def table(data: dict[str, Any]) -> Table:
    """The overheads, one line for each dispatcher and mode."""
    rows = [
        (
            mode,
            name,
            f"{value / 1e3:.2f}",
            f"{found['overhead_with_kernel'].get(name, float('nan')) / 1e3:.2f}",
        )
        for mode, found in data["modes"].items()
        for name, value in found["overhead"].items()
    ]
    rows = [(*row[:3], "" if row[3] == "nan" else row[3]) for row in rows]
    note = f"CPU time above the raw call, medians of interleaved turns. Goal: at most {GOAL_NS / 1e3:.1f} us."
    columns = ("mode", "dispatcher", "us above an empty call", "us above the same SDPA call")
    return Table("The cost of dispatch", columns, rows, note)
