"""Whole models, stock against `sgl_kernels.apply`, in turns in one process: ratio of CPU time, and the error of both.

    python -m benchmarks.models [--out FOLDER] [--only NAME ...] [--repeats N]

Models are built from a configuration with random weights: two blocks of a diffusion transformer, or a small text
model, at sizes where the time goes where it goes in the real ones. One thread and process CPU time, so that other
work on the machine disturbs both alike. The error is the relative L2 distance to the same model in float64.
"""

from __future__ import annotations

import argparse
import copy
import datetime
import gc
import json
import os
import statistics
import time
from collections.abc import Callable
from importlib.metadata import version as _version
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import sgl_kernels
from sgl_kernels.tools.bench.results import describe_machine, machine_slug, versions

Made = tuple[nn.Module, dict[str, Any]]
TOKENS, TEXT = 512, 64


def _r(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(1))


def flux() -> Made:
    """Flux: one double and one single block of width 768."""
    from diffusers import FluxTransformer2DModel

    model = FluxTransformer2DModel(
        in_channels=64, num_layers=1, num_single_layers=1, attention_head_dim=128, num_attention_heads=6,
        joint_attention_dim=512, pooled_projection_dim=256, guidance_embeds=False,
    )  # fmt: skip
    return model, dict(
        hidden_states=_r(1, TOKENS, 64), encoder_hidden_states=_r(1, TEXT, 512), pooled_projections=_r(1, 256),
        timestep=torch.tensor([0.5]), img_ids=torch.arange(3.0 * TOKENS).reshape(TOKENS, 3) % 16,
        txt_ids=torch.zeros(TEXT, 3),
    )  # fmt: skip


def wan() -> Made:
    """Wan: two blocks of width 768."""
    from diffusers import WanTransformer3DModel

    model = WanTransformer3DModel(
        num_attention_heads=6, attention_head_dim=128, text_dim=512, ffn_dim=3072, num_layers=2,
        cross_attn_norm=True, rope_max_seq_len=64,
    )  # fmt: skip
    return model, dict(
        hidden_states=_r(1, 16, 2, 32, 32),
        timestep=torch.tensor([500]),
        encoder_hidden_states=_r(1, TEXT, 512),
    )


def qwen_image() -> Made:
    """Qwen-Image: two blocks of width 768."""
    from diffusers import QwenImageTransformer2DModel

    model = QwenImageTransformer2DModel(
        in_channels=64, num_layers=2, attention_head_dim=128, num_attention_heads=6, joint_attention_dim=512
    )
    return model, dict(
        hidden_states=_r(1, TOKENS, 64), encoder_hidden_states=_r(1, TEXT, 512),
        encoder_hidden_states_mask=torch.ones(1, TEXT, dtype=torch.bool), timestep=torch.tensor([0.5]),
        img_shapes=[[(1, 16, 32)]],
    )  # fmt: skip


def llama() -> Made:
    """Llama: two layers of width 768, 256 tokens."""
    from transformers import LlamaConfig, LlamaModel

    config = LlamaConfig(
        vocab_size=1000, hidden_size=768, intermediate_size=2048, num_hidden_layers=2, num_attention_heads=12,
        num_key_value_heads=4,
    )  # fmt: skip
    return LlamaModel(config), dict(input_ids=torch.arange(256)[None] % 1000, use_cache=False)


def bert() -> Made:
    """BERT: two layers of width 768, 8 texts of 8 to 64 tokens."""
    from transformers import BertConfig, BertModel

    keep = (torch.arange(64)[None] < torch.arange(8, 65, 8)[:, None]).long()
    model = BertModel(BertConfig(vocab_size=1000, num_hidden_layers=2))
    return model, dict(input_ids=(torch.arange(512).view(8, 64) % 999 + 1) * keep, attention_mask=keep)


MODELS: dict[str, Callable[[], Made]] = {f.__name__: f for f in (flux, wan, qwen_image, llama, bert)}
DTYPES = (torch.float32, torch.bfloat16)


def randomise(model: nn.Module) -> nn.Module:
    """Weights as large as trained ones: fresh gates are zero, which would hide half of the model."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, p in model.named_parameters():
            noise = torch.randn(p.shape, generator=generator)
            scale = max(1, p[0].numel()) ** -0.5 if p.ndim > 1 else 0.1
            p.copy_(noise * scale + (1.0 if p.ndim == 1 and name.endswith("weight") else 0.0))
    return model.eval()


def run(model: nn.Module, inputs: dict[str, Any], dtype: torch.dtype) -> Tensor:
    """The model's first output, its floating point inputs in `dtype`; positions stay in float32."""
    cast = {
        k: v.to(dtype) if isinstance(v, Tensor) and v.is_floating_point() and not k.endswith("ids") else v
        for k, v in inputs.items()
    }
    out: Tensor = model(**cast, return_dict=False)[0]
    return out


def compare(name: str, dtype: torch.dtype, padding: str, repeats: int) -> dict[str, Any]:
    """One row of the results."""
    model, inputs = MODELS[name]()
    model = randomise(model).to(dtype)
    exact = run(copy.deepcopy(model).double(), inputs, torch.float64)
    ours = copy.deepcopy(model)
    applied = sgl_kernels.apply(ours, padding=padding)
    keep = inputs.get("attention_mask")
    errors = []
    for candidate in (model, ours):
        out = run(candidate, inputs, dtype).double()
        difference = (out - exact) if keep is None else (out - exact) * keep[..., None]
        errors.append(float(difference.norm() / exact.norm()))
    times: tuple[list[float], list[float]] = ([], [])
    for i in range(repeats):
        for mine in (0, 1) if i % 2 == 0 else (1, 0):
            begin = time.process_time()
            run(ours if mine else model, inputs, dtype)
            times[mine].append(time.process_time() - begin)
    before = run(model, inputs, dtype)
    applied.remove()
    ratios = [s / o for s, o in zip(*times, strict=True)]
    row = {
        "model": name,
        "what": (MODELS[name].__doc__ or "").strip(),
        "dtype": str(dtype).removeprefix("torch."),
        "padding": padding,
        "applied": repr(applied).partition(": ")[2].rstrip(")"),
        "stock_ms": statistics.median(times[0]) * 1e3,
        "ours_ms": statistics.median(times[1]) * 1e3,
        "ratio": statistics.median(ratios),
        "ratio_min": min(ratios),
        "ratio_max": max(ratios),
        "stock_error": errors[0],
        "ours_error": errors[1],
        "restored": torch.equal(run(ours, inputs, dtype), before),
    }
    gc.collect()
    return row


@torch.no_grad()
def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, help="folder of result folders; writes MACHINE/models.json")
    parser.add_argument("--only", nargs="*", choices=list(MODELS), default=list(MODELS))
    parser.add_argument("--repeats", type=int, default=5)
    options = parser.parse_args()
    torch.set_num_threads(1)
    load = round(os.getloadavg()[0], 1)
    for name in options.only:
        for dtype in DTYPES:
            for padding in ("compute", "skip") if name == "bert" else ("compute",):
                row = compare(name, dtype, padding, options.repeats)
                print(
                    f"{row['model']:<11} {row['dtype']:<9} {row['padding']:<8} {row['stock_ms']:8.1f} ms -> "
                    f"{row['ours_ms']:8.1f} ms  {row['ratio']:.2f}x  error {row['stock_error']:.1e} -> "
                    f"{row['ours_error']:.1e}{'' if row['restored'] else '  NOT RESTORED'}",
                    flush=True,
                )
                if options.out is not None:
                    path = save(options.out, row, {"repeats": options.repeats, "load_average": load})
    if options.out is not None:
        print(f"written: {path}")


def save(folder: Path, row: dict[str, Any], settings: dict[str, Any]) -> Path:
    """Put a row in the place of the one before it in MACHINE/models.json."""
    machine = describe_machine(torch.device("cpu"))
    path = folder / machine_slug(machine) / "models.json"
    rows = {_key(r): r for r in json.loads(path.read_text())["rows"]} if path.exists() else {}
    rows[_key(row)] = row
    document = {
        "date": datetime.date.today().isoformat(),
        "machine": machine,
        "versions": {
            **versions(),
            "diffusers": _version("diffusers"),
            "transformers": _version("transformers"),
        },
        "settings": {"threads": 1, "clock": "cpu", **settings},
        "rows": [rows[key] for key in sorted(rows)],
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(document, indent=1) + "\n")
    return path


def _key(row: dict[str, Any]) -> tuple[int, bool, str]:
    return list(MODELS).index(row["model"]), row["dtype"] != "float32", row["padding"]


if __name__ == "__main__":
    main()
