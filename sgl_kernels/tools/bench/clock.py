"""How times are taken: pinned threads, warm memory, candidates interleaved, medians.

Protocol. Threads are pinned and the allocator keeps its memory, so neither migration nor page faults are
measured. Every candidate is warmed up, then the candidates take turns: each round gives one sample of each, in
an order that rotates, so that a machine that drifts or is busy drifts under all of them. One sample repeats
the call until it lasts MIN_SAMPLE_S. Ratios are medians of the ratios within rounds, not ratios of medians.
Inputs are rotated through copies, more than the caches hold, where a case says that it is cold.
"""

from __future__ import annotations

import contextlib
import ctypes
import gc
import os
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

MIN_SAMPLE_S = 2e-3
LONG_S = 0.5
CLOCKS = ("wall", "cpu")

M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4


def retain_memory() -> str:
    """Make glibc keep what is freed, so that a fresh output does not cost page faults; says what was done.

    With glibc's defaults every tensor above 32 MiB is mapped and unmapped at each call, and eager torch looks
    many times slower than it is in a program that reuses memory.
    """
    if not sys.platform.startswith("linux"):
        return "system default"
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):
        return "system default"
    return (
        "retaining" if mallopt(M_MMAP_MAX, 0) and mallopt(M_TRIM_THRESHOLD, 2**31 - 1) else "system default"
    )


def beyond_caches_mib(cpu: Path = Path("/sys/devices/system/cpu/cpu0/cache")) -> int:
    """MiB of inputs that leave nothing of them in a cache when they come round again: four times the last level.

    128 where the system does not tell; at most 1024, since a shared cache of a large server is not one core's.
    """
    sizes: list[int] = []
    for path in cpu.glob("index*/size"):
        text = path.read_text(encoding="ascii").strip()
        if text[:-1].isdigit() and text[-1] in "KM":
            sizes.append(int(text[:-1]) >> (10 if text[-1] == "K" else 0))
    last = max(sizes, default=0)
    return min(1024, 4 * last) if last else 128


@contextlib.contextmanager
def threads(count: int, pin: bool = True) -> Iterator[None]:
    """Run torch with `count` threads, on as many cores, inside the block."""
    before = torch.get_num_threads()
    cores = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else None
    if pin and cores is not None:
        os.sched_setaffinity(0, sorted(cores)[:count])  # new worker threads inherit it
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)
        if cores is not None:
            os.sched_setaffinity(0, cores)


@dataclass(frozen=True, slots=True)
class Timing:
    """The samples of one candidate, in seconds for one call."""

    samples: tuple[float, ...]

    @property
    def median(self) -> float:
        """The middle sample."""
        return statistics.median(self.samples)

    @property
    def spread(self) -> tuple[float, float]:
        """The quartiles."""
        if len(self.samples) < 3:
            return min(self.samples), max(self.samples)
        low, _, high = statistics.quantiles(self.samples, n=4, method="inclusive")
        return low, high

    def ratio_to(self, base: Timing) -> tuple[float, float, float]:
        """How many times faster than `base`: the median over rounds, and its quartiles."""
        ratios = Timing(tuple(b / s for s, b in zip(self.samples, base.samples, strict=True)))
        return (ratios.median, *ratios.spread)


def clock_of(name: str, device: torch.device, count: int) -> Callable[[], float]:
    """Seconds: of the wall, or of this process's CPU time for one thread on a machine that others use too."""
    if name == "cpu":
        if device.type != "cpu" or count != 1:
            raise ValueError(
                f"--clock is 'cpu' with device {device.type} and {count} threads, expected one CPU thread: CPU "
                "time adds threads up; use --clock wall, or --threads 1"
            )
        return time.thread_time
    return time.perf_counter


def interleave(
    calls: Mapping[str, Sequence[Callable[[], object]]],
    *,
    device: torch.device,
    rounds: int,
    budget_s: float,
    clock: Callable[[], float] = time.perf_counter,
    settle_s: float = 0.0,
    took: Mapping[str, float] = {},
) -> dict[str, Timing]:
    """Time every candidate in turns. Each is a sequence of calls over copies of the inputs, rotated through.

    Stops early when `budget_s` is spent, after at least three rounds, or two where one round alone spends it.
    `settle_s` is a pause before each sample, for candidates with thread pools of their own, whose idle workers spin
    for a while. `took`: seconds of a call that the caller has made already; a long one is warm-up enough.
    """
    wait = waiter(device)
    repeats = {}
    for name, variants in calls.items():
        if len(variants) == 1 and took.get(name, 0.0) >= LONG_S:
            repeats[name] = 1
            continue
        start = time.perf_counter()
        for call in variants:
            call()
        wait()
        once = (time.perf_counter() - start) / len(variants)
        if once < LONG_S:  # warm now; of a long call the first is as good, and a second would cost seconds
            start = time.perf_counter()
            variants[0]()
            wait()
            once = max(time.perf_counter() - start, 1e-7)
        repeats[name] = max(1, min(10_000, round(MIN_SAMPLE_S / once)), len(variants) if once < 0.05 else 1)
    names = list(calls)
    samples: dict[str, list[float]] = {name: [] for name in names}
    began = time.perf_counter()
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        for number in range(rounds):
            spent = time.perf_counter() - began
            if number >= (2 if spent > 2 * budget_s else 3) and spent > budget_s:
                break
            turn = number % len(names)
            for name in names[turn:] + names[:turn]:
                if settle_s:
                    time.sleep(settle_s)
                samples[name].append(_sample(calls[name], repeats[name], number, clock, wait))
    finally:
        if was_enabled:
            gc.enable()
    return {name: Timing(tuple(found)) for name, found in samples.items()}


def _sample(
    variants: Sequence[Callable[[], object]],
    repeat: int,
    offset: int,
    clock: Callable[[], float],
    wait: Callable[[], None],
) -> float:
    count = len(variants)
    if count == 1:
        call = variants[0]
        wait()
        start = clock()
        for _ in range(repeat):
            call()
    else:
        order = [variants[(offset + i) % count] for i in range(repeat)]
        wait()
        start = clock()
        for call in order:
            call()
    wait()
    return (clock() - start) / repeat


def waiter(device: torch.device) -> Callable[[], None]:
    if device.type == "cpu":
        return lambda: None
    return torch.get_device_module(device.type).synchronize  # type: ignore[no-any-return]
