"""What 4 bits cost: the digit transformer and MiniLM with W4A16, W4A8 and W4A4 linear layers, against fp32.

    python -m benchmarks.nvfp4.quality [--each 20]

Writes benchmarks/results/nvfp4_quality.json and the table in docs/nvfp4.md. Every digit is drawn from the same noise,
so PSNR compares pictures; the part read correctly is judged by examples/digits' reader, trained on real digits.
"""

from __future__ import annotations

import argparse
import copy
import json
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from examples.digits.classifier import load_reader, read_digits
from examples.digits.sample import generate, load_model
from sgl_kernels.integrations.checkpoints import load_checkpoint, save_checkpoint
from sgl_kernels.integrations.nvfp4_linear import NVFP4Linear
from sgl_kernels.integrations.quantize import quantize_model

ROOT = Path(__file__).resolve().parents[2]
MODES = {"W4A16": "bf16", "W4A8": "int8", "W4A4": "nvfp4"}
BEGIN, END = "<!-- quality: begin -->\n", "<!-- quality: end -->\n"


def linear_bytes(model: nn.Module) -> int:
    """Bytes of the linear layers."""
    layers = [m for m in model.modules() if isinstance(m, nn.Linear | NVFP4Linear)]
    tensors = [t for m in layers for t in (*m.parameters(recurse=False), *m.buffers(recurse=False))]
    return sum(t.numel() * t.element_size() for t in tensors)


def psnr(images: Tensor, reference: Tensor) -> float:
    """Peak signal to noise over all images, in dB; images are in [0, 1]."""
    return -10 * torch.log10((images - reference).square().mean()).item()


def timed(run: Callable[[], Any], repeats: int) -> tuple[Any, float]:
    """(result, median CPU seconds)."""
    times = []
    for _ in range(repeats):
        begin = time.process_time()
        result = run()
        times.append(time.process_time() - begin)
    return result, statistics.median(times)


def digits(each: int) -> list[dict[str, Any]]:
    """One row for each mode of the digit transformer."""
    stock, scheduler = load_model()
    reader, labels = load_reader(), torch.arange(10).repeat(each)

    def draw(model: nn.Module) -> Tensor:
        return generate(model, scheduler, labels, seed=1)

    def right(images: Tensor) -> float:
        with torch.no_grad():
            return round(100 * (read_digits(reader, images)[0] == labels).float().mean().item(), 1)

    reference, seconds = timed(lambda: draw(stock), 1)
    rows = [{"model": "digits", "mode": "fp32", "accuracy": right(reference), "linear_bytes": linear_bytes(stock),
             "cpu_seconds": round(seconds, 2)}]  # fmt: skip
    for mode, activation in MODES.items():
        model = copy.deepcopy(stock)
        report = quantize_model(model, activation=activation)
        images, seconds = timed(lambda m=model: draw(m), 1)
        rows.append(
            {"model": "digits", "mode": mode, "accuracy": right(images), "psnr_db": round(psnr(images, reference), 2),
             "linear_bytes": linear_bytes(model), "cpu_seconds": round(seconds, 2),
             "worst_layer": {"name": report.worst(1)[0].name, "error": round(report.worst(1)[0].error or 0, 4)}}
        )  # fmt: skip
        if mode == "W4A16":
            with tempfile.TemporaryDirectory() as folder:
                save_checkpoint(model, folder)
                fresh, _ = load_model()
                load_checkpoint(fresh, folder, activation=activation)
            again = draw(fresh)
            rows[-1]["checkpoint_round_trip_is_bit_equal"] = torch.equal(again, images)
    return rows


def sentences() -> list[dict[str, Any]]:
    """One row for each mode of MiniLM."""
    from examples.demo.sentences import SENTENCES, embed, load

    stock, tokenizer = load()
    batch = tokenizer(list(SENTENCES), padding=True, return_tensors="pt")
    partner = torch.arange(len(SENTENCES)) ^ 1

    def found(vectors: Tensor) -> int:
        likeness = vectors @ vectors.T - 2 * torch.eye(len(vectors))
        return int((likeness.argmax(1) == partner).sum())

    with torch.no_grad():
        reference, seconds = timed(lambda: embed(stock, batch), 5)
        rows = [{"model": "MiniLM", "mode": "fp32", "pairs_found": found(reference), "of": len(SENTENCES),
                 "linear_bytes": linear_bytes(stock), "cpu_seconds": round(seconds, 4)}]  # fmt: skip
        for mode, activation in MODES.items():
            model = copy.deepcopy(stock)
            quantize_model(model, activation=activation)
            vectors, seconds = timed(lambda m=model: embed(m, batch), 5)
            cosine = (vectors * reference).sum(-1)
            rows.append(
                {"model": "MiniLM", "mode": mode, "cosine_mean": round(cosine.mean().item(), 4),
                 "cosine_least": round(cosine.min().item(), 4), "pairs_found": found(vectors), "of": len(SENTENCES),
                 "linear_bytes": linear_bytes(model), "cpu_seconds": round(seconds, 4)}
            )  # fmt: skip
    return rows


def table(rows: list[dict[str, Any]], each: int) -> str:
    """The rows as Markdown."""
    lines = [
        f"Digits: {10 * each} pictures, 25 steps, guidance 2.5, the same noise in every mode. CPU time of one thread, "
        "ratio to fp32 in the same run.\n",
        "| model | mode | quality | against fp32 | linear layers | CPU time |",
        "|---|---|---|---|---|---|",
    ]
    first: dict[str, dict[str, Any]] = {}
    for r in rows:
        base = first.setdefault(r["model"], r)
        if r["model"] == "digits":
            quality = f"{r['accuracy']} % read correctly"
            against = f"PSNR {r['psnr_db']} dB" if "psnr_db" in r else ""
        else:
            quality = f"{r['pairs_found']} of {r['of']} pairs found"
            against = f"cosine {r['cosine_mean']}, least {r['cosine_least']}" if "cosine_mean" in r else ""
        size = f"{r['linear_bytes'] / 1e6:.2f} MB ({base['linear_bytes'] / r['linear_bytes']:.1f}x smaller)"
        speed = f"{base['cpu_seconds'] / r['cpu_seconds']:.2f}x"
        lines.append(f"| {r['model']} | {r['mode']} | {quality} | {against} | {size} | {speed} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--each", type=int, default=20, help="pictures of each digit")
    options = parser.parse_args()
    torch.set_num_threads(1)
    rows = [*digits(options.each), *sentences()]
    result = {"torch": torch.__version__, "cpu": torch.backends.cpu.get_cpu_capability(), "each": options.each,
              "rows": rows}  # fmt: skip
    (ROOT / "benchmarks" / "results" / "nvfp4_quality.json").write_text(json.dumps(result, indent=1) + "\n")
    text = table(rows, options.each)
    page = ROOT / "docs" / "nvfp4.md"
    if page.exists() and BEGIN in page.read_text():
        before, rest = page.read_text().split(BEGIN)
        page.write_text(before + BEGIN + text + END + rest.split(END)[1])
    print(text)


if __name__ == "__main__":
    main()
