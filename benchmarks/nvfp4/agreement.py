"""Our NVFP4 quantiser and layouts against independent implementations that run on a CPU.

Run by `make nvfp4-agreement`, in an environment of its own: none of these libraries is a dependency. Writes
benchmarks/results/nvfp4_agreement.json, and with --fixture the vectors that tests/ops/nvfp4 checks without them.

FlashInfer keeps its reference in its repository, not in its package: pass the file
tests/test_helpers/utils_fp4.py of a checkout with --flashinfer (the results are of commit 537a3b560, 2026-04-30;
later ones import the package, which needs a CUDA build).
"""

from __future__ import annotations

import argparse
import importlib.metadata
import importlib.util
import json
import sys
import types
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sgl_kernels.ops.nvfp4 import reference
from sgl_kernels.ops.nvfp4.layouts import swizzle_scales

ROOT = Path(__file__).resolve().parents[2]
VECTOR_ROWS = 8  # of each matrix, kept as test vectors


@dataclass(frozen=True)
class Quantised:
    """What a library made of a matrix: codes one to a byte, scales as they decode, the global scale."""

    codes: Tensor  # (M, K) uint8, 0..15
    scales: Tensor  # (M, K/16) fp32
    global_scale: float


Quantiser = Callable[[Tensor, Tensor], Quantised]  # (x, amax / 2688) -> result


def unpack(packed: Tensor) -> Tensor:
    return torch.stack((packed & 15, packed >> 4), -1).flatten(-2)


def value(q: Quantised) -> Tensor:
    table = torch.tensor((*reference.VALUES, *(-v for v in reference.VALUES)))
    return table[q.codes.long()] * q.scales.repeat_interleave(16, -1) * q.global_scale


def ours(x: Tensor, scale: Tensor) -> Quantised:
    data, block_scale, _ = reference.nvfp4_quantize(x, scale, "nvfp4", False)
    return Quantised(unpack(data), block_scale.float(), scale.item())


def torchao() -> Quantiser:
    from torchao.prototype.mx_formats.nvfp4_tensor import nvfp4_quantize

    def run(x: Tensor, scale: Tensor) -> Quantised:
        block_scale, data = nvfp4_quantize(x, 16, per_tensor_scale=scale)
        return Quantised(unpack(data), block_scale.float(), scale.item())

    return run


def modelopt() -> Quantiser:
    from modelopt.torch.quantization.qtensor.nvfp4_tensor import NVFP4QTensor

    def run(x: Tensor, scale: Tensor) -> Quantised:
        q, block_scale, total = NVFP4QTensor.quantize(x, 16, weights_scaling_factor_2=scale)
        return Quantised(unpack(q._quantized_data), block_scale.float(), float(total))

    return run


def compressed_tensors() -> Quantiser:
    from compressed_tensors.compressors.nvfp4.helpers import quantize_and_pack_fp4
    from compressed_tensors.quantization import QuantizationArgs
    from compressed_tensors.quantization.utils import calculate_qparams

    args = QuantizationArgs(
        num_bits=4, type="float", strategy="tensor_group", group_size=16, symmetric=True,
        scale_dtype=torch.float8_e4m3fn,
    )  # fmt: skip

    def run(x: Tensor, scale: Tensor) -> Quantised:
        encode = (1.0 / scale).reshape(1)  # its global scale is in the encode direction
        blocks = x.float().unflatten(-1, (-1, 16))
        found, _ = calculate_qparams(blocks.amin(-1), blocks.amax(-1), args, encode)
        packed = quantize_and_pack_fp4(x.float(), found.float(), encode, None, 16)
        return Quantised(unpack(packed), found.float(), scale.item())

    return run


def comfy_kitchen() -> Quantiser:
    import comfy_kitchen

    def run(x: Tensor, scale: Tensor) -> Quantised:
        packed, swizzled = comfy_kitchen.quantize_nvfp4(x, scale, hi_first=False)
        rows, blocks = x.shape[0], x.shape[1] // 16
        tall, wide = -(-rows // 128) * 128, -(-blocks // 4) * 4
        tiles = swizzled.float().reshape(tall // 128, wide // 4, 32, 4, 4).permute(0, 3, 2, 1, 4)
        return Quantised(unpack(packed[:rows]), tiles.reshape(tall, wide)[:rows, :blocks], scale.item())

    return run


def mlx() -> Quantiser:
    import mlx.core as mx
    import numpy as np

    def run(x: Tensor, scale: Tensor) -> Quantised:
        """One level of scales only: the input is divided by the global scale first."""
        data, block_scale = mx.quantize(
            mx.array((x.float() / scale).numpy()), group_size=16, bits=4, mode="nvfp4"
        )[:2]
        raw = torch.from_numpy(np.array(data).view("uint8").copy()).reshape(x.shape[0], -1)
        scales = torch.from_numpy(np.array(block_scale).copy()).view(torch.float8_e4m3fn).float()
        return Quantised(unpack(raw), scales, scale.item())

    return run


def flashinfer(path: Path) -> Any:
    """The reference file as a module; of flashinfer itself it needs one rounding helper."""
    if importlib.util.find_spec("flashinfer") is None:
        package, utils = types.ModuleType("flashinfer"), types.ModuleType("flashinfer.utils")
        utils.round_up = lambda n, m: -(-n // m) * m  # type: ignore[attr-defined]
        package.utils = utils  # type: ignore[attr-defined]
        sys.modules.update({"flashinfer": package, "flashinfer.utils": utils})
    spec = importlib.util.spec_from_file_location("utils_fp4", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def codes_of(values: Tensor) -> Tensor:
    """Codes of values that are on the grid; a zero keeps its sign."""
    return (reference.e2m1_codes(values) & 7) | (values.signbit().to(torch.uint8) << 3)


def flashinfer_plain(module: Any) -> Quantiser:
    def run(x: Tensor, scale: Tensor) -> Quantised:
        values, scales = module.ref_fp4_quant(x, 1.0 / scale, 16)
        return Quantised(codes_of(values), scales, scale.item())

    return run


def flashinfer_te(module: Any) -> Quantiser:
    def run(x: Tensor, scale: Tensor) -> Quantised:
        values, scales = module.ref_fp4_quant_te(x, scale * 2688)  # packed bytes in some commits
        codes = codes_of(values) if values.is_floating_point() else unpack(values)
        return Quantised(codes, scales.float(), scale.item())

    return run


def inputs() -> dict[str, Tensor]:
    g = torch.Generator().manual_seed(20)
    normal = torch.randn(128, 256, generator=g)
    wild = normal * torch.randn(128, 16, generator=g).mul(2).exp().repeat_interleave(16, -1)
    outlier = normal.clone()
    outlier[0, 0], outlier[5] = 200.0, normal[5] * 1e-3
    zeros = normal.clone()
    zeros[:, 32:64], zeros[7] = 0.0, 0.0
    ties = torch.randint(-24, 25, (128, 256), generator=g) * 0.25
    ties[:, ::16] = 6.0  # every block's scale is then a power of two: nothing but ties decides
    ties[0, 0] = 2688.0
    negative = -torch.zeros(128, 256)
    negative[:, ::16] = 1.0
    return {
        name: x.bfloat16()
        for name, x in {
            "normal": normal, "blocks of wild size": wild, "outlier 200 and a tiny row": outlier,
            "zero blocks": zeros, "ties": ties, "negative zeros": negative,
        }.items()
    }  # fmt: skip


def compare(a: Quantised, b: Quantised, x: Tensor) -> dict[str, float | int]:
    """How `b` differs from our `a`; a code of -0 against 0 is counted on its own."""
    differ = a.codes != b.codes
    zero_sign = differ & (a.codes & 7 == 0) & (b.codes & 7 == 0)
    steps = (a.codes & 7).int() - (b.codes & 7).int()
    same_scale = (a.scales == b.scales).repeat_interleave(16, -1)
    wide = x.float()
    size = wide.norm().item() or 1.0
    return {
        "codes": int((differ & ~zero_sign).sum()),
        "codes_where_scales_agree": int((differ & ~zero_sign & same_scale).sum()),
        "signs_of_zero": int(zero_sign.sum()),
        "scales": int((a.scales != b.scales).sum()),
        "most_code_steps": int(steps.abs().max()),
        "relative_error": round((value(b) - wide).norm().item() / size, 6),
        "our_relative_error": round((value(a) - wide).norm().item() / size, 6),
    }


def layouts(module: Any | None) -> dict[str, bool]:
    """Whether our 128x4 tiles are the other library's."""
    found = {}
    scale = torch.randint(0, 256, (200, 10), generator=torch.Generator().manual_seed(1)).to(torch.uint8)
    mine = swizzle_scales(scale)
    from torchao.prototype.mx_formats.utils import from_blocked, to_blocked

    found["torchao to_blocked"] = torch.equal(to_blocked(scale).flatten(), mine.flatten())
    found["torchao from_blocked"] = torch.equal(from_blocked(mine.flatten(), 200, 10), scale)
    if module is not None:
        back = module.recover_swizzled_scales(mine, 200, 160, 16)
        found["flashinfer recover_swizzled_scales"] = torch.equal(back.to(torch.uint8), scale)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument(
        "--flashinfer", type=Path, help="path of flashinfer's tests/test_helpers/utils_fp4.py"
    )
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks" / "results" / "nvfp4_agreement.json")
    parser.add_argument("--fixture", type=Path, help="also write test vectors (safetensors)")
    options = parser.parse_args()
    warnings.filterwarnings("ignore")
    makers: dict[str, tuple[str, Callable[[], Quantiser]]] = {
        "torchao": ("torchao", torchao),
        "modelopt": ("nvidia-modelopt", modelopt),
        "compressed-tensors": ("compressed-tensors", compressed_tensors),
        "comfy-kitchen": ("comfy-kitchen", comfy_kitchen),
        "mlx": ("mlx", mlx),
    }
    versions = {"torch": torch.__version__}
    versions |= {name: importlib.metadata.version(dist) for name, (dist, _) in makers.items()}
    module = flashinfer(options.flashinfer) if options.flashinfer else None
    if module is not None:
        versions["flashinfer"] = "tests/test_helpers/utils_fp4.py at 537a3b560"
        makers["flashinfer"] = ("", lambda: flashinfer_plain(module))
        makers["flashinfer (Transformer Engine's formula)"] = ("", lambda: flashinfer_te(module))
    cases, table, vectors = inputs(), {}, {}
    for name, (_, make) in makers.items():
        run, table[name] = make(), {}
        for case, x in cases.items():
            scale = reference.global_scale_of(x)
            theirs = run(x, scale)
            table[name][case] = compare(ours(x, scale), theirs, x)
            packed = theirs.codes[:, 0::2] | (theirs.codes[:, 1::2] << 4)
            vectors[f"{name}/{case}/codes"] = packed[:VECTOR_ROWS].contiguous()
            vectors[f"{name}/{case}/scales"] = theirs.scales[:VECTOR_ROWS].contiguous()
        print(f"{name:45}", {c: (r["codes"], r["scales"]) for c, r in table[name].items()}, flush=True)
    result = {
        "versions": versions, "elements": 128 * 256, "blocks": 128 * 16, "differences": table,
        "layouts": layouts(module),
    }  # fmt: skip
    options.out.write_text(json.dumps(result, indent=1) + "\n")
    if options.fixture:
        from safetensors.torch import save_file

        for case, x in cases.items():
            vectors[f"input/{case}"] = x[:VECTOR_ROWS].contiguous()
            vectors[f"global_scale/{case}"] = reference.global_scale_of(x).reshape(1)
        save_file(vectors, options.fixture, metadata={k: str(v) for k, v in versions.items()})
    print(json.dumps(result["layouts"]))


if __name__ == "__main__":
    main()
