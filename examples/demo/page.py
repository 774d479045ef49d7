"""What the demo found, as tables for the terminal and sections for the page."""

from __future__ import annotations

from pathlib import Path

from examples.demo.digits import Digits
from examples.demo.sentences import LIMIT, Sentences
from examples.demo.timing import Pair
from sgl_kernels.core.wrapping.record import Report
from sgl_kernels.tools.page.html import Code, Lines, Mark, Section, Table, Text, picture

PIXEL_FLOOR = 1e-3
"""A pixel may differ from float64 by this much, or by four times what stock fp32 differs, if that is more."""


def summary(digits: Digits, sentences: Sentences) -> list[Table]:
    """The tables for the terminal."""
    return [_results(digits, sentences), _times(digits, sentences), _ran(digits.report, sentences.report)]


def sections(digits: Digits, sentences: Sentences, image: Path) -> list[Section]:
    """The page: picture, results, times, what ran and why."""
    results, times, ran = summary(digits, sentences)
    return [
        picture(
            image,
            f"{digits.samples} digits, {digits.steps} steps",
            "Drawn by examples/digits/model, a class-conditional diffusion transformer trained from scratch on "
            "handwritten digits, with diffusers' model class and scheduler and this package's attention and norms.",
        ),
        results,
        times,
        Lines(
            "Step times as they ran",
            {
                "stock diffusers": [t * 1e3 for t in digits.time.stock],
                "sgl_kernels": [t * 1e3 for t in digits.time.ours],
            },
            unit="ms",
            x_label="pair",
            note="One step of the sampler with guidance, the two versions run in turn in one process.",
        ),
        ran,
        Text("Why", "The decision for the busiest call of each op, with a reason for every candidate."),
        *(Code("", table) for table in digits.selections),
    ]


def pixel_limit(digits: Digits) -> float:
    """How far a pixel may be from the float64 run."""
    return max(PIXEL_FLOOR, 4 * digits.stock_error)


def broken_promises(digits: Digits, sentences: Sentences) -> list[str]:
    """What the demo promises and did not keep; empty is good."""
    checks = (
        (
            digits.ours_error <= pixel_limit(digits),
            f"digits differ from float64 by {digits.ours_error:.2e}, allowed {pixel_limit(digits):.2e}",
        ),
        (
            digits.read >= 0.9 * digits.samples,
            f"the reader recognised {digits.read} of {digits.samples} digits",
        ),
        (digits.restored, "after remove() the diffusion model is not bit for bit stock"),
        (
            sentences.stock_difference <= LIMIT,
            f"embeddings differ from stock by {sentences.stock_difference:.2e}, allowed {LIMIT:.0e}",
        ),
        (
            sentences.alone_difference <= LIMIT,
            f"padding changes embeddings by {sentences.alone_difference:.2e}, allowed {LIMIT:.0e}",
        ),
        (
            sentences.skipped_difference <= LIMIT,
            f"without padding, embeddings differ from stock by {sentences.skipped_difference:.2e}, allowed {LIMIT:.0e}",
        ),
        (sentences.restored, "after remove() the text model is not bit for bit stock"),
    )
    return [message for kept, message in checks if not kept]


def _results(digits: Digits, sentences: Sentences) -> Table:
    def verdict(kept: bool) -> Mark:
        return Mark("yes", "good") if kept else Mark("no", "bad")

    rows = [
        ("digits", "served", _served(digits.applied), ""),
        (
            "digits",
            "read correctly by the independent reader",
            f"{digits.read} of {digits.samples}",
            verdict(digits.read >= 0.9 * digits.samples),
        ),
        (
            "digits",
            "largest pixel difference to float64",
            f"{digits.ours_error:.1e} (stock: {digits.stock_error:.1e})",
            verdict(digits.ours_error <= pixel_limit(digits)),
        ),
        ("digits", "bit for bit stock after remove()", "", verdict(digits.restored)),
        ("MiniLM", "served", _served(sentences.applied), ""),
        (
            "MiniLM",
            f"{sentences.count} sentences, up to {sentences.longest} tokens, {sentences.padded:.0%} padding",
            f"{sentences.pairs_found} of {sentences.count} find their partner",
            "",
        ),
        (
            "MiniLM",
            "largest difference to stock transformers",
            f"{sentences.stock_difference:.1e} (limit {LIMIT:.0e})",
            verdict(sentences.stock_difference <= LIMIT),
        ),
        (
            "MiniLM",
            "largest difference to each sentence without padding",
            f"{sentences.alone_difference:.1e} (limit {LIMIT:.0e})",
            verdict(sentences.alone_difference <= LIMIT),
        ),
        (
            "MiniLM",
            'the same with apply(model, padding="skip")',
            f"{sentences.skipped_difference:.1e} (limit {LIMIT:.0e})",
            verdict(sentences.skipped_difference <= LIMIT),
        ),
        ("MiniLM", "bit for bit stock after remove()", "", verdict(sentences.restored)),
    ]
    return Table("Results", ("model", "what", "value", "kept"), rows)


def _served(applied: str) -> str:
    """'5 attention layers, 16 norms' out of 'Applied(DiT...: 5 attention layers, 16 norms)'."""
    return applied.partition(": ")[2].rstrip(")")


def _times(digits: Digits, sentences: Sentences) -> Table:
    def row(name: str, pair: Pair) -> tuple[str, ...]:
        low, high = pair.spread
        return (
            name,
            f"{pair.stock_ms:,.1f}",
            f"{pair.ours_ms:,.1f}",
            f"{pair.speedup:.2f}x",
            f"{low:.2f} to {high:.2f}",
            f"{pair.cpu_speedup:.2f}x",
        )

    rows = [
        row(f"digits, one step, {2 * digits.samples} images", digits.time),
        row(f"MiniLM, {sentences.count} sentences", sentences.time),
        row(f"the same, padding skipped ({sentences.padded:.0%} of the tokens)", sentences.skipped_time),
    ]
    note = (
        "Medians of runs in turn; the speedup is the median over pairs of stock / sgl_kernels, its quartiles beside "
        "it; CPU time counts every thread and is steadier on a busy machine."
    )
    return Table(
        "Times", ("work", "stock ms", "sgl_kernels ms", "speedup", "middle half", "by CPU time"), rows, note
    )


def _ran(*reports: Report) -> Table:
    """One row for each op and backend, with the reason; shapes are in the page's tables."""
    rows = []
    for name, report in zip(("digits", "MiniLM"), reports, strict=True):
        merged: dict[tuple[str, str, str], list[float]] = {}
        for entry in report.entries:
            total = merged.setdefault((entry.op, entry.backend, entry.why), [0, 0.0])
            total[0] += entry.calls
            total[1] += entry.seconds * 1e3
        rows += [
            (name, op, backend, f"{calls:,.0f}", f"{ms:,.1f}", why)
            for (op, backend, why), (calls, ms) in merged.items()
        ]
    return Table(
        "Which backend served each op, and why", ("model", "op", "backend", "calls", "ms", "why"), rows
    )
