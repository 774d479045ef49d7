"""Tiny checkpoints written with other libraries' own code, kept in tests/data for the loader's tests.

Run in the environment of `make nvfp4-agreement`. Each file holds one layer "proj" (48 x 64, bias) as the library
names and lays it out, and "expected", the weight as that library itself dequantises it.
"""

from __future__ import annotations

import sys
import warnings
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

OUT = Path(__file__).resolve().parent.parent / "tests" / "data"


def torchao(weight: Tensor, swizzled: bool) -> tuple[dict[str, Tensor], dict[str, str], Tensor]:
    from torchao.prototype.mx_formats.nvfp4_tensor import NVFP4Tensor
    from torchao.prototype.safetensors.safetensors_support import flatten_tensor_state_dict

    q = NVFP4Tensor.to_nvfp4(
        weight, per_tensor_scale=weight.float().abs().max() / 2688, is_swizzled_scales=swizzled
    )
    tensors, metadata = flatten_tensor_state_dict({"proj.weight": q, "proj.bias": torch.arange(48).float()})
    return tensors, metadata, q.dequantize(torch.float32)


def modelopt(weight: Tensor) -> tuple[dict[str, Tensor], dict[str, str], Tensor]:
    from modelopt.torch.quantization.qtensor.nvfp4_tensor import NVFP4QTensor

    q, scale, total = NVFP4QTensor.quantize(weight, 16)
    value = q.dequantize(dtype=torch.float32, scale=scale, double_scale=total, block_sizes={-1: 16})
    tensors = {
        "proj.weight": q._quantized_data,
        "proj.weight_scale": scale,
        "proj.weight_scale_2": total,
        "proj.input_scale": torch.tensor(0.003),
        "proj.bias": torch.arange(48).float(),
    }
    return tensors, {"format": "pt"}, value


def compressed_tensors(weight: Tensor) -> tuple[dict[str, Tensor], dict[str, str], Tensor]:
    from compressed_tensors.compressors.nvfp4 import NVFP4PackedCompressor
    from compressed_tensors.quantization import QuantizationArgs, QuantizationScheme
    from compressed_tensors.quantization.utils import calculate_qparams, generate_gparam

    args = QuantizationArgs(
        num_bits=4, type="float", strategy="tensor_group", group_size=16, symmetric=True,
        scale_dtype=torch.float8_e4m3fn,
    )  # fmt: skip
    scheme = QuantizationScheme(targets=["Linear"], weights=args, input_activations=args)
    encode = generate_gparam(weight.float().amin(), weight.float().amax())
    blocks = weight.float().unflatten(-1, (-1, 16))
    scale, _ = calculate_qparams(blocks.amin(-1), blocks.amax(-1), args, encode)
    state = {
        "weight": weight.float(),
        "weight_scale": scale.float(),
        "weight_global_scale": encode,
        "input_global_scale": torch.tensor([1 / 0.003]),
    }
    packed = NVFP4PackedCompressor.compress(dict(state), scheme)
    value = NVFP4PackedCompressor.decompress(dict(packed), scheme)["weight"].float()
    tensors = {f"proj.{k}": v for k, v in packed.items()} | {"proj.bias": torch.arange(48).float()}
    return tensors, {"format": "pt"}, value


def main() -> None:
    warnings.filterwarnings("ignore")
    weight = torch.randn(48, 64, generator=torch.Generator().manual_seed(7)).bfloat16()
    makers = {
        "torchao": lambda: torchao(weight, False),
        "torchao_swizzled": lambda: torchao(weight, True),
        "modelopt": lambda: modelopt(weight),
        "compressed_tensors": lambda: compressed_tensors(weight),
    }
    for name, make in makers.items():
        tensors, metadata, expected = make()
        tensors = {k: v.contiguous() for k, v in tensors.items()} | {"expected": expected.contiguous()}
        save_file(tensors, OUT / f"nvfp4_{name}.safetensors", metadata=metadata)
        print(name, {k: (tuple(v.shape), str(v.dtype)) for k, v in tensors.items()}, file=sys.stderr)


if __name__ == "__main__":
    main()
