"""What the triton backend accepts, declines and ranks, on machines that are only described."""

from __future__ import annotations

import pytest
import torch
from packaging.version import Version

import sgl_kernels  # noqa: F401 - defines the ops
from sgl_kernels.backends import triton as backend
from sgl_kernels.core.device import Device, parse_device
from sgl_kernels.core.registry import registry
from sgl_kernels.core.selection.select import select
from sgl_kernels.core.selection.verdict import Reason
from sgl_kernels.core.settings import OpPolicy
from sgl_kernels.kernels.triton import configs

H100, MI300, RX7900 = (parse_device(d) for d in ("cuda:sm90", "rocm:gfx942", "rocm:gfx1100"))


def installed(name: str) -> Version | None:
    return Version("3.8.0") if name == "triton" else None


def decide(op: str, args: tuple, device: Device, version_of=installed, **policy):
    """The selection between our Triton kernels and the floor."""
    definition = registry.op(op)
    facts = definition.facts(*definition.canonical(*args))
    found = [i for i in registry.implementations(op) if i.backend in ("triton", "triton_int8", "torch")]
    return select(op, facts, device, version_of, OpPolicy(**policy), found)


def qkv(d: int = 64, dtype: torch.dtype = torch.bfloat16, sk: int = 32) -> tuple:
    q, k = (torch.empty(1, s, 4, d, dtype=dtype, device="meta") for s in (32, sk))
    return q, k, k


@pytest.fixture(autouse=True)
def _compiled_mode(monkeypatch):
    monkeypatch.delenv(backend.INTERPRETER_VARIABLE, raising=False)


def test_a_cpu_tensor_is_declined_unless_triton_interprets(monkeypatch):
    cpu = Device("cpu", "avx512")
    assert decide("attention", qkv(), cpu).rejected("triton").reason is Reason.PLATFORM
    monkeypatch.setenv(backend.INTERPRETER_VARIABLE, "1")
    selection = decide("attention", qkv(), cpu)
    assert selection.rejected("triton") is None and selection.chosen == "torch"  # allowed, never preferred


@pytest.mark.parametrize(
    "device, args, reason",
    [
        (parse_device("cuda:sm75"), qkv(), Reason.CAPABILITY),
        (parse_device("mps:m3"), qkv(), Reason.PLATFORM),
        (H100, qkv(320), Reason.SHAPE),
        (H100, qkv(256, torch.float32), Reason.SHAPE),
        (RX7900, qkv(256), Reason.SHAPE),
        (RX7900, qkv(64, torch.float32), Reason.SHAPE),
        (H100, qkv(64, torch.float64), Reason.DTYPE),
    ],
)
def test_what_is_declined_has_a_reason(device, args, reason):
    assert decide("attention", args, device).rejected("triton").reason is reason


def test_without_triton_the_reason_is_the_package():
    rejected = decide("attention", qkv(), H100, lambda name: None).rejected("triton")
    assert rejected.reason is Reason.PACKAGE and "triton" in rejected.detail + rejected.hint


def test_attention_goes_first_only_where_torch_has_no_fused_kernel():
    assert decide("attention", qkv(), H100).chosen == "torch"
    assert decide("attention", (*qkv(), None, True), H100).chosen == "torch"
    windowed = (*qkv(), None, False, "bottom_right", None, 8, 8)
    assert decide("attention", windowed, H100).chosen == "triton"
    assert decide("attention", (*qkv(sk=48), None, True), MI300).chosen == "triton"


@pytest.mark.parametrize("device", [H100, MI300, RX7900, Device("xpu", "xe2")], ids=str)
def test_fused_rows_go_before_eager_torch(device):
    x, p = torch.empty(2, 8, 64, dtype=torch.bfloat16, device="meta"), torch.empty(2, 64, device="meta")
    assert decide("norm_scale_shift", (x, p, p), device).chosen == "triton"
    assert decide("rms_norm", (x,), device).chosen == "triton"
    assert decide("layer_norm", (x,), device).chosen == "torch"


def test_int8_runs_only_when_allowed_and_never_with_a_soft_cap():
    assert decide("attention", qkv(), H100).rejected("triton_int8").reason is Reason.FIDELITY
    assert decide("attention", qkv(), H100, prefer=("triton_int8",)).chosen == "triton_int8"
    capped = (*qkv(), None, False, "bottom_right", None, -1, -1, 3.0)
    assert (
        decide("attention", capped, H100, allow_lossy=True).rejected("triton_int8").reason is Reason.FEATURE
    )


def test_every_op_has_a_triton_implementation():
    """But `linear`: on a GPU that is cuBLAS, hipBLAS or oneDNN, which torch calls."""
    ours = {op for op in registry.ops() for i in registry.implementations(op) if i.backend == "triton"}
    assert ours == set(registry.ops()) - {"linear"}


def test_run_takes_exactly_the_schema_arguments():
    pytest.importorskip("triton")
    import inspect

    for implementation in backend.IMPLEMENTATIONS:
        run = implementation.load(None)
        parameters = inspect.signature(run).parameters.values()
        assert all(p.default is p.empty and p.kind is p.POSITIONAL_OR_KEYWORD for p in parameters)
        assert len(parameters) == len(registry.op(implementation.op).arguments), implementation.op


def _wide(*shape: int, dtype: torch.dtype = torch.bfloat16) -> torch.Tensor:
    return torch.empty(shape, dtype=dtype, device="meta")


BEYOND, ALMOST = 2**31 + 8, 2**31 - 2**14
BIG = {
    "rms_norm": (lambda n: (_wide(n, 8), None, 1e-6, 0.0)),
    "layer_norm": (lambda n: (_wide(n, 8), None, None, 1e-6)),
    "scale_shift": (lambda n: (_wide(1, n, 8), _wide(1, 1, 8), None)),
    "gelu_tanh": (lambda n: (_wide(n, 8),)),
    "apply_rope": (lambda n: (_wide(1, n // 8, 8, 64), _wide(n // 8, 32), _wide(n // 8, 32), False)),
    "group_norm": (lambda n: (_wide(1, 16, n // 8), 2, None, None, 1e-5, "none")),
    "attention": (lambda n: (_wide(1, n // 4, 4, 64), *(_wide(1, 32, 4, 64),) * 2)),
    "attention_lse": (lambda n: (_wide(n // 32, 16, 2, 64), *(_wide(n // 32, 1, 2, 64),) * 2)),
}


@pytest.mark.parametrize("op", BIG)
def test_rows_that_32_bits_cannot_count_are_declined(op):
    rejected = decide(op, BIG[op](BEYOND), H100).rejected("triton")
    assert rejected.reason is Reason.SHAPE and "32 bits" in rejected.detail
    assert decide(op, BIG[op](ALMOST), H100).rejected("triton") is None


def test_every_family_has_a_row_for_every_kind():
    for family, kinds in configs.ATTENTION.items():
        assert {"half", "masked", "fp32"} <= set(kinds) <= {"half", "padded", "masked", "fp32"}, family
        for rows in kinds.values():
            assert len(rows) == 3
            assert all(
                r is None or r.block_m & (r.block_m - 1) == r.block_n & (r.block_n - 1) == 0 for r in rows
            )


def test_a_tuning_record_gives_the_config():
    pytest.importorskip("triton")
    record = {"block_m": 64, "block_n": 32, "num_warps": 4, "num_stages": 1}
    assert backend.chosen_tile(record, configs.AttentionConfig, None) == configs.AttentionConfig(64, 32, 4, 1)
