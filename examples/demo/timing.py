"""Two versions of the same work, timed so that a busy machine disturbs both alike."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Pair:
    """Seconds of each run by the clock, pair by pair, and the processor seconds of the same runs."""

    stock: tuple[float, ...]
    ours: tuple[float, ...]
    stock_cpu: tuple[float, ...]
    ours_cpu: tuple[float, ...]

    @property
    def stock_ms(self) -> float:
        """Median of the stock runs in milliseconds."""
        return statistics.median(self.stock) * 1e3

    @property
    def ours_ms(self) -> float:
        """Median of our runs in milliseconds."""
        return statistics.median(self.ours) * 1e3

    @property
    def speedup(self) -> float:
        """Median over the pairs of stock / ours: each pair ran back to back."""
        return statistics.median(s / o for s, o in zip(self.stock, self.ours, strict=True))

    @property
    def cpu_speedup(self) -> float:
        """The same for processor time, which other programs on the machine disturb less."""
        return statistics.median(s / o for s, o in zip(self.stock_cpu, self.ours_cpu, strict=True))

    @property
    def spread(self) -> tuple[float, float]:
        """The quartiles of the ratio, the middle half of the pairs."""
        ratios = sorted(s / o for s, o in zip(self.stock, self.ours, strict=True))
        low, _, high = statistics.quantiles(ratios, n=4) if len(ratios) > 1 else (ratios[0],) * 3
        return low, high


def interleaved(
    stock: Callable[[], object],
    ours: Callable[[], object],
    repeats: int,
    progress: Callable[[int, int], None] | None = None,
) -> Pair:
    """Run both once to warm up, then alternately; which goes first changes with every pair."""
    stock()
    ours()
    clock: dict[bool, list[float]] = {False: [], True: []}
    cpu: dict[bool, list[float]] = {False: [], True: []}
    for i in range(repeats):
        for mine in (False, True) if i % 2 == 0 else (True, False):
            begin, begin_cpu = time.perf_counter(), time.process_time()
            (ours if mine else stock)()
            clock[mine].append(time.perf_counter() - begin)
            cpu[mine].append(time.process_time() - begin_cpu)
        if progress is not None:
            progress(i + 1, repeats)
    return Pair(tuple(clock[False]), tuple(clock[True]), tuple(cpu[False]), tuple(cpu[True]))
