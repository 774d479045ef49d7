"""The drop-in of torch's SDPA: who watches or turned a kernel off gets torch's own function, the rest is served."""

from __future__ import annotations

import io
import warnings
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd import forward_ad
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.attention.bias import causal_lower_right, causal_upper_left
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

import sgl_kernels

TORCH_SDPA = torch._C._nn.scaled_dot_product_attention


@pytest.fixture(params=["drop-in", "installed"])
def sdpa(request: pytest.FixtureRequest):
    """Both ways to our function."""
    if request.param == "drop-in":
        yield sgl_kernels.scaled_dot_product_attention
    else:
        with sgl_kernels.install("torch"):
            yield lambda *args, **kwargs: F.scaled_dot_product_attention(*args, **kwargs)


def q_(*shape: int) -> Tensor:
    return torch.randn(shape or (2, 3, 40, 16), generator=torch.Generator().manual_seed(len(shape)))


def served(call: Callable[[], object]) -> int:
    """How many attention calls the registry served."""
    with sgl_kernels.record() as recorder:
        call()
    return sum(e.calls for e in recorder.report().entries)


def close(have: Tensor, want: Tensor, atol: float = 1e-5) -> None:
    assert have.stride() == want.stride()
    torch.testing.assert_close(have, want, atol=atol, rtol=1e-5)


def test_a_view_after_the_call_works_where_it_works_with_torch(sdpa):
    contiguous = q_()
    assert sdpa(contiguous, contiguous, contiguous).view(6, 40, 16).is_contiguous()
    rows = q_(2, 40, 3, 16).transpose(1, 2)
    assert sdpa(rows, rows, rows).transpose(1, 2).view(2, 40, 48).is_contiguous()
    one = q_(2, 3, 1, 16)
    assert sdpa(one, contiguous, contiguous).view(6, 1, 16).is_contiguous()


@pytest.mark.parametrize(
    "wrapped", [{"check": True}, {"trace": 2}, {"backend": "torch"}, {"backend": "sage_cpu"}]
)
def test_strides_do_not_depend_on_who_serves_or_what_is_wrapped_around_it(sdpa, wrapped):
    atol = 5e-2 if wrapped.get("backend") == "sage_cpu" else 1e-5
    for q in (q_(), q_(2, 40, 3, 16).transpose(1, 2), q_(40, 2, 3, 16).permute(1, 2, 0, 3)):
        with sgl_kernels.use(**wrapped):
            close(sdpa(q, q, q), TORCH_SDPA(q, q, q), atol)


def test_the_same_shape_with_other_strides_flags_and_scales_is_another_call(sdpa):
    a, b = q_(2, 3, 40, 16), q_(2, 40, 3, 16).transpose(1, 2)
    for _ in range(2):
        for q in (a, b):
            for kwargs in (
                {},
                {"is_causal": True},
                {"scale": 0.5},
                {"scale": 0.25},
                {"scale": -0.25},
                {"scale": 0.0},
            ):
                close(sdpa(q, q, q, **kwargs), TORCH_SDPA(q, q, q, **kwargs))
        with pytest.raises(TypeError):
            sdpa(a, a, a, is_causal=1)


def test_gradient_tangent_and_transform_are_torchs(sdpa):
    q, k, v, t = q_(), q_().flip(0), q_().flip(1), q_().flip(2)
    # without gradient first: what was bound for the shape must not serve the others
    close(sdpa(q, k, v), TORCH_SDPA(q, k, v))
    with forward_ad.dual_level():
        dual = forward_ad.make_dual(q, t)
        outcomes = []
        for f in (sdpa, TORCH_SDPA):
            try:
                outcomes.append(forward_ad.unpack_dual(f(dual, k, v)).tangent)
            except NotImplementedError as error:  # of torch's fused kernel, in some versions
                outcomes.append(str(error)[:40])
        if isinstance(outcomes[1], Tensor):
            close(*outcomes)
        else:
            assert outcomes[0] == outcomes[1]
    with sdpa_kernel(SDPBackend.MATH):
        have, want = (torch.func.jvp(lambda x, f=f: f(x, k, v), (q,), (t,)) for f in (sdpa, TORCH_SDPA))
    for a, b in zip(have, want, strict=True):
        close(a, b)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        close(
            torch.func.vmap(sdpa)(q[None], k[None], v[None]),
            torch.func.vmap(TORCH_SDPA)(q[None], k[None], v[None]),
        )
        have, want = (
            torch.func.grad(lambda x, f=f: f(x, k, v).square().sum())(q) for f in (sdpa, TORCH_SDPA)
        )
        close(have, want)
        per = [
            torch.func.vmap(torch.func.grad(lambda x, f=f: f(x, k, v).sum()))(q[None])
            for f in (sdpa, TORCH_SDPA)
        ]
        close(*per)
        per = [
            torch.func.grad(lambda x, f=f: torch.func.vmap(f)(x, k, v).sum())(q) for f in (sdpa, TORCH_SDPA)
        ]
        close(*per)


def test_a_mask_that_learns_is_torchs(sdpa):
    q, bias = q_(), torch.zeros(40, 40, requires_grad=True)
    sdpa(q, q, q, bias).sum().backward()
    assert bias.grad is not None
    with torch.no_grad():
        assert served(lambda: sdpa(q, q, q, bias)) == 1


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast(sdpa, dtype):
    q = q_()
    low = torch.full((40, 40), -1e9).triu(1) + torch.full((40, 40), -1e9).tril(-1)  # -inf in float16
    for _ in range(2):
        for kwargs in ({}, {"attn_mask": torch.randn(40, 40) > 0}, {"attn_mask": low}, {"is_causal": True}):
            with torch.autocast("cpu", dtype=dtype):
                have, want = sdpa(q, q, q, **kwargs), TORCH_SDPA(q, q, q, **kwargs)
            assert have.dtype is want.dtype is dtype and have.stride() == want.stride()
            torch.testing.assert_close(have, want, atol=2e-2, rtol=2e-2)
            close(sdpa(q, q, q, **kwargs), TORCH_SDPA(q, q, q, **kwargs))
        with torch.autocast("cpu", dtype=dtype):
            assert sdpa(q, q.to(dtype), q).dtype is dtype  # torch casts all three
            assert sdpa(q.double(), q.double(), q.double()).dtype is torch.float64


def test_modes_see_torchs_function_and_the_default_device_does_not_matter(sdpa):
    q = q_()
    seen: list[object] = []

    class Functions(TorchFunctionMode):
        def __torch_function__(self, func, types, args=(), kwargs=None):
            seen.append(func)
            assert func is F.scaled_dot_product_attention  # by the name of the moment, too
            return func(*args, **(kwargs or {}))

    class Ops(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            seen.append(func)
            return func(*args, **(kwargs or {}))

    with Functions():
        assert served(lambda: sdpa(q, q, q)) == 0
    assert seen == [TORCH_SDPA]
    seen.clear()
    with Ops():
        assert served(lambda: sdpa(q, q, q)) == 0
    assert torch.ops.aten._scaled_dot_product_flash_attention_for_cpu.default in seen
    counts = []
    for function in (sdpa, TORCH_SDPA):
        with FlopCounterMode(display=False) as flops:
            function(q, q, q[..., :12])  # (torch counts nothing for the fused kernel of the CPU)
        counts.append(flops.get_total_flops())
    assert counts[0] == counts[1] > 0
    with torch.device("cpu"):
        assert served(lambda: sdpa(q, q, q)) == 1
    with torch.inference_mode():
        assert served(lambda: sdpa(q.clone(), q, q)) == 1


def test_subclasses_get_torchs_function_with_the_arguments_as_they_were(sdpa):
    q = q_(1, 2, 4, 8)
    calls = []

    class Old(Tensor):
        @classmethod
        def __torch_function__(cls, func, types, args=(), kwargs=None):
            if func is TORCH_SDPA:
                calls.append((len(args), sorted(kwargs or {})))
                return "theirs"
            return super().__torch_function__(func, types, args, kwargs or {})

    for position in range(4):
        args = [q, q, q, torch.zeros(4, 4)]
        args[position] = args[position].as_subclass(Old)
        assert sdpa(*args) == "theirs"
    assert sdpa(q.as_subclass(Old), q, q) == "theirs"
    assert all("enable_gqa" not in names and "scale" not in names for _, names in calls)


@pytest.mark.parametrize("sizes", [(6, 6), (4, 6), (6, 4)])
def test_torchs_causal_biases(sdpa, sizes):
    sq, sk = sizes
    q, k = q_(1, 2, sq, 8), q_(1, 2, sk, 8)
    for bias in (causal_upper_left(sq, sk), causal_lower_right(sq, sk)):
        close(sdpa(q, k, k, bias), TORCH_SDPA(q, k, k, bias._materialize()), 1e-6)


def test_nested_and_meta_tensors(sdpa):
    warnings.simplefilter("ignore")
    parts = [torch.randn(2, n, 8) for n in (3, 5)]
    strided = torch.nested.nested_tensor(parts)
    for have, part in zip(sdpa(strided, strided, strided).unbind(), parts, strict=True):
        torch.testing.assert_close(
            have, TORCH_SDPA(part[None], part[None], part[None])[0], atol=1e-5, rtol=1e-5
        )
    jagged = torch.nested.nested_tensor([p.transpose(0, 1) for p in parts], layout=torch.jagged).transpose(
        1, 2
    )
    for have, part in zip(sdpa(jagged, jagged, jagged).transpose(1, 2).unbind(), parts, strict=True):
        want = TORCH_SDPA(part[None], part[None], part[None])[0].transpose(0, 1)
        torch.testing.assert_close(have, want, atol=1e-5, rtol=1e-5)
    meta = torch.empty(2, 3, 5, 8, device="meta")
    assert sdpa(meta, meta, meta).device.type == "meta"
    with torch._subclasses.FakeTensorMode():
        fake = torch.empty(2, 3, 5, 8)
        assert sdpa(fake, fake, fake).shape == fake.shape


def test_the_drop_in_takes_strided_nested_tensors_of_any_order():
    warnings.simplefilter("ignore")
    parts = [torch.randn(n, 2, 8) for n in (3, 5)]
    nested = torch.nested.nested_tensor(parts).transpose(1, 2)  # torch asks for contiguous ones
    out = sgl_kernels.scaled_dot_product_attention(nested, nested, nested)
    for have, part in zip(out.unbind(), parts, strict=True):
        part = part.transpose(0, 1)[None]
        torch.testing.assert_close(have, TORCH_SDPA(part, part, part)[0], atol=1e-5, rtol=1e-5)


def test_negated_views_are_read_as_what_they_mean(sdpa):
    q = torch.randn(1, 2, 40, 8, dtype=torch.complex64).conj().imag
    assert q.is_neg()
    close(sdpa(q, q, q), TORCH_SDPA(q, q, q))


def test_a_kernel_that_was_switched_off_is_a_choice_among_torchs(sdpa):
    q = q_()
    assert served(lambda: sdpa(q, q, q)) == 1
    for kernel in (SDPBackend.MATH, SDPBackend.FLASH_ATTENTION):
        with sdpa_kernel(kernel):
            assert served(lambda: sdpa(q, q, q)) == 0
            close(sdpa(q, q, q), TORCH_SDPA(q, q, q))
    with sdpa_kernel(SDPBackend.EFFICIENT_ATTENTION), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with pytest.raises(RuntimeError, match=r"No (available kernel|viable backend)"):
            sdpa(q, q, q)
    assert served(lambda: sdpa(q, q, q)) == 1


def scripted(q: Tensor, k: Tensor) -> Tensor:
    return F.scaled_dot_product_attention(q, k, k, is_causal=True, scale=0.5)


def scripted_drop_in(q: Tensor, k: Tensor) -> Tensor:
    return sgl_kernels.scaled_dot_product_attention(q, k, k, is_causal=True, scale=0.5)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_torchscript_compiles_torchs_operator():
    q = q_(1, 2, 5, 8)
    want = TORCH_SDPA(q, q, q, is_causal=True, scale=0.5)
    with sgl_kernels.install("torch"):
        made = [
            torch.jit.script(scripted),
            torch.jit.script(scripted_drop_in),
            torch.jit.trace(scripted, (q, q)),
        ]
        for module in (torch.nn.MultiheadAttention(16, 2), torch.nn.TransformerEncoderLayer(16, 2).eval()):
            x = torch.randn(3, 2, 16)
            args = (x, x, x) if isinstance(module, torch.nn.MultiheadAttention) else (x,)
            have, plain = torch.jit.script(module)(*args), module(*args)
            have, plain = (o[0] if isinstance(o, tuple) else o for o in (have, plain))
            torch.testing.assert_close(have, plain, atol=1e-5, rtol=1e-5)
    for function in made:
        assert "aten::scaled_dot_product_attention" in str(function.graph)
        buffer = io.BytesIO()
        torch.jit.save(function, buffer)
        buffer.seek(0)
        torch.testing.assert_close(torch.jit.load(buffer)(q, q), want, atol=1e-6, rtol=1e-5)


def test_fx_and_export_keep_the_call():
    class Model(torch.nn.Module):
        def forward(self, q: Tensor) -> Tensor:
            return F.scaled_dot_product_attention(q, q, q).view(6, 40, 16)

    q = q_()
    want = Model()(q)
    with sgl_kernels.install("torch"):
        graph = torch.fx.symbolic_trace(Model())
        assert TORCH_SDPA in [n.target for n in graph.graph.nodes]
        for strict in (False, True):
            program = torch.export.export(Model(), (q,), strict=strict)
            close(program.module()(q), want)
