"""`out=`: the result in given tensors, equal to the result without, and refused where that could not be."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from torch import Tensor

import sgl_kernels as sk
from sgl_kernels.core import out as into
from sgl_kernels.core.control import record
from sgl_kernels.core.dispatch import Dispatcher, activate
from sgl_kernels.core.registry import registry
from sgl_kernels.core.settings import load_settings
from sgl_kernels.kernels.cpu.loader import load

OPS = (
    "rms_norm", "layer_norm", "group_norm", "norm_scale_shift", "residual_gate_norm_scale_shift", "apply_rope",
    "qk_norm_rope", "scale_shift", "gate_residual", "silu_mul", "gelu_tanh", "gelu_mul",
)  # fmt: skip
BACKENDS = [
    pytest.param(
        "cpu", marks=pytest.mark.skipif(load() is not None, reason="the C++ extension is not built")
    ),
    "torch",
]
X, W = torch.randn(6, 96), torch.randn(96)


def as_tuple(value) -> tuple[Tensor, ...]:
    return value if isinstance(value, tuple) else (value,)


def keywords(op, args) -> dict:
    """Schema arguments as the front door takes them."""
    return dict(zip((a.name for a in op.arguments), args, strict=True))


def cases(name: str):
    """(label, op, arguments) of every test case, in two dtypes."""
    op = registry.op(name)
    for case in op.cases():
        for dtype in (torch.float32, torch.bfloat16):
            if "test" in case.tags and dtype in case.dtypes:
                yield f"{case.name} {dtype}", op, op.canonical(*case.make(torch.device("cpu"), dtype))


def poisoned(like: Tensor, padded: bool) -> Tensor:
    shape = (*like.shape[:-1], like.shape[-1] + 5) if padded else like.shape
    full = torch.full(shape, float("nan"), dtype=like.dtype)
    return full[..., 2 : 2 + like.shape[-1]] if padded else full


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("name", OPS)
def test_result_is_that_of_the_call_without(name, backend):
    run = getattr(sk, name)
    for label, op, args in cases(name):
        want = run(**keywords(op, args), backend=backend)
        for padded in (False, True):
            outs = tuple(poisoned(t, padded) for t in as_tuple(want))
            given = outs if isinstance(want, tuple) else outs[0]
            assert run(**keywords(op, args), out=given, backend=backend) is given
            for got, expected in zip(outs, as_tuple(want), strict=True):
                torch.testing.assert_close(got, expected, rtol=0, atol=0, msg=f"{label}, padded {padded}")


@pytest.mark.parametrize("name", OPS)
def test_strided_columns_and_the_memory_around(name):
    run = getattr(sk, name)
    label, op, args = next(cases(name))
    want = as_tuple(run(**keywords(op, args)))
    buffers = [torch.full((*t.shape, 3), 7.0, dtype=t.dtype) for t in want]
    outs = tuple(b[..., 1] for b in buffers)
    run(**keywords(op, args), out=outs if len(outs) > 1 else outs[0])
    for buffer, expected in zip(buffers, want, strict=True):
        torch.testing.assert_close(buffer[..., 1], expected, rtol=0, atol=0, msg=label)
        assert bool((buffer[..., ::2] == 7).all())


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("name", OPS)
def test_in_place(name, backend):
    run, tried = getattr(sk, name), 0
    for label, op, made in cases(name):
        want = as_tuple(run(**keywords(op, made), backend=backend))
        for which in range(len(op.in_place(*made)[0])):
            args = tuple(a.clone() if isinstance(a, Tensor) else a for a in made)
            outs = tuple(entries[which][1] for entries in op.in_place(*args))
            if len(set(map(id, outs))) < len(outs):  # the residual block: each its own
                outs = (op.in_place(*args)[0][0][1], op.in_place(*args)[1][1][1])
                outs = outs[::-1] if which else outs
            run(**keywords(op, args), out=outs if len(outs) > 1 else outs[0], backend=backend)
            for got, expected in zip(outs, want, strict=True):
                torch.testing.assert_close(got, expected, rtol=0, atol=0, msg=f"{label}, input {which}")
            tried += 1
    assert tried > 4


def test_large_in_place_past_the_caches():
    """The streaming path: more is moved than any last-level cache share the kernels count on."""
    x, residual = torch.randn(3001, 3072), torch.randn(3001, 3072)
    want, want_sum = sk.residual_gate_norm_scale_shift(residual, x)
    sk.residual_gate_norm_scale_shift(residual, x, out=(x, residual))
    assert torch.equal(x, want)
    assert torch.equal(residual, want_sum)
    buffer = torch.zeros(3001, 3080)
    assert torch.equal(sk.rms_norm(x, out=buffer[:, :3072]), sk.rms_norm(x))
    assert bool((buffer[:, 3072:] == 0).all())


BAD = [
    (lambda: sk.rms_norm(X, W, out=3), TypeError, r"out is int, expected a torch\.Tensor"),
    (lambda: sk.rms_norm(X, W, out=[X.clone()]), TypeError, r"out is a tuple of 1, expected a torch\.Tensor"),
    (lambda: sk.rms_norm(X, W, out=torch.empty(5, 96)), ValueError, r"out has shape \[5, 96\], expected \[6, 96\]"),
    (lambda: sk.rms_norm(X, W, out=torch.empty(6, 96).half()), ValueError, "out has dtype float16, expected float32"),
    (lambda: sk.rms_norm(X, W, out=torch.empty(6, 96, device="meta")), ValueError, "out is on meta but the inputs"),
    (lambda: sk.rms_norm(X, W, out=torch.empty(1, 96).expand(6, 96)), ValueError, "elements share memory"),
    (lambda: sk.rms_norm([1], W, out=X.clone()), TypeError, "x is list, expected a torch.Tensor"),
    (lambda: sk.rms_norm(X, W[:3], out=X.clone()), ValueError, r"weight has shape \[3\]"),
    (lambda: sk.rms_norm(X, W, out=X.clone(), backend="triton"), sk.UnsupportedError, "triton"),
    (lambda: sk.qk_norm_rope(X[None, :, None], X[None, :, None], out=X), TypeError, "expected a tuple of 2 tensors"),
]  # fmt: skip


@pytest.mark.parametrize("call, error, message", BAD)
def test_what_does_not_fit_is_named(call, error, message):
    with pytest.raises(error, match=message):
        call()


def test_overlap():
    buffer = torch.randn(8, 96)
    before = buffer.clone()
    with pytest.raises(ValueError, match="out shares memory with x"):
        sk.rms_norm(buffer[:6], out=buffer[1:7])
    with pytest.raises(ValueError, match="out shares memory with x"):
        sk.layer_norm(buffer[:, :48], out=buffer[:, 24:72])
    square = torch.randn(96, 96)
    with pytest.raises(ValueError, match="out shares memory with x"):
        sk.rms_norm(square, out=square.t())
    with pytest.raises(ValueError, match="out shares memory with weight"):
        sk.rms_norm(X, square[3], out=square[:6])
    with pytest.raises(ValueError, match="out shares memory with scale"):
        sk.scale_shift(X, square[:6], out=square[:6])
    with pytest.raises(ValueError, match=r"out\[1\] and out\[0\] share memory"):
        sk.residual_gate_norm_scale_shift(X, X, out=(square[:6], square[5:11]))
    q, k = torch.randn(1, 4, 2, 32), torch.randn(1, 4, 2, 32)
    with pytest.raises(ValueError, match=r"out\[0\] shares memory with k"):
        sk.qk_norm_rope(q, k, out=(k, torch.empty_like(k)))
    assert torch.equal(buffer, before)
    # Columns of one buffer, side by side, are no overlap; nor are the two halves of a gated input.
    want = sk.rms_norm(buffer[:, :48])
    assert torch.equal(sk.rms_norm(buffer[:, :48], out=buffer[:, 48:]), want)
    gated = torch.randn(5, 2, 64)
    want = sk.silu_mul(gated)
    assert torch.equal(sk.silu_mul(gated, out=gated[..., 32:]), want)


def test_gradients_are_refused_and_views_know_of_the_write():
    weight = W.clone().requires_grad_()
    with pytest.raises(RuntimeError, match=r"weight requires grad.*torch\.no_grad"):
        sk.rms_norm(X, weight, out=torch.empty_like(X))
    with pytest.raises(RuntimeError, match="out requires grad"):
        sk.rms_norm(X, W, out=torch.empty_like(X).requires_grad_())
    with torch.no_grad():
        assert torch.equal(sk.rms_norm(X, weight, out=torch.empty_like(X)), sk.rms_norm(X, W))
    leaf, saved = torch.randn(6, 96, requires_grad=True), torch.randn(6, 96)
    product = (leaf * saved).sum()
    sk.rms_norm(X, W, out=saved)  # the product's backward needs what was there
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        product.backward()
    with torch.inference_mode():
        inside = torch.empty(6, 96)
        assert torch.equal(sk.rms_norm(X, W, out=inside), sk.rms_norm(X, W))


def test_the_compiler_sees_the_write():
    def step(x, residual, out):
        y = sk.rms_norm(x, W, out=out)
        sk.residual_gate_norm_scale_shift(residual, y, out=(x, residual))
        return y + 1

    def fresh():
        return X.clone(), X.flip(0).clone(), torch.empty_like(X)

    eager, traced = fresh(), fresh()
    want = step(*eager)
    got = torch.compile(step, fullgraph=True, backend="aot_eager")(*traced)
    torch.testing.assert_close(got, want)
    for a, b in zip(eager, traced, strict=True):
        torch.testing.assert_close(a, b)


def test_attention_copies_its_result():
    q, k, v = (torch.randn(1, 9, 2, 16) for _ in range(3))
    out = torch.full((1, 2, 9, 16), float("nan")).transpose(1, 2)
    assert sk.attention(q, k, v, is_causal=True, out=out) is out
    assert torch.equal(out, sk.attention(q, k, v, is_causal=True))
    with pytest.raises(ValueError, match="out shares memory with v"):
        sk.attention(q, k, v, out=v)
    with torch.autocast("cpu", torch.bfloat16):
        with pytest.raises(ValueError, match="out has dtype float32, expected bfloat16"):
            sk.attention(q, k, v, out=out)
        half = torch.empty_like(q, dtype=torch.bfloat16)
        assert torch.equal(sk.attention(q, k, v, out=half), sk.attention(q, k, v))


def test_threads_do_not_share_outs():
    inputs = [torch.randn(40, 96) for _ in range(16)]
    wants = [sk.layer_norm(x, W, W) for x in inputs]

    def work(i):
        out = torch.full_like(inputs[i % 16], float("nan"))
        return torch.equal(sk.layer_norm(inputs[i % 16], W, W, out=out), wants[i % 16])

    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(work, range(400)))


@pytest.mark.parametrize("backend", BACKENDS)
def test_recorder_trace_check_and_dump_go_along(backend, tmp_path):
    log = tmp_path / "log"
    environment = {
        "SGLANG_KERNEL_API_LOGLEVEL": "10",
        "SGLANG_KERNEL_API_LOGDEST": str(log),
        "SGLANG_KERNEL_API_DUMP_DIR": str(tmp_path / "dumps"),
        "SGL_KERNELS_CHECK": "1",
    }
    out = torch.empty_like(X)
    with activate(Dispatcher(load_settings(environment))), record() as recorder:
        sk.rms_norm(X, W, out=out, backend=backend)
        with pytest.raises(FloatingPointError, match="finite inputs gave a non-finite result"):
            sk.gelu_mul(torch.full((4, 64), 1e38), out=torch.empty(4, 32), backend=backend)
    assert [(e.op, e.backend, e.calls) for e in recorder.report().entries][-1] == ("rms_norm", backend, 1)
    assert f"returned rms_norm/{backend}" in log.read_text()
    dumps = sorted((tmp_path / "dumps").glob("*/outputs.safetensors"))
    from safetensors.torch import load_file

    assert torch.equal(load_file(str(dumps[0]))["out0"], out)


def test_disjoint_columns_by_pitch():
    base = torch.zeros(4, 6, 20)
    assert not into.may_overlap(base[..., :10], base[..., 10:])
    assert not into.may_overlap(base[:, :3], base[:, 3:])
    assert into.may_overlap(base[..., :11], base[..., 10:])
    assert into.may_overlap(base[..., :10], base[..., :10])
    assert not into.may_overlap(base[:2], base[2:])
    assert not into.may_overlap(base[..., 0:0], base)
