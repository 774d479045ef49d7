"""The part of a key that tensors give: equal for calls that may share a binding, different for all others."""

from __future__ import annotations

import itertools

import pytest
import torch

from sgl_kernels.ops import _fingerprint
from sgl_kernels.ops._fingerprint import fingerprint, through_attributes

needs_extension = pytest.mark.skipif(
    fingerprint is through_attributes, reason="sgl_kernels._key is not built"
)


def different():
    """Arguments that must all have different fingerprints."""
    x = torch.ones(2, 3, 4)
    yield "plain", (x, x)
    yield "shape", (x, torch.ones(2, 4, 3))
    yield "dims", (x, torch.ones(2, 3, 4, 1))
    yield "scalar", (x, torch.ones(()))
    yield "missing", (x, None)
    yield "first missing", (None, x)
    yield "fewer", (x,)
    for dtype in (
        torch.float16,
        torch.bfloat16,
        torch.float64,
        torch.bool,
        torch.uint8,
        torch.int8,
        torch.int32,
    ):
        yield str(dtype), (x, torch.ones(2, 3, 4).to(dtype))
    yield "float8", (x, torch.ones(2, 3, 4).to(torch.float8_e4m3fn))
    yield "another float8", (x, torch.ones(2, 3, 4).to(torch.float8_e5m2))
    yield "grad", (x, torch.ones(2, 3, 4, requires_grad=True))


@pytest.mark.parametrize("make", [fingerprint, through_attributes], ids=["extension", "attributes"])
def test_different_calls_have_different_fingerprints(make):
    found = {name: make(*tensors) for name, tensors in different()}
    for (a, one), (b, other) in itertools.combinations(found.items(), 2):
        assert one != other, (a, b)


@pytest.mark.parametrize("make", [fingerprint, through_attributes], ids=["extension", "attributes"])
def test_like_calls_share_one(make):
    x = torch.ones(2, 3, 4)
    again = torch.zeros(3, 2, 4).transpose(0, 1)  # other values and strides
    assert make(x, None) == make(again, None) and hash(make(x, None)) == hash(make(again, None))
    parameter = torch.nn.Parameter(torch.ones(2, 3, 4))
    assert make(parameter) == make(torch.ones(2, 3, 4, requires_grad=True))


@pytest.mark.parametrize("make", [fingerprint, through_attributes], ids=["extension", "attributes"])
def test_grad_counts_only_while_autograd_watches(make):
    x, watched = torch.ones(3), torch.ones(3, requires_grad=True)
    assert make(x) != make(watched)
    with torch.no_grad():
        assert make(x) == make(watched)
    with torch.inference_mode():
        assert make(torch.ones(3)) == make(x)


@pytest.mark.parametrize("make", [fingerprint, through_attributes], ids=["extension", "attributes"])
def test_autocast_is_part_of_it(make):
    x = torch.ones(3)
    before = make(x)
    with torch.autocast("cpu", torch.bfloat16):
        assert make(x) != before
    assert make(x) == before


@needs_extension
def test_tensors_without_memory_take_the_slow_way():
    meta = torch.empty(2, 3, device="meta")
    assert fingerprint(meta) == through_attributes(meta)
    assert fingerprint(meta) != fingerprint(torch.empty(2, 3))
    seen = []
    torch.vmap(lambda t: (seen.append(fingerprint(t)), t)[1])(torch.ones(2, 3))
    assert seen == [through_attributes(torch.ones(3))]


def test_what_is_no_tensor_is_an_attribute_error():
    for wrong in (5, "text", [1.0]):
        with pytest.raises(AttributeError):
            fingerprint(wrong)


@needs_extension
def test_many_tensors_of_many_dimensions_take_the_slow_way():
    wide = torch.ones((1,) * 60)
    assert fingerprint(*[wide] * 8) == through_attributes(*[wide] * 8)


def test_without_the_extension_attributes_serve(monkeypatch):
    def absent(name):
        raise ImportError(name)

    monkeypatch.setattr(_fingerprint.importlib, "import_module", absent)
    assert _fingerprint._find() is through_attributes
