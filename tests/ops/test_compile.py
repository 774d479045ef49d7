"""torch.compile, opcheck, gradients, autocast, inference mode, vmap: every op behaves as a torch op."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

import sgl_kernels
from sgl_kernels.core.registry import registry

DOORS = {name: getattr(sgl_kernels, name) for name in registry.ops() if hasattr(sgl_kernels, name)}
ROWWISE = [n for n in DOORS if not n.startswith(("attention", "nvfp4"))]
FLOATING = [n for n in DOORS if not n.startswith("nvfp4")]


def smoke(name: str, dtype: torch.dtype = torch.float32, grad: bool = False) -> list:
    op = registry.op(name)
    case = next(c for c in op.cases() if "smoke" in c.tags)
    args = list(op.canonical(*case.make(torch.device("cpu"), dtype, seed=3)))
    if grad:
        args = [a.requires_grad_() if isinstance(a, Tensor) and a.is_floating_point() else a for a in args]
    return args


def overload(name: str):
    return getattr(torch.ops.sgl_kernels, name).default


def outs(value) -> tuple[Tensor, ...]:
    return value if isinstance(value, tuple) else (value,)


@pytest.mark.parametrize("name", sorted(DOORS))
def test_compiles_in_one_graph(name):
    torch._dynamo.reset()
    args = smoke(name)
    compiled = torch.compile(lambda *a: overload(name)(*a), backend="aot_eager", fullgraph=True)
    for got, want in zip(outs(compiled(*args)), outs(overload(name)(*args)), strict=True):
        torch.testing.assert_close(got, want)


@pytest.mark.parametrize("name", sorted(DOORS))
def test_opcheck(name):
    args = tuple(smoke(name))
    checks = ["test_schema", "test_autograd_registration", "test_faketensor", "test_aot_dispatch_dynamic"]
    if any(isinstance(a, Tensor) and a.is_floating_point() and a.dtype.itemsize == 1 for a in args):
        checks.remove("test_schema")  # it compares inputs with allclose, which torch has not for float8
    torch.library.opcheck(overload(name), args, test_utils=checks)


@pytest.mark.parametrize("name", FLOATING)
def test_opcheck_with_gradients(name):
    torch.library.opcheck(overload(name), tuple(smoke(name, grad=True)))


def test_the_front_door_compiles_and_an_override_is_seen_without_recompiling():
    torch._dynamo.reset()
    q = torch.randn(1, 16, 2, 32)
    compilations = []

    def backend(graph, inputs):
        compilations.append([n.target for n in graph.graph.nodes if n.op == "call_function"])
        return graph.forward

    compiled = torch.compile(
        lambda t: sgl_kernels.attention(t, t, t, is_causal=True), backend=backend, fullgraph=True
    )
    want = sgl_kernels.attention(q, q, q, is_causal=True)
    torch.testing.assert_close(compiled(q), want)
    with sgl_kernels.use(backend="torch", strict=True), sgl_kernels.record() as recorder:
        torch.testing.assert_close(compiled(q), want)
    assert [e.backend for e in recorder.report().entries] == ["torch"]
    assert len(compilations) == 1


@pytest.mark.parametrize("name", ROWWISE)
def test_compiled_gradients_equal_eager_gradients(name):
    torch._dynamo.reset()
    eager_args, compiled_args = smoke(name, grad=True), smoke(name, grad=True)
    compiled = torch.compile(lambda *a: overload(name)(*a), backend="aot_eager", fullgraph=True)
    for run, args in ((overload(name), eager_args), (compiled, compiled_args)):
        sum(o.sin().sum() for o in outs(run(*args))).backward()
    for a, b in zip(eager_args, compiled_args, strict=True):
        if isinstance(a, Tensor) and a.requires_grad:
            torch.testing.assert_close(b.grad, a.grad)


@pytest.mark.parametrize("name", FLOATING)
def test_gradcheck_through_the_floor(name):
    op = registry.op(name)
    case = next(c for c in op.cases() if "smoke" in c.tags)
    args = [a[:1] if isinstance(a, Tensor) and a.ndim > 2 and not name.endswith("varlen") else a for a in
            op.canonical(*case.make(torch.device("cpu"), torch.float64, 5))]  # fmt: skip
    wrt = [i for i, a in enumerate(args) if isinstance(a, Tensor) and a.is_floating_point()]
    if name.startswith("attention") and not name.endswith("varlen"):
        args[:3] = [a[:, :5, :2, :8].clone() for a in args[:3]]
    if name.endswith("varlen"):
        args[:3] = [a[:, :2, :8].clone() for a in args[:3]]
    if name in ("norm_scale_shift", "residual_gate_norm_scale_shift", "scale_shift", "gate_residual"):
        args = [a[:1] if isinstance(a, Tensor) and a.ndim == 2 else a for a in args]

    def run(*tensors):
        values = list(args)
        for i, t in zip(wrt, tensors, strict=True):
            values[i] = t
        return outs(overload(name)(*values))[0]

    tensors = [args[i].detach().clone().double().requires_grad_() for i in wrt]
    assert torch.autograd.gradcheck(run, tensors, fast_mode=True)


def test_an_exact_backend_without_a_backward_is_passed_over():
    q = torch.randn(1, 8, 2, 16, requires_grad=True)
    out = sgl_kernels.attention(q, q, q)
    out.sum().backward()
    assert q.grad is not None and q.grad.abs().sum() > 0


@pytest.mark.parametrize("name", sorted(DOORS))
def test_inference_mode_gives_the_same_result(name):
    args = smoke(name)
    want = outs(overload(name)(*args))
    with torch.inference_mode():
        for got, expected in zip(outs(overload(name)(*args)), want, strict=True):
            torch.testing.assert_close(got, expected)


def test_autocast_lowers_attention_and_leaves_norms_alone():
    q, w = torch.randn(1, 16, 2, 32), torch.randn(32)
    with torch.autocast("cpu", torch.bfloat16):
        assert sgl_kernels.attention(q, q.bfloat16(), q).dtype is torch.bfloat16
        assert sgl_kernels.rms_norm(q, w).dtype is torch.float32
    with pytest.raises(ValueError, match="k has dtype bfloat16"):
        sgl_kernels.attention(q, q.bfloat16(), q)


def test_vmap_is_right():
    x, w = torch.randn(3, 4, 32), torch.randn(32)
    got = torch.func.vmap(lambda t: sgl_kernels.rms_norm(t, w, backend="torch"))(x)
    torch.testing.assert_close(got, sgl_kernels.rms_norm(x, w))
    q = torch.randn(3, 1, 8, 2, 16)
    got = torch.func.vmap(lambda t: sgl_kernels.attention(t, t, t, backend="torch"))(q)
    want = torch.stack([sgl_kernels.attention(t, t, t) for t in q])
    torch.testing.assert_close(got, want)


@pytest.mark.parametrize("kind", ["cuda", "xpu", "mps"])
@pytest.mark.parametrize("name", sorted(DOORS))
def test_fake_tensors_of_absent_devices_have_the_right_metadata(name, kind):
    from torch._subclasses.fake_tensor import FakeTensorMode

    args = smoke(name, torch.bfloat16)
    want = outs(overload(name)(*args))
    with FakeTensorMode():
        fakes = [
            torch.empty(a.shape, dtype=a.dtype, device=kind) if isinstance(a, Tensor) else a for a in args
        ]
        for got, real in zip(outs(overload(name)(*fakes)), want, strict=True):
            assert (got.shape, got.dtype, got.device.type) == (real.shape, real.dtype, kind)


def test_the_front_doors_accept_fake_tensors():
    from torch._subclasses.fake_tensor import FakeTensorMode

    with FakeTensorMode():
        q = torch.empty(1, 64, 4, 32, device="cuda", dtype=torch.bfloat16)
        assert sgl_kernels.attention(q, q, q).device.type == "cuda"


def test_export_keeps_one_node():
    class Block(torch.nn.Module):
        def forward(self, q):
            return sgl_kernels.attention(q, q, q)

    program = torch.export.export(Block(), (torch.randn(1, 16, 2, 32),))
    targets = [str(n.target) for n in program.graph.nodes if n.op == "call_function"]
    assert targets == ["sgl_kernels.attention.default"]
