"""The row kernels against float64: every parameter shape, chunked rows, split groups, strides, wide offsets."""

from __future__ import annotations

import pytest
import torch

from sgl_kernels.kernels.triton import activation, group_norm, modulate, norm, rope
from sgl_kernels.kernels.triton.configs import GroupNormConfig, NormConfig, TileConfig
from sgl_kernels.ops.activation import reference as activations
from sgl_kernels.ops.modulate import reference as modulations
from sgl_kernels.ops.norm import reference as norms
from sgl_kernels.ops.rope import reference as ropes

DTYPES = [torch.float32, torch.bfloat16, torch.float16]
ROUNDING = {torch.float32: 2e-6, torch.bfloat16: 2.0**-8, torch.float16: 2.0**-11}
WHOLE, CHUNKED = NormConfig(512, 4096, 4), NormConfig(64, 64, 4)
TILE = TileConfig(128, 4)
SHAPES = [(96,), (2, 96), (2, 1, 96), (2, 12, 96), (1, 12, 96), (2, 3, 1, 96)]


def close(out, want, dtype):
    outs = out if isinstance(out, tuple) else (out,)
    wants = want if isinstance(want, tuple) else (want,)
    for a, b in zip(outs, wants, strict=True):
        assert a.dtype == dtype and a.is_contiguous()
        off = (a.double() - b).abs() / b.abs().clamp_min(1.0)
        assert off.max().item() <= 1.02 * ROUNDING[dtype]


def wide(*tensors):
    return [None if t is None else t.double() for t in tensors]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("config", [WHOLE, CHUNKED], ids=["whole", "chunked"])
def test_plain_norms(config, dtype):
    x, w, b = torch.randn(3, 7, 131).to(dtype), torch.randn(131), torch.randn(131).to(dtype)
    close(norm.rms_norm(x, w, 1e-6, 1.0, config=config), norms.rms_norm(x.double(), w, 1e-6, 1.0), dtype)
    close(norm.layer_norm(x, w, b, 1e-5, config=config), norms.layer_norm(x.double(), *wide(w, b)), dtype)
    close(norm.rms_norm(x, None, 1e-6, 0.0, config=config), norms.rms_norm(x.double()), dtype)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("config", [WHOLE, CHUNKED], ids=["whole", "chunked"])
@pytest.mark.parametrize("kind", ["layer", "rms"])
def test_modulation_parameters_of_every_shape(kind, config, shape):
    dtype = torch.float32
    x, r = torch.randn(2, 12, 96), torch.randn(2, 12, 96)
    scale, shift, gate = (torch.randn(shape) for _ in range(3))
    rest = (None, None, 1e-6, kind)
    want = norms.norm_scale_shift(*wide(x, scale, shift), *rest)
    close(norm.norm_scale_shift(x, scale, shift, *rest, config=config), want, dtype)
    want = norms.residual_gate_norm_scale_shift(*wide(r, x, gate, scale, shift), *rest)
    out = norm.residual_gate_norm_scale_shift(r, x, gate, scale, shift, *rest, config=config)
    for a, b in zip(out, want, strict=True):
        torch.testing.assert_close(a.double(), b, atol=1e-5, rtol=1e-5)
    close(
        modulate.scale_shift(x, scale, shift, config=TILE),
        modulations.scale_shift(*wide(x, scale, shift)),
        dtype,
    )
    close(
        modulate.gate_residual(r, x, gate, config=TILE), modulations.gate_residual(*wide(r, x, gate)), dtype
    )


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_the_norm_reads_the_rounded_residual(dtype):
    r, x, p = torch.randn(1, 9, 96).to(dtype), torch.randn(1, 9, 96).to(dtype), torch.randn(96)
    out, total = norm.residual_gate_norm_scale_shift(r, x, p, p, None, None, None, 1e-6, "rms", config=WHOLE)
    close(total, r.double() + p.double() * x.double(), dtype)
    close(out, norms.norm_scale_shift(total.double(), p.double(), None, norm="rms"), dtype)


def test_views_are_read_in_place_or_copied_once():
    packed = torch.randn(2, 9, 3, 4, 32)
    for view in (
        packed[:, :, 1],
        packed[:, 1:, 0].transpose(1, 2),
        packed[..., ::2],
        packed[:, :, 2, :, 8:24],
    ):
        close(
            norm.rms_norm(view, None, 1e-6, 0.0, config=WHOLE), norms.rms_norm(view.double()), torch.float32
        )
        close(activation.gelu_tanh(view, config=TILE), activations.gelu_tanh(view.double()), torch.float32)


def test_offsets_beyond_two_to_the_31():
    x = torch.empty(2**31 + 64, dtype=torch.float16).as_strided((3, 64), (2**30, 1))
    x.copy_(torch.randn(x.shape))
    close(norm.rms_norm(x, None, 1e-6, 0.0, config=WHOLE), norms.rms_norm(x.double()), torch.float16)
    close(
        modulate.scale_shift(x, x, None, config=TILE),
        modulations.scale_shift(x.double(), x.double()),
        torch.float16,
    )


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("interleaved", [True, False])
@pytest.mark.parametrize("half", [12, 8, 5, 1])
def test_rope(half, interleaved, dtype):
    q, k = torch.randn(2, 5, 3, 24).to(dtype), torch.randn(2, 3, 5, 24).to(dtype).transpose(1, 2)[:, :, :1]
    w = torch.randn(24)
    for lead in ((5,), (1, 5), (2, 5)):
        cos, sin = torch.randn(*lead, half), torch.randn(*lead, half)
        want = ropes.apply_rope(*wide(q, cos, sin), interleaved)
        close(rope.apply_rope(q, cos, sin, interleaved, config=TILE), want, dtype)
        want = ropes.qk_norm_rope(*wide(q, k, w, None, cos, sin), 1e-6, interleaved)
        close(rope.qk_norm_rope(q, k, w, None, cos, sin, 1e-6, interleaved, config=TILE), want, dtype)


def test_qk_norm_without_a_table():
    q, k, w = torch.randn(2, 5, 3, 24), torch.randn(2, 5, 1, 24), torch.randn(24)
    want = ropes.qk_norm_rope(*wide(q, k, None, w))
    close(rope.qk_norm_rope(q, k, None, w, None, None, 1e-6, True, config=TILE), want, torch.float32)


@pytest.mark.parametrize("dtype", DTYPES)
def test_activations(dtype):
    x, up = 3 * torch.randn(5, 66).to(dtype), torch.randn(66, 5).to(dtype).t()
    close(activation.silu_mul(x, None, config=TILE), activations.silu_mul(x.double()), dtype)
    close(activation.silu_mul(x, up, config=TILE), activations.silu_mul(*wide(x, up)), dtype)
    close(activation.gelu_tanh(x, config=TILE), activations.gelu_tanh(x.double()), dtype)
    for kind in ("tanh", "none"):
        want = activations.gelu_mul(*wide(x, up), kind)
        close(activation.gelu_mul(x, up, kind, config=TILE), want, dtype)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    "tiles", [GroupNormConfig(1024, 4, 4), GroupNormConfig(16, 2, 4)], ids=["one", "split"]
)
@pytest.mark.parametrize(
    "shape, last", [((2, 32, 7, 5), False), ((2, 32, 7, 5), True), ((1, 24, 3, 5, 4), False)]
)
def test_group_norm_keeps_the_memory_format(shape, last, tiles, dtype):
    x = (torch.randn(shape) + 20).to(dtype)
    x = x.to(memory_format=torch.channels_last) if last else x
    w, b = torch.randn(shape[1]), torch.randn(shape[1]).to(dtype)
    out = group_norm.group_norm(x, 8, w, b, 1e-6, "silu", config=tiles)
    want = norms.group_norm(x.double(), 8, *wide(w, b), 1e-6, "silu")
    assert out.stride() == x.stride() and out.dtype == dtype
    limit = 2e-5 if dtype is torch.float32 else ROUNDING[dtype] * max(1.0, want.abs().max().item())
    assert (out.double() - want).abs().max().item() <= limit


def test_group_norm_of_a_slice():
    x = torch.randn(2, 16, 6, 10)[:, :, 1:5, 2:9]
    out = group_norm.group_norm(x, 4, None, None, 1e-6, "none", config=GroupNormConfig(16, 2, 4))
    torch.testing.assert_close(out.double(), norms.group_norm(x.double(), 4, eps=1e-6), atol=1e-5, rtol=1e-5)


def test_the_same_call_gives_the_same_bits():
    x = torch.randn(2, 32, 40)
    runs = [
        group_norm.group_norm(x, 4, None, None, 1e-6, "silu", config=GroupNormConfig(16, 2, 4))
        for _ in range(2)
    ]
    assert torch.equal(*runs)
