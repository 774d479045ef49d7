"""The decision, as whole values."""

from __future__ import annotations

from typing import NamedTuple

import pytest
import torch
from packaging.version import Version

from sgl_kernels.core.device import Device
from sgl_kernels.core.selection.implementation import Fidelity, Implementation, Place
from sgl_kernels.core.selection.requires import HALF, Requires
from sgl_kernels.core.selection.select import select
from sgl_kernels.core.selection.tuning import TuningRecord
from sgl_kernels.core.selection.verdict import Candidate, Reason, Rejected, Selection
from sgl_kernels.core.settings import OpPolicy

H200 = Device("cuda", "sm90", (9, 0), "NVIDIA H200")
CPU = Device("cpu", "avx512")


class Facts(NamedTuple):
    dtype: torch.dtype = torch.bfloat16
    head_dim: int = 128
    needs_grad: bool = False


def _no_large_heads(facts: Facts) -> Rejected | None:
    return Rejected(Reason.SHAPE, f"head_dim {facts.head_dim} > 256") if facts.head_dim > 256 else None


def _implementation(backend: str, **kw) -> Implementation:
    return Implementation(op="attention", backend=backend, load=lambda config: None, **kw)


FAST = _implementation(
    "fast",
    rank=90,
    rejects=_no_large_heads,
    requires=Requires(
        platforms=frozenset({"cuda"}),
        min_capability=(9, 0),
        max_capability=(9, 0),
        packages=("fast>=2",),
        dtypes=HALF,
    ),
)
MIDDLE = _implementation("middle", rank=40, requires=Requires(platforms=frozenset({"cuda", "rocm"})))
LOSSY = _implementation("lossy", rank=95, fidelity=Fidelity.LOSSY)
FLOOR = _implementation("floor", differentiable=True)
ALL = (FLOOR, FAST, MIDDLE, LOSSY)


def versions(**installed: str):
    return lambda name: Version(installed[name]) if name in installed else None


def decide(facts=Facts(), device=H200, policy=OpPolicy(), version_of=versions(fast="2.1"), **kw):  # noqa: B008
    return select("attention", facts, device, version_of, policy, ALL, **kw)


FIDELITY = Rejected(Reason.FIDELITY, "lossy: name it, or set allow_lossy")


def test_a_whole_selection():
    assert decide() == Selection(
        "attention",
        Facts(),
        H200,
        "fast",
        "rank 90",
        (
            Candidate("lossy", FIDELITY),
            Candidate("fast", None, "rank 90"),
            Candidate("middle", None, "rank 40"),
            Candidate("floor", None, "fallback"),
        ),
    )


def test_a_place_says_what_it_rests_on():
    chosen = _implementation("fast", rank=Place(90, "1.4x of torch, notes.md"))
    selection = select("attention", Facts(), H200, versions(), OpPolicy(), (FLOOR, MIDDLE, chosen))
    assert (selection.chosen, selection.why) == ("fast", "1.4x of torch, notes.md")
    assert selection.candidates[0] == Candidate("fast", None, "rank 90")
    assert "ok          rank 90 (1.4x of torch, notes.md)" in str(selection)
    named = select("attention", Facts(), H200, versions(), OpPolicy(), (FLOOR, chosen), named=("fast",))
    assert named.why == "call argument"


REJECTIONS = [
    (dict(device=CPU), "fast", Reason.PLATFORM, "needs cuda, the tensor is on cpu"),
    (
        dict(device=Device("cuda", "sm89", (8, 9))),
        "fast",
        Reason.CAPABILITY,
        "needs capability 9.0, device is 8.9",
    ),
    (dict(device=Device("cuda")), "fast", Reason.CAPABILITY, "needs capability 9.0, the device has none"),
    (dict(version_of=versions()), "fast", Reason.PACKAGE, "fast is not installed"),
    (dict(version_of=versions(fast="1.9")), "fast", Reason.PACKAGE, "fast is 1.9, needs >=2"),
    (dict(facts=Facts(torch.float32)), "fast", Reason.DTYPE, "needs bfloat16, float16, got float32"),
    (dict(facts=Facts(head_dim=300)), "fast", Reason.SHAPE, "head_dim 300 > 256"),
    (
        dict(facts=Facts(needs_grad=True)),
        "middle",
        Reason.GRAD,
        "has no backward, and an input requires a gradient",
    ),
    (dict(policy=OpPolicy(deny=frozenset({"fast"}))), "fast", Reason.POLICY, "denied by the policy"),
    (dict(broken={"fast": Rejected(Reason.LOAD, "ImportError: x")}), "fast", Reason.LOAD, "ImportError: x"),
]


@pytest.mark.parametrize("kw, backend, reason, detail", REJECTIONS)
def test_every_reason(kw, backend, reason, detail):
    selection = decide(**kw)
    rejected = selection.rejected(backend)
    assert (rejected.reason, rejected.detail) == (reason, detail)
    assert selection.chosen not in ("", backend)


def test_a_missing_package_comes_with_the_command_that_fixes_it():
    assert decide(version_of=versions()).rejected("fast").hint == "pip install 'fast>=2'"


def test_a_preference_wins_over_rank_and_says_where_it_came_from():
    selection = decide(policy=OpPolicy(prefer=("middle",), origin="environment X"))
    assert (selection.chosen, selection.why) == ("middle", "prefer[0], environment X")


def test_a_preference_that_cannot_serve_falls_through_in_order():
    selection = decide(device=CPU, policy=OpPolicy(prefer=("fast", "middle")))
    assert selection.chosen == "floor"
    assert [c.backend for c in selection.candidates][:2] == ["fast", "middle"]


def test_a_strict_preference_leaves_nothing_else():
    selection = decide(device=CPU, policy=OpPolicy(prefer=("fast",), strict=True))
    assert selection.chosen == "" and selection.why == "strict policy"
    assert selection.rejected("floor") == Rejected(Reason.POLICY, "not in the strict preference")


def test_a_named_backend_is_strict():
    assert decide(named=("middle",)).why == "call argument"
    assert decide(named=("fast",), device=CPU).chosen == ""
    assert decide(named=("nobody",)).rejected("nobody").reason is Reason.POLICY


def test_lossy_runs_only_when_named_preferred_or_allowed():
    assert decide().chosen == "fast"
    assert decide(named=("lossy",)).chosen == "lossy"
    assert decide(policy=OpPolicy(prefer=("lossy",))).chosen == "lossy"
    assert decide(policy=OpPolicy(allow_lossy=True)).chosen == "lossy"


def test_a_tuned_record_wins_over_rank_and_loses_to_a_preference():
    record = TuningRecord("attention", (), "middle", None, 0.412)
    assert decide(tuned=record).why == "tuned 0.412 ms"
    assert decide(tuned=record, policy=OpPolicy(prefer=("floor",))).chosen == "floor"
    assert decide(tuned=record, device=CPU).chosen == "floor"


def test_rank_may_depend_on_the_call():
    by_size = _implementation("by_size", rank=lambda facts, device: 99 if facts.head_dim <= 64 else 1)
    chosen = [
        select("attention", Facts(head_dim=d), H200, versions(), OpPolicy(), (FLOOR, MIDDLE, by_size)).chosen
        for d in (64, 128)
    ]
    assert chosen == ["by_size", "middle"]


def test_the_table_prints_every_reason():
    text = str(decide(device=CPU))
    assert "platform    needs cuda, the tensor is on cpu" in text
    assert "→ floor" in text and "head_dim 128" in text


def test_a_selection_is_plain_data():
    import json

    data = json.loads(json.dumps(decide(device=CPU).to_dict()))
    assert data["chosen"] == "floor" and data["facts"]["dtype"] == "bfloat16"
    assert {c["backend"] for c in data["candidates"]} == {"floor", "fast", "middle", "lossy"}
