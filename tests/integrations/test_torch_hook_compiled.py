"""Under the compiler: one graph, torch's strides and meaning, and whatever must be torch's own is."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.attention.bias import causal_lower_right

import sgl_kernels

TORCH_SDPA = torch._C._nn.scaled_dot_product_attention


@pytest.fixture(autouse=True)
def _clean() -> Iterator[None]:
    torch._dynamo.reset()
    with sgl_kernels.install("torch"), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
    torch._dynamo.reset()


def qkv(heads: int = 4, kv_heads: int = 4, sq: int = 33) -> tuple[Tensor, Tensor, Tensor]:
    g = torch.Generator().manual_seed(sq)
    return tuple(
        torch.randn(s, generator=g)
        for s in ((2, heads, sq, 16), (2, kv_heads, 40, 16), (2, kv_heads, 40, 16))
    )


def compiled(
    f: Callable[..., Tensor], *args: Tensor, served: int = 1, backend: str = "aot_eager", **options: object
) -> Tensor:
    """What the compiled function gives, after checking how many of its calls the registry served."""
    fast = torch.compile(f, backend=backend, fullgraph=True, **options)
    with sgl_kernels.record() as recorder:
        out = fast(*args)
    assert sum(e.calls for e in recorder.report().entries) == served
    return out


def close(have: Tensor, want: Tensor, tolerance: float = 1e-5) -> None:
    assert (have.dtype, have.stride()) == (want.dtype, want.stride())
    torch.testing.assert_close(have, want, atol=tolerance, rtol=tolerance)


MASK = torch.rand(33, 40) > 0.2
SERVED = {
    "plain": (lambda q, k, v: F.scaled_dot_product_attention(q, k, v), qkv()),
    "causal": (lambda q, k, v: F.scaled_dot_product_attention(q, k, v, is_causal=True, scale=0.4), qkv()),
    "mask": (lambda q, k, v: F.scaled_dot_product_attention(q, k, v, MASK), qkv()),
    "groups": (lambda q, k, v: F.scaled_dot_product_attention(q, k, v, enable_gqa=True), qkv(4, 2)),
    "viewed": (lambda q, k, v: F.scaled_dot_product_attention(q, k, v).view(8, 33, 16), qkv()),
    "rows first": (
        lambda q, k, v: F.scaled_dot_product_attention(q.transpose(1, 2).contiguous().transpose(1, 2), k, v), qkv(),
    ),
    "three dimensions": (lambda q, k, v: F.scaled_dot_product_attention(q[0], k[0], v[0]), qkv()),
    "value width": (lambda q, k, v: F.scaled_dot_product_attention(q, k, v[..., :12]), qkv()),
    "drop-in": (lambda q, k, v: sgl_kernels.scaled_dot_product_attention(q, k, v), qkv()),
}  # fmt: skip


@pytest.mark.parametrize("name", SERVED)
def test_served(name: str) -> None:
    f, args = SERVED[name]
    have = compiled(f, *args)
    with sgl_kernels.integrations.torch_hook.serving(False):
        sgl_kernels.uninstall("torch")
        want = f(*args)
    close(have, want)


def test_served_by_inductor_with_lengths_that_change() -> None:
    def f(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return F.scaled_dot_product_attention(q, k, v).view(q.shape[0] * q.shape[1], -1, 16)

    fast = torch.compile(f, fullgraph=True, dynamic=True)
    for sq in (33, 17):
        args = qkv(sq=sq)
        close(fast(*args), TORCH_SDPA(*args).view(8, sq, 16))


def test_autocast_gives_its_dtype() -> None:
    args = qkv()
    for dtype in (torch.bfloat16, torch.float16):

        def inside(q: Tensor, k: Tensor, v: Tensor, dtype: torch.dtype = dtype) -> Tensor:
            with torch.autocast("cpu", dtype=dtype):
                return F.scaled_dot_product_attention(q, k, v)

        torch._dynamo.reset()
        with torch.autocast("cpu", dtype=dtype):
            want = TORCH_SDPA(*args)
            around = torch.compile(
                lambda *a: F.scaled_dot_product_attention(*a), backend="aot_eager", fullgraph=True
            )(*args)
        close(around, want, 2e-2)
        close(torch.compile(inside, backend="aot_eager", fullgraph=True)(*args), want, 2e-2)


def test_gradients_and_dropout_are_torchs() -> None:
    q, k, v = qkv()
    q.requires_grad_()
    out = compiled(lambda q, k, v: F.scaled_dot_product_attention(q, k, v), q, k, v, served=0)
    (have,) = torch.autograd.grad(out.square().sum(), q)
    (want,) = torch.autograd.grad(TORCH_SDPA(q, k, v).square().sum(), q)
    close(have, want, 1e-4)
    q = q.detach()
    compiled(lambda q, k, v: F.scaled_dot_product_attention(q, k, v, dropout_p=0.5), q, k, v, served=0)


def test_transforms_biases_and_choices_of_a_kernel_are_torchs() -> None:
    q, k, v = qkv()
    have = compiled(
        lambda q, k, v: torch.func.vmap(F.scaled_dot_product_attention)(q, k, v), q, k, v, served=0
    )
    torch.testing.assert_close(have, TORCH_SDPA(q, k, v), atol=1e-5, rtol=1e-5)
    bias = causal_lower_right(33, 40)
    have = compiled(lambda q, k, v: F.scaled_dot_product_attention(q, k, v, bias), q, k, v)
    close(have, TORCH_SDPA(q, k, v, bias._materialize()))

    def chosen(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        with sdpa_kernel(SDPBackend.MATH):
            return F.scaled_dot_product_attention(q, k, v)

    close(compiled(chosen, q, k, v, served=0), TORCH_SDPA(q, k, v))


def test_what_torch_refuses_is_refused() -> None:
    q, k, v = qkv()
    with pytest.raises(Exception, match=r"mat1|shape|size|dimension"):
        compiled(lambda q, k, v: F.scaled_dot_product_attention(q, k[..., :7], v), q, k, v)


def test_uninstalled_code_is_compiled_anew() -> None:
    args = qkv()
    f = torch.compile(lambda *a: F.scaled_dot_product_attention(*a), backend="aot_eager", fullgraph=True)
    with sgl_kernels.record() as recorder:
        f(*args)
        sgl_kernels.uninstall("torch")
        close(f(*args), TORCH_SDPA(*args))
    assert sum(e.calls for e in recorder.report().entries) == 1
