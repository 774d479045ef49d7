"""The replacements for diffusers' own parts are proven against the code that is installed, not against its name."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import sgl_kernels
from sgl_kernels.integrations import library_proofs, linears, norms

pytest.importorskip("diffusers")


def test_every_replacement_for_a_part_of_diffusers_is_proven_with_this_release() -> None:
    from diffusers.models import activations, normalization

    for library, table, inner in (
        (normalization, norms.DIFFUSERS, norms.replacement_for),
        (activations, linears.DIFFUSERS, linears._nothing),
    ):
        for name, replacement in table.items():
            theirs = getattr(library, name)
            assert library_proofs.replaces(theirs, theirs, replacement, inner), name


@pytest.mark.parametrize("name", ["AdaLayerNormZero", "RMSNorm", "GEGLU", "SwiGLU", "FP32LayerNorm"])
def test_another_release_with_other_code_is_found_out(name: str) -> None:
    from diffusers.models import activations, normalization

    library, table = (
        (normalization, norms.DIFFUSERS) if name in norms.DIFFUSERS else (activations, linears.DIFFUSERS)
    )
    theirs = getattr(library, name)

    def forward(self: Any, *args: Any, **kwargs: Any) -> Any:
        out = theirs.forward(self, *args, **kwargs)
        return (out[0] * 1.01, *out[1:]) if isinstance(out, tuple) else out * 1.01

    changed = type(name, (theirs,), {"forward": forward})
    inner = norms.replacement_for if name in norms.DIFFUSERS else linears._nothing
    assert not library_proofs.replaces(changed, changed, table[name], inner)


@torch.no_grad()
def test_a_subclass_that_changes_what_the_forward_calls_keeps_it() -> None:
    from diffusers.models.activations import GEGLU, GELU

    def relu(self: Any, gate: Tensor) -> Tensor:
        return F.relu(gate)

    x = torch.randn(2, 3, 8)
    for cls in (GEGLU, GELU):
        model = type("Odd", (cls,), {"gelu": relu})(8, 12)
        want = model(x)
        with sgl_kernels.apply(model):
            assert torch.allclose(model(x), want, atol=1e-5)


@torch.no_grad()
@pytest.mark.parametrize("name", ["RMSNorm", "MochiRMSNorm"])
def test_a_weight_that_is_broadcast_is_stocks(name: str) -> None:
    from diffusers.models import normalization

    model, x = getattr(normalization, name)(1, eps=1e-5), torch.randn(2, 5, 8)
    model.weight.fill_(3.0)
    want = model(x)
    with sgl_kernels.apply(model):
        assert torch.equal(model(x), want)
