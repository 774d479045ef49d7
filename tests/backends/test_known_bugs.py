"""data/known_bugs.json: every entry can be met, and turns the call away."""

from __future__ import annotations

import pytest
import torch
from packaging.specifiers import SpecifierSet
from packaging.version import Version

import sgl_kernels
from sgl_kernels.backends._bugs import known_bugs
from sgl_kernels.core.device import Device, parse_device
from sgl_kernels.core.op import Op
from sgl_kernels.core.registry import registry
from sgl_kernels.core.selection.bugs import Bug
from sgl_kernels.core.selection.select import select
from sgl_kernels.core.selection.verdict import Reason
from sgl_kernels.core.settings import OpPolicy

PLATFORM_OF = {"sm": "cuda", "gfx": "rocm"}
CANDIDATES = {
    "kv_heads": (1, 8, 32),
    "causal": ("", "square"),
    "sk": (64, 100, 1024, 200_000),
    "mask": ("", "bool", "float"),
    "head_dim": (64, 128, 256),
}


def _device(bug: Bug) -> Device:
    if bug.archs:
        arch = bug.archs[0]
        platform = next(p for prefix, p in PLATFORM_OF.items() if arch.startswith(prefix))
        return parse_device(f"{platform}:{arch}")
    return Device(bug.platforms[0] if bug.platforms else "cuda", "sm90", (9, 0))


def _versions(bug: Bug):
    """Every package is installed; the bug's own at a version inside its range."""
    inside = next(
        (
            v
            for v in map(Version, ("1.0.6", "2.2.0", "3.0", "0.6.0", "0.5"))
            if SpecifierSet(bug.versions).contains(v)
        ),
        None,
    )
    assert inside is not None, f"{bug.name}: no version tried lies in {bug.versions!r}"
    return lambda name: inside if name == bug.package else Version("2.8.0")


def _facts(op: Op, bug: Bug):
    case = next(c for c in op.cases() if "smoke" in c.tags)
    facts = op.facts(*op.canonical(*case.make(torch.device("cpu"), torch.bfloat16)))
    for fact, comparison, value in bug.where:
        for candidate in CANDIDATES[fact]:
            changed = facts._replace(**{fact: candidate})
            if Bug._holds(changed, fact, comparison, value):
                facts = changed
                break
        else:
            pytest.fail(f"{bug.name}: no value of {fact} meets {comparison} {value}")
    return facts


@pytest.mark.parametrize("bug", known_bugs(), ids=lambda b: b.name)
def test_every_entry_is_reachable_and_rejects(bug):
    assert bug.link.startswith("https://") and bug.detail
    ops = [registry.op(name) for name in bug.ops] or [
        op
        for op in registry.ops().values()
        if any(i.backend == bug.backend for i in registry.implementations(op.name))
    ]
    assert ops, f"{bug.name}: no implementation is called {bug.backend}"
    op = ops[0]
    implementation = next((i for i in registry.implementations(op.name) if i.backend == bug.backend), None)
    assert implementation is not None, f"{bug.name}: {bug.backend} does not implement {op.name}"
    facts = _facts(op, bug)
    assert bug in implementation.bugs
    assert bug.applies(op.name, facts, _device(bug), _versions(bug))
    policy = OpPolicy(prefer=(bug.backend,))
    selection = select(op.name, facts, _device(bug), _versions(bug), policy, (implementation,))
    assert selection.rejected(bug.backend).reason in (Reason.BUG, Reason.FEATURE, Reason.SHAPE), selection


def test_a_bug_holds_only_inside_its_range():
    bug = next(b for b in known_bugs() if b.name == "cudnn-few-kv-heads")
    q = torch.empty(1, 64, 8, 64, device="meta", dtype=torch.bfloat16)
    k = q[:, :, :4]
    few = sgl_kernels.explain("attention", q[:, :, :4], k, k, device="cuda:sm100")
    many = sgl_kernels.explain("attention", q, q, q, device="cuda:sm100")
    hopper = sgl_kernels.explain("attention", q[:, :, :4], k, k, device="cuda:sm90")
    assert few.rejected("torch_cudnn").reason is Reason.BUG and bug.link in few.rejected("torch_cudnn").hint
    assert many.rejected("torch_cudnn") is None and hopper.rejected("torch_cudnn") is None


def test_a_last_block_of_keys_that_is_not_full():
    """Found by running SageAttention 1.0.6 itself (test_real_vendors.py); later releases are left to the guard."""

    def rejected(sk, version, **kw):
        q = torch.empty(1, sk, 2, 64, device="meta", dtype=torch.bfloat16)
        there = {"device": "cuda:sm89", "version_of": {"sageattention": Version(version)}.get}
        return sgl_kernels.explain("attention", q, q, q, **there, **kw).rejected("sage_attn")

    assert rejected(200, "1.0.6").reason is Reason.BUG
    for fine in (rejected(256, "1.0.6"), rejected(200, "2.2.0"), rejected(200, "1.0.6", is_causal=True)):
        assert fine.reason is Reason.FIDELITY
