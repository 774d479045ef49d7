"""Train the digit model: diffusers' own DiTTransformer2DModel, from scratch, by flow matching on a CPU.

The model sees x = (1 - s) * image + s * noise at a random noise level s in (0, 1) and learns the velocity
(noise - image), which is what diffusers' FlowMatchEulerDiscreteScheduler expects.  One label in ten is
replaced by the null class, so that classifier-free guidance works.  The saved weights are a moving average
(EMA).

    python -m examples.digits.train_dit --steps 3600

A checkpoint is written every few minutes; the same command with --resume goes on from it.
"""

from __future__ import annotations

import argparse
import copy
import time
from pathlib import Path

import torch
from diffusers import DiTTransformer2DModel, FlowMatchEulerDiscreteScheduler
from torch import nn

from .data import IMAGE_SIZE, NUM_CLASSES, load_digits

HERE = Path(__file__).resolve().parent
NULL_CLASS = NUM_CLASSES
TRAIN_TIMESTEPS = 1000


def build_model() -> DiTTransformer2DModel:
    """Make the model and give it the start values of the DiT paper (diffusers leaves torch's defaults)."""
    model = DiTTransformer2DModel(
        num_attention_heads=3,
        attention_head_dim=64,
        in_channels=1,
        out_channels=1,
        num_layers=5,
        sample_size=IMAGE_SIZE,
        patch_size=4,
        num_embeds_ada_norm=NUM_CLASSES,
    )
    for module in model.modules():
        if isinstance(module, nn.Linear):
            nn.init.xavier_uniform_(module.weight)
            nn.init.zeros_(module.bias)
    nn.init.xavier_uniform_(model.pos_embed.proj.weight.data.view(model.inner_dim, -1))
    nn.init.zeros_(model.pos_embed.proj.bias)
    for block in model.transformer_blocks:
        embedder = block.norm1.emb
        nn.init.normal_(embedder.class_embedder.embedding_table.weight, std=0.02)
        nn.init.normal_(embedder.timestep_embedder.linear_1.weight, std=0.02)
        nn.init.normal_(embedder.timestep_embedder.linear_2.weight, std=0.02)
        nn.init.zeros_(block.norm1.linear.weight)
    for last in (model.proj_out_1, model.proj_out_2):
        nn.init.zeros_(last.weight)
    return model


def drop_labels_here(model: DiTTransformer2DModel) -> None:
    """Switch off the blocks' own label dropout: each block would drop other labels than its neighbours."""
    for block in model.transformer_blocks:
        block.norm1.emb.class_embedder.dropout_prob = 0.0


def shift_randomly(images: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Move each image by -1, 0 or 1 pixel in both directions (half of the offsets are 0)."""
    moves = torch.tensor([-1, 0, 0, 1])[torch.randint(0, 4, (2, len(images)), generator=generator)]
    grid = torch.arange(IMAGE_SIZE)
    rows = (grid[None, :] + moves[0][:, None]) % IMAGE_SIZE
    columns = (grid[None, :] + moves[1][:, None]) % IMAGE_SIZE
    index = torch.arange(len(images))[:, None, None]
    return images[index, 0, rows[:, :, None], columns[:, None, :]].unsqueeze(1)


def learning_rate(step: int, steps: int, peak: float, warm_up: int = 200, decay: float = 0.4) -> float:
    """Rise linearly, stay at the peak, and fall to nearly zero over the last `decay` part of the run."""
    falling = (steps - step) / (decay * steps)
    return peak * max(0.005, min(1.0, (step + 1) / warm_up, falling))


@torch.no_grad()
def update_average(average: nn.Module, model: nn.Module, step: int, decay: float = 0.999) -> None:
    """Move the averaged weights towards the trained ones; faster at the start of the run."""
    weight = 1 - min(decay, (1 + step) / (10 + step))
    torch._foreach_lerp_(list(average.parameters()), list(model.parameters()), weight)


def export(average: DiTTransformer2DModel, folder: Path) -> None:
    """Write the averaged weights as fp16 safetensors with the model's and the scheduler's configuration."""
    stored = copy.deepcopy(average).half()
    stored.save_pretrained(folder)
    FlowMatchEulerDiscreteScheduler(num_train_timesteps=TRAIN_TIMESTEPS, shift=1.0).save_pretrained(folder)


def train(options: argparse.Namespace) -> None:
    """Run the training loop and write the log, the checkpoints and the final model."""
    torch.manual_seed(options.seed)
    generator = torch.Generator().manual_seed(options.seed)
    digits, _ = load_digits()
    images, labels = digits.images * 2 - 1, digits.labels

    model = build_model()
    drop_labels_here(model)
    average = copy.deepcopy(model).requires_grad_(False)
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=options.lr, betas=(0.9, 0.95), weight_decay=0.01, fused=True
    )
    first, seconds = 0, 0.0
    state_file = options.work / "state.pt"
    if options.resume:
        state = torch.load(state_file, weights_only=True)
        model.load_state_dict(state["model"])
        average.load_state_dict(state["average"])
        optimizer.load_state_dict(state["optimizer"])
        generator.set_state(state["generator"])
        first, seconds = state["step"], state["seconds"]
    options.work.mkdir(parents=True, exist_ok=True)
    log_file = (options.work / "train.log").open("a" if options.resume else "w", encoding="utf-8")

    def log(line: str) -> None:
        print(line, flush=True)
        print(line, file=log_file, flush=True)

    count = sum(p.numel() for p in model.parameters())
    log(
        f"# DiT {count:,} parameters, {len(digits)} digits, batch {options.batch}, peak lr {options.lr}, "
        f"steps {first}..{options.steps}, seed {options.seed}, {torch.get_num_threads()} threads, "
        f"torch {torch.__version__}"
    )
    model.train()
    begin = saved = time.monotonic() - seconds
    running, seen = 0.0, 0
    order, at = torch.empty(0, dtype=torch.long), 0
    for step in range(first, options.steps):
        if at + options.batch > len(order):
            order, at = torch.randperm(len(labels), generator=generator), 0
        chosen = order[at : at + options.batch]
        at += options.batch
        image = shift_randomly(images[chosen], generator)
        label = labels[chosen]
        label = torch.where(torch.rand(len(label), generator=generator) < options.drop, NULL_CLASS, label)
        noise = torch.randn(image.shape, generator=generator)
        level = torch.sigmoid(1.2 * torch.randn(len(label), generator=generator) + 0.1)
        s = level.view(-1, 1, 1, 1)
        velocity = model(
            (1 - s) * image + s * noise,
            timestep=level * TRAIN_TIMESTEPS,
            class_labels=label,
            return_dict=False,
        )[0]
        loss = (velocity - (noise - image)).square().mean()
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(step, options.steps, options.lr)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        norm = nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        update_average(average, model, step)

        running, seen = running + loss.item(), seen + 1
        now = time.monotonic()
        done = step + 1
        if done % options.log_every == 0 or done == options.steps:
            lr = optimizer.param_groups[0]["lr"]
            mean = running / seen
            log(f"step {done:5d}  loss {mean:.4f}  grad {norm:.2f}  lr {lr:.2e}  {now - begin:6.0f} s")
            running, seen = 0.0, 0
        if now - saved > options.save_minutes * 60 or done == options.steps:
            saved = now
            torch.save(
                {
                    "model": model.state_dict(),
                    "average": average.state_dict(),
                    "optimizer": optimizer.state_dict(),
                    "generator": generator.get_state(),
                    "step": done,
                    "seconds": now - begin,
                },
                state_file,
            )
            export(average, options.work / "model")
    export(average, options.output)
    log(f"# saved after {options.steps} steps, {time.monotonic() - begin:.0f} s")


def main() -> None:
    """Command line of the training."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--steps", type=int, default=3600)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--lr", type=float, default=1e-3)
    parser.add_argument(
        "--drop", type=float, default=0.1, help="part of the labels replaced by the null class"
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--log-every", type=int, default=100)
    parser.add_argument("--save-minutes", type=float, default=4.0)
    parser.add_argument("--resume", action="store_true", help="go on from the last checkpoint in --work")
    parser.add_argument("--work", type=Path, default=Path("out/digits"), help="checkpoints and the log")
    parser.add_argument("--output", type=Path, default=HERE / "model", help="folder of the final model")
    train(parser.parse_args())


if __name__ == "__main__":
    main()
