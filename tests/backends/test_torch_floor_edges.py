"""The floor and the definition at the edges of softmax: values and gradients against a row-by-row oracle."""

from __future__ import annotations

import sys

import pytest
import torch

import sgl_kernels
from sgl_kernels.backends import _torch_checks, _torch_chunked, torch_native
from sgl_kernels.backends._attention import levelled, narrowed, without_hidden
from sgl_kernels.ops.attention import reference

from .attention_oracle import INF, attend, edges

NAN = float("nan")
TOLERANCE = {
    torch.float32: 2e-5,
    torch.bfloat16: 3e-2,
    torch.float64: 2e-6,
}  # its lse is float32, and so are masks


def floor(q, k, v, **call):
    return (sgl_kernels.attention(q, k, v, backend="torch", **call),)


def floor_lse(q, k, v, **call):
    return sgl_kernels.attention_lse(q, k, v, backend="torch", **call)


def definition(q, k, v, window_size=None, **call):
    left, right = window_size or (-1, -1)
    return reference.attention_lse(q, k, v, window_left=left, window_right=right, **call)


RUNS = {"attention": floor, "attention_lse": floor_lse, "reference": definition}


def qkv(dtype=torch.float32, sq=7, sk=9, dv=8):
    torch.manual_seed(1)
    return [torch.randn(2, n, h, d).to(dtype) for n, h, d in ((sq, 4, 8), (sk, 2, 8), (sk, 2, dv))]


def results(run, tensors, call, learned=False, hidden=None):
    """Outputs of a call and the gradients of q, k, v (and of the mask) under a random weight of every output."""
    tensors = [t.clone().requires_grad_() for t in tensors]
    if learned:
        call = {**call, "attn_mask": call["attn_mask"].clone().requires_grad_()}
    outs = run(*tensors, **call)
    generator = torch.Generator().manual_seed(5)
    weights = [torch.randn(o.shape, generator=generator, dtype=torch.float64) for o in outs]
    finite = [o.double().masked_fill(o == -INF, 0.0) for o in outs]
    loss = sum((o * w).sum() for o, w in zip(finite, weights, strict=True))
    wanted = [*tensors, call["attn_mask"]] if learned else tensors
    return [o.detach() for o in outs], torch.autograd.grad(
        loss, wanted, materialize_grads=True, allow_unused=True
    )


def check(run, dtype, call, learned=False, dv=8, tolerance=None):
    tensors = qkv(dtype, dv=dv)
    wide = torch.promote_types(dtype, torch.float32)
    got, got_grads = results(run, tensors, call, learned)
    want, want_grads = results(
        lambda *a, **c: attend(*a, wide=wide, **c)[: len(got)], [t.double() for t in tensors], call, learned
    )
    limit = tolerance or TOLERANCE[dtype]
    for mine, right in zip((*got, *got_grads), (*want, *want_grads), strict=True):
        torch.testing.assert_close(mine.double(), right.double(), rtol=limit, atol=limit)


@pytest.mark.parametrize("dtype", TOLERANCE, ids=lambda d: str(d).removeprefix("torch."))
@pytest.mark.parametrize("name", edges())
def test_values_and_gradients_at_the_edges(name, dtype):
    call = edges()[name]
    rough = 3e-3 if "-1e+04" in name and dtype is torch.float32 else None  # float32 has steps of 1e-3 there
    for run in RUNS.values():
        check(run, dtype, call, tolerance=rough)
        mask = call.get("attn_mask")
        if mask is not None and mask.is_floating_point():
            check(run, dtype, call, learned=True, tolerance=rough)


def test_another_head_size_of_values_takes_the_same_care():
    for name in ("rows of -1e+09", "float mask with -inf", "causal"):
        check(floor, torch.float32, edges()[name], dv=5)


@pytest.mark.parametrize(
    "dtype, value",
    [
        (torch.float32, NAN),
        (torch.float32, -INF),
        (torch.bfloat16, NAN),
        (torch.float16, INF),
        (torch.float64, NAN),
    ],
)
@pytest.mark.parametrize(
    "name", [n for n in edges() if "mask" in n or "padding" in n or "causal" in n or n == "window"]
)
def test_what_hidden_keys_hold_reaches_no_row_and_no_gradient(name, dtype, value):
    call, (q, k, v) = edges()[name], qkv(dtype)
    mask = call.get("attn_mask")
    for place in (4, 8):  # a key that some rows see and others do not
        dirty_k, dirty_v = k.clone(), v.clone()
        dirty_k[:, place], dirty_v[:, place] = value, value
        keep = reference.hidden_of(mask, reference.visible(
            7, 9, call.get("is_causal", False), call.get("causal_alignment", "bottom_right"),
            *(call.get("window_size") or (-1, -1)), q.device,
        )).expand(2, 4, 7, 9)  # fmt: skip
        blind = keep[..., place].transpose(1, 2)  # (b, row, head): rows that do not see it
        for run in RUNS.values():
            clean, dirty = run(q, k, v, **call)[0], run(q, dirty_k, dirty_v, **call)[0]
            assert torch.equal(clean[blind], dirty[blind]) or torch.allclose(
                clean[blind], dirty[blind], atol=1e-2
            )
            if value != value:
                assert dirty[~blind].isnan().all()
            leaves = [t.clone().requires_grad_() for t in (q, dirty_k, dirty_v)]
            out = run(*leaves, **call)[0]
            grads = torch.autograd.grad(out.masked_fill(~blind[..., None], 0.0).sum(), leaves)
            if blind.any() and not (~blind).any():
                assert all(g.isfinite().all() for g in grads) and not grads[1][:, place].any()


def test_a_padded_batch_has_finite_gradients_behind_nan_keys():
    q, k, v = qkv(sq=40, sk=40)
    mask = torch.ones(2, 1, 1, 40, dtype=torch.bool)
    mask[..., 30:] = False
    want = results(floor, [q, k, v], {"attn_mask": mask})
    dirty = [q, k.clone(), v.clone()]
    dirty[1][:, 30:], dirty[2][:, 30:] = NAN, INF
    for run in RUNS.values():
        _, grads = results(lambda *a, run=run, **c: run(*a, **c)[:1], dirty, {"attn_mask": mask})
        for mine, right in zip(grads, want[1], strict=True):
            torch.testing.assert_close(mine, right, rtol=2e-5, atol=2e-5)


def test_a_nan_query_that_sees_nothing_is_zero_and_one_that_sees_a_key_is_nan():
    q, k, v = qkv()
    mask = torch.ones(1, 1, 7, 9, dtype=torch.bool)
    mask[..., 2, :] = False
    q[:, 2], q[:, 3] = NAN, NAN
    for run in RUNS.values():
        out = run(q, k, v, attn_mask=mask)[0]
        assert not out[:, 2].any() and out[:, 3].isnan().all() and out[:, :2].isfinite().all()
    for scale in (0.0, -0.5):
        assert floor(q, k, v, scale=scale)[0][:, 3].isnan().all()


def test_keys_that_are_all_nan_and_seen_give_nan():
    q, k, v = qkv()
    k[:] = NAN
    for run in RUNS.values():
        assert run(q, k, v)[0].isnan().all() and run(q, k, v, is_causal=True)[0].isnan().all()


@pytest.mark.parametrize("softcap", [0.0, 2.0])
@pytest.mark.parametrize("mask", ["none", "bool", "float"])
def test_first_and_second_derivatives(mask, softcap):
    tensors = [t[:1, :3, :2, :3].double() for t in qkv()]
    given = {"none": None, "bool": torch.rand(1, 1, 3, 3) < 0.6, "float": torch.randn(1, 1, 3, 3).double()}[
        mask
    ]
    if given is not None:
        given[..., 1, :] = False if mask == "bool" else -INF
    call = {"attn_mask": given, "softcap": softcap, "is_causal": mask == "none"}
    for run in RUNS.values():

        def first(*a, run=run):
            return run(*a, **call)[0]

        leaves = [t.clone().requires_grad_() for t in tensors]
        assert torch.autograd.gradcheck(first, leaves) and torch.autograd.gradgradcheck(first, leaves)


@pytest.mark.parametrize(
    "name", ["bool padding", "float mask with -inf", "causal", "window", "rows of -1e+09"]
)
def test_transforms_see_the_same_numbers(name):
    """vmap, grad inside of vmap, jvp: nobody may look at a value there."""
    q, k, v = qkv()
    call = {n: (x[:1] if n == "attn_mask" else x) for n, x in edges()[name].items()}
    left, right = call.pop("window_size", (-1, -1))
    mask, causal = call.get("attn_mask"), call.get("is_causal", False)

    def one(q, k, v):
        args = (q[None], k[None], v[None], mask, causal, "bottom_right", None, left, right, 0.0)
        return torch_native._attention(*args)[0]

    want = torch.stack([one(*parts) for parts in zip(q, k, v, strict=True)])
    torch.testing.assert_close(torch.vmap(one)(q, k, v), want)
    per_sample = torch.vmap(torch.func.grad(lambda *a: one(*a).square().sum()))(q, k, v)
    leaf = q.clone().requires_grad_()
    torch.stack([one(*parts) for parts in zip(leaf, k, v, strict=True)]).square().sum().backward()
    torch.testing.assert_close(per_sample, leaf.grad, rtol=1e-4, atol=1e-5)
    _, tangent = torch.func.jvp(
        lambda q: torch.stack([one(*p) for p in zip(q, k, v, strict=True)]), (q,), (q,)
    )
    batched = mask if mask is None else mask.expand(2, *mask.shape[1:])
    defined = (batched, causal, "bottom_right", None, left, right, 0.0)
    _, right_tangent = torch.autograd.functional.jvp(
        lambda q: reference.attention(q, k, v, *defined), (q,), (q,)
    )
    torch.testing.assert_close(tangent, right_tangent, rtol=1e-4, atol=1e-5)


def test_without_a_look_hidden_nan_stays_hidden_and_a_seen_one_is_nan():
    q, k, v = qkv()
    k[:, 6:], v[:, 7:] = NAN, INF
    args = (None, True, "bottom_right", None, -1, -1, 0.0)
    out = torch.vmap(lambda *t: torch_native._attention(*(x[None] for x in t), *args)[0])(q, k, v)
    sees = torch.arange(7) + 2 >= 6
    assert out[:, sees].isnan().all() and out[:, ~sees].isfinite().all()


def test_fake_tensors_and_tracing_ask_for_no_value():
    from torch._subclasses import FakeTensorMode
    from torch.fx.experimental.proxy_tensor import make_fx

    q, k, v = qkv()
    args = (None, True, "bottom_right", None, -1, -1, 0.0)
    with FakeTensorMode() as mode:
        fakes = [mode.from_tensor(t) for t in (q, k, v)]
        assert torch_native._attention(*fakes, *args).shape == q.shape
    traced = make_fx(lambda *t: torch_native._attention(*t, *args))(q, k, v)
    torch.testing.assert_close(traced(q, k, v), torch_native._attention(q, k, v, *args))


def test_a_checked_call_stays_on_torchs_kernel(monkeypatch):
    """Nothing wrong in it: the chunks are not taken, with a gradient or without."""
    monkeypatch.setattr(torch_native, "chunked", None)
    q, k, v = qkv(sq=40, sk=40)
    for grad in (False, True):
        q.requires_grad_(grad)
        for call in ({}, {"is_causal": True}, {"attn_mask": torch.rand(2, 1, 1, 40) < 0.9}):
            assert floor(q, k, v, **call)[0].isfinite().all()


def test_masks_in_a_narrower_type_keep_what_is_finite():
    low = torch.tensor([[0.5, torch.finfo(torch.float32).min, -INF], [-1e9, -2e9, -INF], [-INF] * 3])
    for dtype in (torch.bfloat16, torch.float16):
        narrow = narrowed(low, dtype)
        assert narrow.dtype is dtype and torch.equal(narrow == -INF, low == -INF)
        assert torch.equal(narrow.float().argmax(-1)[:2], torch.tensor([0, 0]))
    level = levelled(low)
    assert level[0, 0] == 0.5 and level[1, 0] == 0 and level[2].isinf().all()
    assert levelled(torch.full((1, 2), torch.finfo(torch.float64).min, dtype=torch.float64)).eq(0).all()


@pytest.mark.parametrize("heads", [1, 2, 4])
def test_padding_is_zeroed_without_a_look(heads):
    _, k, v = qkv()
    k[:, 5:], v[:, 5:] = NAN, INF
    mask = torch.ones(2, heads, 1, 9, dtype=torch.bool)
    mask[..., 5:] = False
    for given in (mask, torch.zeros(mask.shape).masked_fill(~mask, -INF)):
        keys, values = without_hidden(k, v, given)
        assert not keys[:, 5:].any() and not values[:, 5:].any() and torch.equal(keys[:, :5], k[:, :5])
    per_query = mask.expand(2, heads, 7, 9)
    assert without_hidden(k, v, per_query)[0] is k


def test_no_keys_and_no_number_is_zero_with_a_gradient_of_zero():
    q = torch.full((1, 3, 2, 8), NAN, requires_grad=True)
    k = torch.zeros(1, 0, 2, 8)
    for run in RUNS.values():
        out = run(q, k, k)[0]
        assert not out.any()
        (grad,) = torch.autograd.grad(out.sum(), q)
        assert not grad.any()


def test_windows_beyond_every_length_are_no_windows():
    q, k, v = qkv(sq=9, sk=5)
    want = floor(q, k, v)[0]
    for side in (2**31 - 1, 2**31, 2**62, sys.maxsize):
        for window in ((side, side), (side, -1), (-1, side)):
            torch.testing.assert_close(floor(q, k, v, window_size=window)[0], want)
    assert reference.visible(9, 5, False, "", sys.maxsize, sys.maxsize, q.device).all()
    assert _torch_checks.largest(torch.tensor([NAN, 1.0])) != _torch_checks.largest(torch.tensor([1.0]))


@pytest.mark.parametrize("causal", [False, True])
def test_nobodys_hooks_are_asked_for_the_sums_of_a_row(causal):
    """A checkpoint recomputes the call where its saved tensors are read: that must not happen within the call."""
    from torch.utils.checkpoint import checkpoint

    q, k, v = (t.requires_grad_() for t in qkv(sq=40, sk=40))

    def run(*tensors):
        return floor(*tensors, is_causal=causal)[0].square().sum()

    want = torch.autograd.grad(run(q, k, v), (q, k, v))
    got = torch.autograd.grad(checkpoint(run, q, k, v, use_reentrant=False), (q, k, v))
    torch.testing.assert_close(got, want)


@pytest.mark.parametrize("masked", [False, True])
def test_the_sums_of_a_row_find_what_the_kernel_hides(masked, monkeypatch):
    """A NaN query comes as a row of zeros with a sum of 0, and NaN in hidden keys spoils only the gradient."""
    taken = []
    monkeypatch.setattr(torch_native, "chunked", lambda *a: taken.append(1) or _torch_chunked.chunked(*a))
    q, k, v = qkv(sq=40, sk=40)
    (q if not masked else k)[:, 39] = NAN
    q.requires_grad_()
    out = floor(q, k, v, is_causal=masked)[0]
    assert taken and out[:, 39].isnan().all() and out[:, :39].isfinite().all()
    (grad,) = torch.autograd.grad(out[:, :39].sum(), q)
    assert grad[:, :39].isfinite().all()
