"""torch.func and forward-mode differentiation inside compiled functions: the derivatives that eager calls give."""

from __future__ import annotations

import contextlib
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.func import functional_call, grad, hessian, jacfwd, jvp, vmap

import sgl_kernels
from sgl_kernels.core.registry import registry
from tests.ops.test_transforms import DIFFERENTIABLE, close, loss, pair

pytestmark = pytest.mark.filterwarnings("ignore")
TORCH_SDPA = torch._C._nn.scaled_dot_product_attention
TRACED = [n for n in DIFFERENTIABLE if not registry.op(n).reads_values]


@pytest.fixture(autouse=True)
def _clean():
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()
    close_levels()


def close_levels() -> None:
    """Where tracing fails, dynamo leaves the level of forward-mode differentiation open that it had opened."""
    with contextlib.suppress(RuntimeError):
        torch._C._exit_dual_level(level=0)
    forward_ad._current_level = -1


def reverse(f: Callable[[Tensor], Tensor], x: Tensor, t: Tensor) -> tuple[Tensor, ...]:
    both = torch.stack([x, t])
    return (
        vmap(f)(both),
        grad(loss(f))(x),
        grad(lambda xs: vmap(loss(f))(xs).sum())(both),
        vmap(grad(loss(f)))(both),
    )


def forward(f: Callable[[Tensor], Tensor], x: Tensor, t: Tensor) -> tuple[Tensor, ...]:
    return jvp(f, (x,), (t,))


def dual(f: Callable[[Tensor], Tensor], x: Tensor, t: Tensor) -> tuple[Tensor, ...]:
    with forward_ad.dual_level():
        value, tangent = forward_ad.unpack_dual(f(forward_ad.make_dual(x, t)))
        return value + 0, tangent + 0


def inside(way: Callable[..., tuple[Tensor, ...]], f: Callable[[Tensor], Tensor], backend: str = "aot_eager"):
    return torch.compile(lambda x, t: way(f, x, t), backend=backend, fullgraph=True)


@pytest.mark.parametrize("name", TRACED)
def test_inside_one_graph(name: str) -> None:
    ours, definition, x, t = pair(name)
    x, t = x.contiguous(), t.contiguous()  # torch traces no view of a tangent laid out unlike its primal
    close(inside(reverse, ours)(x, t), reverse(definition, x, t))
    for way in (forward, dual):
        try:
            want = way(ours, x, t)
        except NotImplementedError:  # torch's fused attention has no forward derivative
            assert name.startswith("attention")
            continue
        close(want, forward(definition, x, t))
        close(inside(way, ours)(x, t), want)


@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
def test_a_level_opened_in_the_graph_is_seen_by_the_op(backend: str) -> None:
    ours, _, x, t = pair("rms_norm")
    want = dual(ours, x, t)
    close(inside(dual, ours, backend)(x, t), want)
    fast = torch.compile(ours, backend=backend, fullgraph=True)
    close(dual(fast, x, t), want)  # and one opened around it


@pytest.mark.parametrize("name", ["rms_norm", "gelu_tanh", "scale_shift"])
def test_second_derivatives(name: str) -> None:
    op = registry.op(name)
    x = torch.randn(2, 4, dtype=torch.float64)
    rest = (x[0] + 1,) if name == "scale_shift" else ()

    def second(f: Callable[..., Tensor]) -> Callable[[Tensor], tuple[Tensor, Tensor]]:
        call = lambda x: f(*op.canonical(x, *rest))  # noqa: E731
        return lambda x: (hessian(loss(call))(x), jacfwd(call)(x))

    front = getattr(torch.ops.sgl_kernels, name)
    fast = torch.compile(second(front), backend="aot_eager", fullgraph=True)
    close(fast(x), second(op.reference)(x))


@pytest.mark.parametrize("name", TRACED)
def test_the_torch_op_drops_no_derivative(name: str) -> None:
    """torch.library's own autograd kernel gives a tangent of zero, without a word, and raises inside grad."""
    ours, definition, x, t = pair(name)
    overload = getattr(torch.ops.sgl_kernels, name)
    rest = pair_arguments(name)

    def called(x: Tensor) -> Tensor:
        out = overload(x, *rest)
        return out[0] if isinstance(out, tuple) else out

    close(reverse(called, x, t), reverse(definition, x, t))
    try:
        want = forward(ours, x, t)
    except NotImplementedError:
        with pytest.raises(NotImplementedError):
            forward(called, x, t)
        return
    close(forward(called, x, t), want)
    close(dual(called, x, t), want)


def pair_arguments(name: str) -> tuple[object, ...]:
    """The arguments that `pair` holds besides the first."""
    ours = pair(name)[0]
    cells = dict(
        zip(ours.__code__.co_freevars, (c.cell_contents for c in ours.__closure__ or ()), strict=True)
    )
    return cells["args"][1:]


def _sdpa(*shape: int) -> tuple[Tensor, Tensor]:
    g = torch.Generator().manual_seed(1)
    return tuple(torch.randn(shape, generator=g, dtype=torch.float64) for _ in range(2))


@pytest.mark.parametrize(
    ("how", "shape"),
    [
        ("installed", (2, 2, 5, 8)),
        ("installed", (2, 2, 2, 5, 8)),
        ("drop-in", (2, 5, 8)),
        ("op", (2, 2, 5, 8)),
    ],
    ids=str,
)
def test_torchs_function(how: str, shape: tuple[int, ...]) -> None:
    x, t = _sdpa(*shape)
    stock = lambda x: TORCH_SDPA(x, x + 1, x.sin())  # noqa: E731
    ours = {
        "installed": lambda x: F.scaled_dot_product_attention(x, x + 1, x.sin()),
        "drop-in": lambda x: sgl_kernels.scaled_dot_product_attention(x, x + 1, x.sin()),
        "op": lambda x: torch.ops.sgl_kernels.scaled_dot_product_attention(
            x, x + 1, x.sin(), None, False, None, False
        ),
    }[how]
    for way in (reverse, forward, dual):
        try:
            want = way(stock, x, t)
        except NotImplementedError:
            continue
        with sgl_kernels.install("torch"):
            close(inside(way, ours)(x, t), want)
            close(way(ours, x, t), want)


def test_an_applied_model() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.RMSNorm(8), nn.Linear(8, 8), nn.GELU(approximate="tanh"), nn.GroupNorm(2, 8)
    ).double()
    x, t = torch.randn(2, 3, 8, dtype=torch.float64), torch.randn(2, 3, 8, dtype=torch.float64)
    weights = {k: v.detach() for k, v in model.named_parameters()}

    def call(x: Tensor) -> Tensor:
        return functional_call(model, weights, (x.flatten(0, -2),)).reshape(x.shape)

    want = [way(call, x, t) for way in (reverse, forward, dual)]
    with sgl_kernels.apply(model):
        for way, expected in zip((reverse, forward, dual), want, strict=True):
            close(inside(way, call)(x, t), expected)
