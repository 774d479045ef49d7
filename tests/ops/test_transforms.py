"""Derivatives of every kind through every differentiable op, against the op's definition in plain torch."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.func import grad, hessian, jacfwd, jacrev, jvp, vjp, vmap

import sgl_kernels
from sgl_kernels.core.registry import registry
from sgl_kernels.ops._front import DOORS
from tests.ops.test_fingerprint import smoke

DIFFERENTIABLE = [
    n
    for n in registry.ops()
    if any(i.differentiable for i in registry.implementations(n)) and n != "nvfp4_linear"
]
pytestmark = pytest.mark.filterwarnings("ignore:There is a performance drop")


def pair(name: str):
    """(our function, the definition, point, direction) of the op's first argument, summed to one tensor."""
    torch.manual_seed(0)
    op, args = registry.op(name), smoke(name)
    args = tuple(a.double() if isinstance(a, Tensor) and a.is_floating_point() else a for a in args)
    if name.startswith("attention") and name != "attention_varlen":
        args = tuple(a[:1, :5, :2, :8] if i < 3 else a for i, a in enumerate(args))

    def ours(x: Tensor) -> Tensor:
        out = DOORS[name]((x, *args[1:]), None, None)
        return out[0] if isinstance(out, tuple) else out

    def definition(x: Tensor) -> Tensor:
        out = op.reference(x, *args[1:])
        return out[0] if isinstance(out, tuple) else out

    return ours, definition, args[0], torch.randn_like(args[0])


def loss(f):
    return lambda x: f(x).sin().sum()


def close(got, want):
    torch.testing.assert_close(got, want, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", DIFFERENTIABLE)
def test_tangents_are_right_or_refused_as_torch_refuses_them(name):
    ours, definition, x, t = pair(name)
    try:
        want, got = jvp(definition, (x,), (t,)), jvp(ours, (x,), (t,))
    except NotImplementedError as error:  # torch's fused attention has no forward derivative
        assert name.startswith("attention") and "forward AD" in str(error)
        return
    close(got, want)
    with forward_ad.dual_level():
        value, tangent = forward_ad.unpack_dual(ours(forward_ad.make_dual(x, t)))
        close((value, tangent), want)


@pytest.mark.parametrize("name", ["attention", "attention_varlen"])
def test_attention_has_tangents_where_torchs_math_serves(name):
    from torch.nn.attention import SDPBackend, sdpa_kernel

    ours, definition, x, t = pair(name)
    with sdpa_kernel(SDPBackend.MATH):
        close(jvp(ours, (x,), (t,)), jvp(definition, (x,), (t,)))


@pytest.mark.parametrize("name", DIFFERENTIABLE)
def test_gradients_of_batches_and_batches_of_gradients(name):
    ours, definition, x, t = pair(name)
    both = torch.stack([x, t])
    close(
        grad(lambda xs: vmap(loss(ours))(xs).sum())(both),
        torch.stack([grad(loss(definition))(p) for p in both]),
    )
    close(vmap(grad(loss(ours)))(both), torch.stack([grad(loss(definition))(p) for p in both]))
    cotangent = torch.ones_like(ours(x))
    close(vjp(ours, x)[1](cotangent), vjp(definition, x)[1](cotangent))
    close(vmap(ours)(both), torch.stack([definition(p) for p in both]))


@pytest.mark.parametrize("name", ["rms_norm", "layer_norm", "silu_mul", "gelu_tanh", "linear", "scale_shift"])
def test_jacobians_and_hessians(name):
    op = registry.op(name)
    x = torch.randn(2, 4, dtype=torch.float64)
    rest = {"linear": (torch.randn(3, 4, dtype=torch.float64),), "scale_shift": (x[0] + 1, None)}.get(
        name, ()
    )

    def ours(x: Tensor) -> Tensor:
        return DOORS[name](op.canonical(x, *rest), None, None)

    def definition(x: Tensor) -> Tensor:
        return op.reference(*op.canonical(x, *rest))

    for transform in (jacrev, jacfwd):
        close(transform(ours)(x), transform(definition)(x))
    close(hessian(loss(ours))(x), hessian(loss(definition))(x))


def test_a_four_bit_weight_passes_the_derivative_of_x():
    weight = sgl_kernels.nvfp4_quantize(torch.randn(8, 16))
    dense = sgl_kernels.nvfp4_dequantize(weight, torch.float32)
    x, t = torch.randn(3, 16), torch.randn(3, 16)
    call = lambda x: sgl_kernels.nvfp4_linear(x, weight)  # noqa: E731
    torch.testing.assert_close(jvp(call, (x,), (t,))[1], t @ dense.T, rtol=1e-4, atol=1e-4)
    want = torch.ones(3, 8) @ dense
    torch.testing.assert_close(grad(lambda x: call(x).sum())(x), want, rtol=1e-4, atol=1e-4)
    batched = grad(lambda xs: vmap(call)(xs).sum())(x)
    torch.testing.assert_close(batched, want, rtol=1e-4, atol=1e-4)
    x.requires_grad_()
    call(x).sum().backward()
    torch.testing.assert_close(x.grad, want, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", registry.ops())
def test_meta_tensors_give_meta_results(name):
    args = smoke(name)
    meta = tuple(a.to("meta") if isinstance(a, Tensor) else a for a in args)
    found, wanted = (DOORS[name](a, None, None) for a in (meta, args))
    for got, want in zip(*(o if isinstance(o, tuple) else (o,) for o in (found, wanted)), strict=True):
        assert got.is_meta and got.shape == want.shape and got.dtype is want.dtype
    with pytest.raises((ValueError, TypeError)):  # a scalar fits nowhere
        DOORS[name]((meta[0].new_empty(()), *meta[1:]), None, None)
    with pytest.raises(Exception, match="nobody"):
        DOORS[name](meta, None, "nobody")


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")
@pytest.mark.parametrize("layout", [torch.jagged, torch.strided])
def test_a_nested_tensor_is_refused_with_advice(layout):
    parts = [torch.randn(3, 4, 8), torch.randn(5, 4, 8)]
    x = torch.nested.nested_tensor(parts, layout=layout)
    for call in (lambda: sgl_kernels.rms_norm(x), lambda: sgl_kernels.attention(x, x, x)):
        with pytest.raises(TypeError, match="is a nested tensor, expected a strided"):
            call()


def test_out_takes_no_tangents():
    x = torch.randn(3, 4)
    with forward_ad.dual_level(), pytest.raises(RuntimeError, match="may carry tangents"):
        sgl_kernels.rms_norm(forward_ad.make_dual(x, x), out=torch.empty(3, 4))
