"""Draw digits with the trained model and stock diffusers.

    python -m examples.digits.sample --digits 0123456789 --each 8 --out digits.png

`generate` is the one function that the demo, the evaluation and this command share.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from diffusers import DiTTransformer2DModel, FlowMatchEulerDiscreteScheduler
from PIL import Image

MODEL = Path(__file__).resolve().parent / "model"
STEPS = 25
GUIDANCE = 2.5

Progress = Callable[[int, int], None]


def load_model(
    folder: Path | str = MODEL, *, dtype: torch.dtype = torch.float32, device: torch.device | str = "cpu"
) -> tuple[DiTTransformer2DModel, FlowMatchEulerDiscreteScheduler]:
    """Load the model (stored in fp16, computed in `dtype`) and its scheduler from a local folder."""
    model = DiTTransformer2DModel.from_pretrained(
        folder, torch_dtype=dtype, local_files_only=True, low_cpu_mem_usage=False
    )
    scheduler = FlowMatchEulerDiscreteScheduler.from_pretrained(folder, local_files_only=True)
    return model.to(device).eval(), scheduler


@torch.no_grad()
def generate(
    model: torch.nn.Module,
    scheduler: Any,
    labels: Sequence[int] | torch.Tensor,
    *,
    steps: int = STEPS,
    guidance: float = GUIDANCE,
    seed: int = 0,
    progress: Progress | None = None,
) -> torch.Tensor:
    """Draw one image for each label, as one batch.

    The start noise is made on the CPU from `seed` alone, so that every device and every set of kernels
    starts from the same numbers.  Above guidance 1 the model runs on a doubled batch: the labels, and the
    null class.

    Args:
        model: the transformer, called as `model(x, timestep=, class_labels=, return_dict=False)[0]`.
        scheduler: a diffusers scheduler with `set_timesteps` and `step`.
        labels: the digits to draw.
        steps: number of denoising steps.
        guidance: classifier-free guidance scale; 1 or less switches it off.
        seed: fixes the start noise.
        progress: called after each step with (steps done, steps in all).

    Returns:
        fp32 images in [0, 1], shape (N, 1, 28, 28), on the model's device.
    """
    weight = next(model.parameters())
    config: Any = model.config
    classes = torch.as_tensor(labels, dtype=torch.long).reshape(-1).to(weight.device)
    guided = guidance > 1
    if guided:
        classes = torch.cat([classes, torch.full_like(classes, config.num_embeds_ada_norm)])
    count = len(classes) // 2 if guided else len(classes)
    shape = (count, config.in_channels, config.sample_size, config.sample_size)
    noise = torch.randn(shape, generator=torch.Generator().manual_seed(seed))
    x = noise.to(weight.device)
    scheduler.set_timesteps(steps, device=weight.device)
    for done, t in enumerate(scheduler.timesteps, start=1):
        inputs = (torch.cat([x, x]) if guided else x).to(weight.dtype)
        times = t.expand(len(inputs))
        velocity = model(inputs, timestep=times, class_labels=classes, return_dict=False)[0].float()
        if guided:
            wanted, null = velocity.chunk(2)
            velocity = null + guidance * (wanted - null)
        x = scheduler.step(velocity, t, x, return_dict=False)[0]
        if progress is not None:
            progress(done, steps)
    return (x / 2 + 0.5).clamp(0, 1)


def image_grid(images: torch.Tensor, columns: int, zoom: int = 3) -> Image.Image:
    """Lay images of shape (N, 1, H, W) out row by row in one greyscale picture."""
    n, _, height, width = images.shape
    rows = -(-n // columns)
    sheet = torch.zeros(rows * columns, height, width)
    sheet[:n] = images[:, 0].cpu()
    sheet = sheet.view(rows, columns, height, width).permute(0, 2, 1, 3)
    sheet = sheet.reshape(rows * height, columns * width)
    picture = Image.fromarray((sheet * 255).round().byte().numpy())
    return picture.resize((columns * width * zoom, rows * height * zoom), Image.Resampling.NEAREST)


def main() -> None:
    """Command line: draw some digits into a PNG."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--digits", default="0123456789", help="which digits, one row each")
    parser.add_argument("--each", type=int, default=8, help="images of each digit")
    parser.add_argument("--steps", type=int, default=STEPS)
    parser.add_argument("--guidance", type=float, default=GUIDANCE)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--model", type=Path, default=MODEL)
    parser.add_argument("--out", type=Path, default=Path("digits.png"))
    options = parser.parse_args()
    model, scheduler = load_model(options.model)
    labels = [int(digit) for digit in options.digits for _ in range(options.each)]
    begin = time.perf_counter()
    images = generate(
        model, scheduler, labels, steps=options.steps, guidance=options.guidance, seed=options.seed
    )
    seconds = time.perf_counter() - begin
    image_grid(images, options.each).save(options.out)
    print(
        f"{len(labels)} digits, {options.steps} steps, {seconds:.2f} s "
        f"({seconds / options.steps:.3f} s a step)"
    )
    print(f"written: {options.out}")


if __name__ == "__main__":
    main()
