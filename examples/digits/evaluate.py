"""Draw 1,000 digits (100 of each) and let the digit reader, trained on real digits only, read them.

    python -m examples.digits.evaluate

Writes eval.json: the part read correctly (in all and per class), how sure the reader is, and three
comparisons with the real held-out digits: how varied the images of one class are, how much of the ink is
half-grey (blur), and how close each image is to its nearest training digit (copying).
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any

import torch

from .classifier import load_reader, read_digits
from .data import NUM_CLASSES, load_digits
from .sample import GUIDANCE, MODEL, STEPS, generate, image_grid, load_model

HERE = Path(__file__).resolve().parent


def spread(images: torch.Tensor, labels: torch.Tensor) -> float:
    """Mean distance between two images of the same class (all-alike images give 0)."""
    distances = []
    for digit in range(NUM_CLASSES):
        flat = images[labels == digit].flatten(1)
        distances.append(torch.pdist(flat).mean())
    return torch.stack(distances).mean().item()


def half_grey(images: torch.Tensor) -> float:
    """Part of the inked pixels that are neither nearly empty nor nearly full; blur makes it larger."""
    ink = images > 0.1
    return ((images < 0.9) & ink).sum().item() / ink.sum().item()


def nearest(images: torch.Tensor, train: torch.Tensor) -> torch.Tensor:
    """Distance of each image to its nearest training digit."""
    reference = train.flatten(1)
    return torch.cat([torch.cdist(part.flatten(1), reference).min(1).values for part in images.split(250)])


def evaluate(options: argparse.Namespace) -> dict[str, Any]:
    """Generate, read and compare; return the numbers that go into eval.json."""
    model, scheduler = load_model(options.model)
    labels = torch.arange(NUM_CLASSES).repeat(options.each)
    begin = time.perf_counter()
    parts = []
    for number, batch in enumerate(labels.split(options.batch)):
        parts.append(
            generate(
                model,
                scheduler,
                batch,
                steps=options.steps,
                guidance=options.guidance,
                seed=options.seed + number,
            )
        )
    images = torch.cat(parts)
    seconds = time.perf_counter() - begin

    reader = load_reader()
    train, held_out = load_digits()
    seen, sure = read_digits(reader, images)
    real_seen, real_sure = read_digits(reader, held_out.images)
    right = seen == labels
    gap = nearest(images, train.images)
    real_gap = nearest(held_out.images, train.images)
    if options.grid is not None:
        image_grid(images[: 10 * NUM_CLASSES], NUM_CLASSES).save(options.grid)
    return {
        "samples": len(labels),
        "steps": options.steps,
        "guidance": options.guidance,
        "seed": options.seed,
        "batch": options.batch,
        "seconds": round(seconds, 1),
        "torch": torch.__version__,
        "accuracy": round(right.float().mean().item(), 4),
        "accuracy_per_class": {str(d): round(right[labels == d].float().mean().item(), 4) for d in range(10)},
        "accuracy_on_real_held_out": round((real_seen == held_out.labels).float().mean().item(), 4),
        "reader_confidence": {
            "generated": round(sure.mean().item(), 4),
            "real": round(real_sure.mean().item(), 4),
        },
        "spread_within_class": {
            "generated": round(spread(images, labels), 3),
            "real": round(spread(held_out.images, held_out.labels), 3),
        },
        "half_grey_ink": {
            "generated": round(half_grey(images), 3),
            "real": round(half_grey(held_out.images), 3),
        },
        "distance_to_nearest_training_digit": {
            "generated_median": round(gap.median().item(), 3),
            "generated_smallest": round(gap.min().item(), 3),
            "real_held_out_median": round(real_gap.median().item(), 3),
            "real_held_out_smallest": round(real_gap.min().item(), 3),
        },
    }


def main() -> None:
    """Command line of the evaluation."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", type=Path, default=MODEL)
    parser.add_argument("--each", type=int, default=100, help="images of each digit")
    parser.add_argument("--batch", type=int, default=100)
    parser.add_argument("--steps", type=int, default=STEPS)
    parser.add_argument("--guidance", type=float, default=GUIDANCE)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--grid", type=Path, default=None, help="also write the first 100 images as a PNG")
    parser.add_argument("--output", type=Path, default=HERE / "eval.json")
    parser.add_argument("--need", type=float, default=0.97, help="exit with an error below this accuracy")
    options = parser.parse_args()
    numbers = evaluate(options)
    options.output.write_text(json.dumps(numbers, indent=2) + "\n", encoding="utf-8")
    print(json.dumps(numbers, indent=2))
    print(f"accuracy: {numbers['accuracy']:.2%} of {numbers['samples']} generated digits read correctly")
    if numbers["accuracy"] < options.need:
        raise SystemExit(f"below the wanted {options.need:.0%}")


if __name__ == "__main__":
    main()
