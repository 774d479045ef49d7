"""Part one: digits drawn by the trained diffusion transformer, through the diffusers integration."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

import sgl_kernels
from examples.demo.timing import Pair, interleaved
from examples.digits.classifier import load_reader, read_digits
from examples.digits.sample import generate, image_grid, load_model

Progress = Callable[[str, int, int], None]


@dataclass(frozen=True, slots=True)
class Digits:
    """What the first part found."""

    applied: str
    report: sgl_kernels.core.wrapping.record.Report
    selections: tuple[str, ...]  # the whole decision for each op, with a reason for every candidate
    steps: int
    samples: int
    read: int  # how many the independent reader recognised
    ours_error: float  # largest difference of a pixel (0 to 1) to the float64 run
    stock_error: float
    restored: bool  # after remove(), the model's output is bit for bit the stock one
    time: Pair


def run(picture: Path, *, each: int, steps: int, seed: int, repeats: int, progress: Progress) -> Digits:
    """Draw `each` images of every digit with our kernels; compare with stock diffusers and with float64."""
    stock, scheduler = load_model()
    model = copy.deepcopy(stock)
    applied = sgl_kernels.apply(model)
    labels = torch.arange(10).repeat_interleave(each)

    def draw(what: torch.nn.Module, title: str) -> Tensor:
        return generate(
            what, scheduler, labels, steps=steps, seed=seed, progress=lambda done, n: progress(title, done, n)
        )

    with sgl_kernels.record() as recorder:
        ours = draw(model, "digits, sgl_kernels")
    report = recorder.report()
    image_grid(ours, each).save(picture)
    plain = draw(stock, "digits, stock diffusers")
    exact = draw(copy.deepcopy(stock).double(), "digits, float64")
    seen, _ = read_digits(load_reader(), ours)

    step = _one_step(labels)
    with torch.no_grad():
        pair = interleaved(
            lambda: step(stock), lambda: step(model), repeats, lambda d, n: progress("step times", d, n)
        )
        applied.remove()
        restored = torch.equal(step(model), step(stock))
    return Digits(
        applied=repr(applied),
        report=report,
        selections=_selections(report),
        steps=steps,
        samples=len(labels),
        read=int((seen == labels).sum()),
        ours_error=_distance(ours, exact),
        stock_error=_distance(plain, exact),
        restored=restored,
        time=pair,
    )


def _one_step(labels: Tensor) -> Callable[[torch.nn.Module], Tensor]:
    """One step of the sampler with guidance: the model on the doubled batch."""
    classes = torch.cat([labels, torch.full_like(labels, 10)])
    x = torch.randn(len(classes), 1, 28, 28, generator=torch.Generator().manual_seed(1))
    times = torch.full((len(classes),), 500.0)
    return lambda model: model(x, timestep=times, class_labels=classes, return_dict=False)[0]


def _distance(a: Tensor, b: Tensor) -> float:
    return float((a.double() - b.double()).abs().max())


def _selections(report: sgl_kernels.core.wrapping.record.Report) -> tuple[str, ...]:
    """The decision table of the busiest call of each op."""
    tables: dict[str, str] = {}
    for entry in report.entries:  # sorted by op, then by time
        tables.setdefault(entry.op, str(entry.selection))
    return tuple(tables.values())
