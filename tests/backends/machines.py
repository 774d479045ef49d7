"""Invented machines: a device, exactly these packages, and the settings a user there would have."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field

import torch
from packaging.version import Version

from sgl_kernels.core.device import Device, parse_device
from sgl_kernels.core.dispatch import Dispatcher
from sgl_kernels.core.registry import registry
from sgl_kernels.core.selection.verdict import Selection
from sgl_kernels.core.settings import Settings
from sgl_kernels.core.settings.sections import Apple

MLX_ON = Settings(apple=Apple(use_mlx=True))
TRITON = {"triton": "3.7.1"}
FA2 = {"flash-attn": "2.8.4"}
SAGE1, SAGE2 = {"sageattention": "1.0.6"}, {"sageattention": "2.2.0"}
EVERYTHING_FOR_CUDA = {
    **TRITON, **FA2, **SAGE2, "flash_attn_interface": "3.0.0", "flash-attn-4": "4.0.0b36", "sageattn3": "1.0.0",
    "flashinfer-python": "0.7.2", "xformers": "0.0.35", "kernels": "0.17.2", "spas_sage_attn": "0.1.0",
}  # fmt: skip


@dataclass(frozen=True)
class Machine:
    """A device (as `sgl-kernels explain --device` reads it), its product name, its packages, its settings."""

    device: str
    product: str
    packages: dict[str, str] = field(default_factory=dict)
    settings: Settings = field(default_factory=Settings)

    def where(self) -> Device:
        return dataclasses.replace(parse_device(self.device), name=self.product)

    def version_of(self, name: str) -> Version | None:
        """The packages of this machine, never those of the one that runs the test."""
        found = self.packages.get(name)
        return None if found is None else Version(found)


MACHINES: dict[str, Machine] = {
    "h100": Machine("cuda:sm90", "NVIDIA H100", EVERYTHING_FOR_CUDA),
    "h100-bare": Machine("cuda:sm90", "NVIDIA H100"),
    "h200": Machine("cuda:sm90", "NVIDIA H200", {**TRITON, **SAGE1, "kernels": "0.17.2"}),
    "b200": Machine("cuda:sm100", "NVIDIA B200", EVERYTHING_FOR_CUDA),
    "b300": Machine("cuda:sm103", "NVIDIA B300", {**TRITON, "flash-attn-4": "4.0.0b36"}),
    "rtx5090": Machine("cuda:sm120", "NVIDIA GeForce RTX 5090", EVERYTHING_FOR_CUDA),
    "rtx4090": Machine("cuda:sm89", "NVIDIA GeForce RTX 4090", EVERYTHING_FOR_CUDA),
    "rtx3090": Machine("cuda:sm86", "NVIDIA GeForce RTX 3090", {**TRITON, **FA2, **SAGE1}),
    "a100": Machine("cuda:sm80", "NVIDIA A100", {**TRITON, **FA2}),
    "t4": Machine("cuda:sm75", "Tesla T4", {**TRITON, **FA2, "xformers": "0.0.35"}),
    "mi300x": Machine("rocm:gfx942", "AMD Instinct MI300X", {**TRITON, **FA2, "amd-aiter": "0.1.7"}),
    "mi300x-wrong-aiter": Machine("rocm:gfx942", "AMD Instinct MI300X", {**TRITON, "aiter": "0.13.20191203"}),
    "mi355x": Machine("rocm:gfx950", "AMD Instinct MI355X", {**TRITON, "amd-aiter": "0.1.7"}),
    "mi250": Machine("rocm:gfx90a", "AMD Instinct MI250", {**TRITON, **FA2, "amd-aiter": "0.1.7"}),
    "rx7900": Machine("rocm:gfx1100", "AMD Radeon RX 7900 XTX", {**TRITON, **FA2}),
    "arc-b580": Machine("xpu:xe2", "Intel Arc B580", TRITON),
    "ponte-vecchio": Machine("xpu:pvc", "Intel Data Center GPU Max 1550", TRITON),
    "ascend910b": Machine("npu:ascend910b", "Ascend910B3", {"torch-npu": "2.13.0"}),
    "mtt-s4000": Machine("musa:mp_22", "MTT S4000", {"torch_musa": "2.7.0"}),
    "mtt-s5000": Machine("musa:mp_31", "MTT S5000", {"torch_musa": "2.7.0"}),
    "m1": Machine("mps:m1", "Apple M1"),
    "m2-old-mlx": Machine("mps:m2", "Apple M2", {"mlx": "0.18.0"}, MLX_ON),
    "m3-mlx-on": Machine("mps:m3", "Apple M3 Max", {"mlx": "0.32.4"}, MLX_ON),
    "m4-mlx-off": Machine("mps:m4", "Apple M4", {"mlx": "0.32.4"}),
    "xeon-amx": Machine("cpu:avx512bf16", "Intel Xeon 8480+", {}),
    "xeon-avx512": Machine("cpu:avx512", "Intel Xeon 8280", {}),
    "zen5": Machine("cpu:avx512bf16", "AMD EPYC 9755", {"zentorch": "2.13.0.2"}),
    "graviton": Machine("cpu:neon", "AWS Graviton4", {}),
    "laptop-avx2": Machine("cpu:avx2", "Intel Core i5-8250U", {}),
    "laptop-baseline": Machine("cpu:baseline", "Intel Celeron N4000", {}),
}


def _flux(dtype: torch.dtype = torch.bfloat16) -> dict[str, tuple[object, ...]]:
    """FLUX.1 at 1024 x 1024: 512 text and 4096 image tokens, 24 heads of 128."""
    q = torch.empty(1, 4608, 24, 128, dtype=dtype, device="meta")
    table = torch.empty(4608, 64, device="meta")
    return {
        "attention": (q, q, q),
        "rms_norm": (q, torch.empty(128, dtype=dtype, device="meta")),
        "apply_rope": (q, table, table, True),
    }


QUESTIONS = _flux()


def decide(machine: Machine, op: str) -> Selection:
    """What would run `op` there. Loads nothing and asks nothing of the machine this runs on."""
    definition = registry.op(op)
    facts = definition.facts(*definition.canonical(*QUESTIONS[op]))
    dispatcher = Dispatcher(machine.settings)
    return dispatcher.decide(definition, None, facts, machine.where(), machine.version_of)
