"""Train the digit reader on the 9,000 real training digits and test it on the 1,000 held-out ones.

The reader never sees a generated image, so that it can judge the diffusion model from outside.

    python -m examples.digits.train_classifier
"""

from __future__ import annotations

import argparse
import math
import time
from pathlib import Path

import torch
from torch.nn import functional

from .classifier import WEIGHTS, DigitReader, load_reader, read_digits, save_reader
from .data import load_digits

HERE = Path(__file__).resolve().parent


def distort(images: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Turn, scale and move each image a little (up to 12 degrees, 10 %, 2 pixels)."""
    n = len(images)
    turn, size, right, down = (torch.rand(4, n, generator=generator) * 2 - 1).unbind()
    angle, scale = turn * math.radians(12), 1 + 0.1 * size
    cos, sin = torch.cos(angle) * scale, torch.sin(angle) * scale
    rows = [torch.stack([cos, -sin, right * 2 / 14], -1), torch.stack([sin, cos, down * 2 / 14], -1)]
    grid = functional.affine_grid(torch.stack(rows, 1), list(images.shape), align_corners=False)
    return functional.grid_sample(images, grid, align_corners=False)


def train(options: argparse.Namespace) -> float:
    """Train, save, reload the saved weights and return their accuracy on the held-out digits."""
    torch.manual_seed(options.seed)
    generator = torch.Generator().manual_seed(options.seed)
    digits, held_out = load_digits()
    reader = DigitReader()
    per_epoch = len(digits) // options.batch
    optimizer = torch.optim.AdamW(reader.parameters(), lr=options.lr, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, options.lr, total_steps=per_epoch * options.epochs
    )
    begin = time.monotonic()
    with options.log.open("w", encoding="utf-8") as log_file:

        def log(line: str) -> None:
            print(line, flush=True)
            print(line, file=log_file, flush=True)

        count = sum(p.numel() for p in reader.parameters())
        log(
            f"# digit reader, {count:,} parameters, {len(digits)} real digits, batch {options.batch}, "
            f"peak lr {options.lr}, seed {options.seed}, torch {torch.__version__}"
        )
        for epoch in range(1, options.epochs + 1):
            reader.train()
            total = 0.0
            order = torch.randperm(len(digits), generator=generator)[: per_epoch * options.batch]
            for chosen in order.split(options.batch):
                logits = reader(distort(digits.images[chosen], generator))
                loss = functional.cross_entropy(logits, digits.labels[chosen], label_smoothing=0.05)
                optimizer.zero_grad(set_to_none=True)
                loss.backward()
                optimizer.step()
                schedule.step()
                total += loss.item()
            log(f"epoch {epoch:2d}  loss {total / per_epoch:.4f}  {time.monotonic() - begin:5.0f} s")
        save_reader(reader, options.output)
        seen, _ = read_digits(load_reader(options.output), held_out.images)
        accuracy = (seen == held_out.labels).float().mean().item()
        log(f"# saved weights read {accuracy:.2%} of the {len(held_out)} held-out real digits correctly")
    return accuracy


def main() -> None:
    """Command line of the reader's training."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--epochs", type=int, default=14)
    parser.add_argument("--batch", type=int, default=100)
    parser.add_argument("--lr", type=float, default=3e-3)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path, default=WEIGHTS)
    parser.add_argument("--log", type=Path, default=HERE / "train_classifier.log")
    if train(parser.parse_args()) < 0.99:
        raise SystemExit("the reader is below 99 %: train longer")


if __name__ == "__main__":
    main()
