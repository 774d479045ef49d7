"""The key of a call: equal for calls that may share a binding, different for all others, for every op."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import Tensor
from torch.autograd import forward_ad

from sgl_kernels.core.registry import registry
from sgl_kernels.ops import _fingerprint
from sgl_kernels.ops._fingerprint import builder, in_python
from sgl_kernels.ops._key import _through_attributes, is_plain

needs_extension = pytest.mark.skipif(_fingerprint.compiled is None, reason="sgl_kernels._key is not built")
FORMS = pytest.mark.parametrize(
    "make", [pytest.param(builder, marks=needs_extension), in_python], ids=["extension", "attributes"]
)
OPS = registry.ops()


def smoke(name: str) -> tuple:
    op = registry.op(name)
    case = next(c for c in op.cases() if "smoke" in c.tags)
    return op.canonical(*case.make(torch.device("cpu"), torch.float32, seed=3))


def replaced(args: tuple, i: int, value: object) -> tuple:
    return (*args[:i], value, *args[i + 1 :])


def others(argument, value):
    """Values of one argument that must not share a key with `value`, nor with each other."""
    if isinstance(value, Tensor):
        yield from (value[None], value.to(torch.float16), torch.empty((*value.shape, 2)))
        return
    if argument.is_tensor:
        yield torch.ones(3)
    if argument.kind.startswith("Optional"):
        yield None
    yield {"bool": not value}.get(argument.kind, True)
    yield from (7, 1 << 40, 0.25, -0.5, "none", "a much longer text", "a much longer tex")


@FORMS
@pytest.mark.parametrize("name", OPS)
def test_every_argument_is_in_the_key(make, name):
    op, args = registry.op(name), smoke(name)
    key = make(op)[0]
    known = {"": key(None, args), "backend": key("cpu", args), "other": key("torch", args)}
    for i, argument in enumerate(op.arguments):
        for n, value in enumerate(others(argument, args[i])):
            if type(value) is type(args[i]) and not isinstance(value, Tensor) and value == args[i]:
                continue
            known[f"{argument.name} {n}"] = key(None, replaced(args, i, value))
    found = {label: k for label, k in known.items() if k is not None}
    assert {"", "backend", "other"} <= found.keys()
    for (a, one), (b, other) in itertools.combinations(found.items(), 2):
        assert one != other, (a, b)
    for i, a in enumerate(args):  # which of them is watched makes no difference
        if isinstance(a, Tensor) and a.dtype is torch.float32:
            watched = key(None, replaced(args, i, a.clone().requires_grad_()))
            assert watched not in found.values()
    again = tuple(a.clone() if isinstance(a, Tensor) else a for a in args)
    assert key(None, again) == found[""] and hash(key(None, again)) == hash(found[""])


@FORMS
def test_two_ops_never_share_a_key(make):
    first, second = registry.op("attention"), registry.op("attention_lse")
    assert make(first)[0](None, smoke("attention")) != make(second)[0](None, smoke("attention_lse"))


@FORMS
@pytest.mark.parametrize("name", OPS)
def test_ambient_state_is_in_the_key(make, name):
    args = smoke(name)
    key = make(registry.op(name))[0]
    outside = key(None, args)
    found = {outside}
    for dtype in (torch.bfloat16, torch.float16):
        with torch.autocast("cpu", dtype):
            found.add(key(None, args))
    assert len(found) == 3
    with torch.autocast("xpu", torch.bfloat16):  # of another device
        assert key(None, args) == outside
    with torch.no_grad():
        assert key(None, args) == outside  # nobody watched before
        watched = tuple(
            a.clone().requires_grad_() if isinstance(a, Tensor) and a.dtype is torch.float32 else a
            for a in args
        )
        assert key(None, watched) == outside
    with forward_ad.dual_level():
        assert key(None, args) is None
    assert key(None, args) == outside


@FORMS
def test_strides_count_where_the_op_says_so(make):
    x = torch.ones(2, 4, 3, 5)
    last = x.contiguous(memory_format=torch.channels_last)
    group, rms = make(registry.op("group_norm"))[0], make(registry.op("rms_norm"))[0]
    assert group(None, (x, 2, None, None, 1e-5, "none")) != group(None, (last, 2, None, None, 1e-5, "none"))
    assert rms(None, (x, None, 1e-6, 0.0)) == rms(None, (last, None, 1e-6, 0.0))


def odd():
    """Tensors that are not plain."""
    x = torch.ones(3, 4)
    yield "meta", x.to("meta")
    yield "sparse", x.to_sparse()
    yield "strided nested", torch.nested.nested_tensor([x, x])
    yield "jagged", torch.nested.nested_tensor([x, x], layout=torch.jagged)
    yield "subclass", x.as_subclass(type("Mine", (Tensor,), {}))


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")
@FORMS
def test_what_is_not_plain_has_no_key(make):
    key, inside = make(registry.op("gelu_tanh"))
    for name, t in odd():
        assert key(None, (t,)) is None and not is_plain(t) and not _through_attributes(t), name
    assert inside(None, (list(odd())[-1][1],)) is not None  # the body of the torch op serves it
    seen = []

    def look(t):
        seen.append((key(None, (t,)), is_plain(t), _through_attributes(t)))
        return t.sum()

    torch.vmap(look)(torch.ones(2, 3))
    torch.func.grad(look)(torch.ones(2, 3))
    torch.func.jvp(look, (torch.ones(3),), (torch.ones(3),))
    assert seen == [(None, False, False)] * 3
    assert is_plain(torch.ones(3), None, torch.nn.Parameter(torch.ones(3)))


@FORMS
def test_what_is_not_what_the_schema_says_has_no_key(make):
    key = make(registry.op("rms_norm"))[0]
    x = torch.ones(3)
    for args in ((5, None, 1e-6, 0.0), (x, [1.0], 1e-6, 0.0), (x, None, x, 0.0), (x, None, [], 0.0)):
        assert key(None, args) is None
    assert key(None, (x, None, 1 << 70, 0.0)) is not None  # Python's own numbers, however large


@needs_extension
def test_many_tensors_of_many_dimensions_take_the_slow_way():
    op = registry.op("residual_gate_norm_scale_shift")
    wide = torch.ones((1,) * 60)
    args = (*[wide] * 7, 1e-6, "layer")
    assert isinstance(builder(op)[0](None, args), tuple)


def test_without_the_extension_attributes_serve(monkeypatch):
    def absent(name):
        raise ImportError(name)

    monkeypatch.setattr(_fingerprint.importlib, "import_module", absent)
    assert _fingerprint._find() is None
