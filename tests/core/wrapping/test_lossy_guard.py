"""Lossy backends under watch: sampled rows, quarantine for the process, exact answers."""

from __future__ import annotations

import logging

import pytest
import torch

import sgl_kernels
from sgl_kernels.core.dispatch import Dispatcher, activate
from sgl_kernels.core.log import forget_warnings
from sgl_kernels.core.registry import Registry, registry
from sgl_kernels.core.selection.implementation import Fidelity, Implementation
from sgl_kernels.core.selection.verdict import Reason
from sgl_kernels.core.settings import OpPolicy, Settings
from sgl_kernels.core.wrapping import lossy_guard as guard
from sgl_kernels.ops.attention import reference, sampling

PREFERS = Settings(default=OpPolicy(prefer=("sage_attn",)))


def nan(out):
    return torch.full_like(out, float("nan"))


def noise(out):
    return out + torch.randn_like(out)


def one_head(out):
    return torch.cat((torch.zeros_like(out[:, :, :1]), out[:, :, 1:]), dim=2)


class World:
    """A registry in which sage_attn is exact attention, then whatever `spoil` makes of it."""

    def __init__(self):
        self.spoil, self.spoil_lse, self.ran = (lambda out: out), (lambda lse: lse), []
        self.registry = Registry()
        for op in registry.ops().values():
            self.registry.define(op)
        for op in ("attention", "attention_lse", "attention_varlen"):
            self.registry.add([
                Implementation(op=op, backend="torch", load=self._load(op, "torch")),
                Implementation(op=op, backend="sage_attn", load=self._load(op, "sage_attn"), rank=5,
                               fidelity=Fidelity.LOSSY),
            ], "test")  # fmt: skip

    def _load(self, op, backend):
        exact = getattr(reference, op)

        def run(*args):
            self.ran.append(backend)
            out = exact(*args)
            if backend == "torch":
                return out
            return (self.spoil(out[0]), self.spoil_lse(out[1])) if isinstance(out, tuple) else self.spoil(out)

        return lambda config: run

    def dispatcher(self, settings=PREFERS):
        return Dispatcher(settings, source=self.registry)


@pytest.fixture
def world():
    forget_warnings()
    return World()


def _attend(x, **kw):
    return sgl_kernels.attention(x, x, x, **kw)


@pytest.mark.parametrize(
    "spoil, cause",
    [(nan, "not finite"), (torch.zeros_like, "zeros"), (noise, "off the exact"), (one_head, "off")],
)
def test_a_wrong_backend_is_quarantined_and_the_call_answered_exactly(world, spoil, cause, caplog):
    world.spoil = spoil
    x = torch.randn(2, 20, 4, 16)
    want = reference.attention(x, x, x)
    with activate(world.dispatcher()) as dispatcher, caplog.at_level(logging.WARNING, "sgl_kernels"):
        torch.testing.assert_close(_attend(x), want)
        assert world.ran == ["sage_attn", "torch"]
        for n in (20, 21):  # the shape that was bound, and a new one
            y = x[:, :n] if n == 20 else torch.randn(2, n, 4, 16)
            torch.testing.assert_close(_attend(y), reference.attention(y, y, y))
        assert world.ran[2:] == ["torch"] * 2, "it is not asked again"
        rejected = sgl_kernels.explain("attention", x, x, x).rejected("sage_attn")
        assert rejected.reason is Reason.BUG and cause in rejected.detail
        assert [e.backend for e in sgl_kernels.report().entries] == ["torch"] * 2, dispatcher.selections
    assert sum("not used any more" in m for m in caplog.messages) == 1, caplog.messages


def test_a_backend_within_its_budget_stays(world):
    world.spoil = lambda out: out * 1.05
    x = torch.randn(1, 20, 4, 16)
    with activate(world.dispatcher()):
        for _ in range(3):
            torch.testing.assert_close(_attend(x), reference.attention(x, x, x) * 1.05)
    assert set(world.ran) == {"sage_attn"}


def test_one_that_turns_bad_later_is_found_at_the_next_check(world, monkeypatch):
    monkeypatch.setattr(guard, "EVERY", 4)
    x = torch.randn(1, 20, 4, 16)
    with activate(world.dispatcher()):
        _attend(x)
        world.spoil = nan
        answers = [_attend(x) for _ in range(4)]
    assert [bool(a.isnan().any()) for a in answers] == [True, True, True, False]


def test_the_quarantine_holds_in_every_dispatcher_of_the_process(world):
    x = torch.randn(1, 20, 4, 16)
    first, second = world.dispatcher(), world.dispatcher(PREFERS.replace(check=True))
    with activate(first):
        _attend(x)
    world.spoil = nan
    with activate(second):
        _attend(x)
    world.ran.clear()
    with activate(first):
        _attend(x), _attend(x)
    assert world.ran == ["torch"] * 2
    with (
        activate(world.dispatcher(Settings())),
        pytest.raises(sgl_kernels.UnsupportedError, match="quarantine"),
    ):
        _attend(x, backend="sage_attn")


def test_inputs_that_are_not_finite_prove_nothing(world):
    x = torch.randn(1, 20, 4, 16)
    x[0, 3] = float("nan")
    with activate(world.dispatcher()):
        _attend(x)
    assert not world.registry.quarantined("attention")


def test_the_lse_form_is_watched_too(world):
    world.spoil = nan
    x = torch.randn(1, 20, 4, 16)
    with activate(world.dispatcher()):
        out, lse = sgl_kernels.attention_lse(x, x, x)
    assert torch.isfinite(out).all() and lse.shape == (1, 4, 20)
    assert "attention" not in world.registry._quarantined and world.registry.quarantined("attention_lse")


@pytest.mark.parametrize(
    "spoil, cause",
    [
        (nan, "not finite"),
        (lambda lse: lse * 1.4426950408889634, "off the exact"),
        (lambda lse: lse - 1, "off"),
    ],
    ids=["nan", "base 2", "shifted"],
)
def test_a_wrong_lse_beside_a_right_answer_is_found(world, spoil, cause):
    """Parts are merged by their lse, so a wrong one spoils what is right in each part."""
    world.spoil_lse = spoil
    x = torch.randn(1, 20, 4, 16)
    with activate(world.dispatcher()):
        _, lse = sgl_kernels.attention_lse(x, x, x)
    torch.testing.assert_close(lse, reference.attention_lse(x, x, x)[1])
    assert cause in world.registry.quarantined("attention_lse")["sage_attn"].detail


def test_rows_without_keys_have_an_lse_of_minus_infinity_and_are_right(world):
    x = torch.randn(1, 6, 2, 16)
    mask = torch.ones(1, 1, 6, 6, dtype=torch.bool)
    mask[..., 2, :] = False
    with activate(world.dispatcher()):
        sgl_kernels.attention_lse(x, x, x, attn_mask=mask)
        assert not world.registry.quarantined("attention_lse")
        world.spoil_lse = lambda lse: lse.nan_to_num(neginf=0.0)
        sgl_kernels.attention_lse(x[:, :5], x[:, :5], x[:, :5], attn_mask=mask[..., :5, :5])
    assert "sage_attn" in world.registry.quarantined("attention_lse")


@pytest.mark.parametrize(
    "spoil, cause", [(nan, "not finite"), (torch.zeros_like, "zeros"), (noise, "off the exact")]
)
def test_packed_sequences_are_watched_too(world, spoil, cause):
    world.spoil = spoil
    x, cu = torch.randn(30, 4, 16), torch.tensor([0, 0, 12, 30], dtype=torch.int32)
    with activate(world.dispatcher()):
        got = sgl_kernels.attention_varlen(x, x, x, cu, cu, 18, 18)
    torch.testing.assert_close(got, reference.attention_varlen(x, x, x, cu, cu, 18, 18))
    assert cause in world.registry.quarantined("attention_varlen")["sage_attn"].detail


def test_another_packed_sequence_is_looked_at_each_turn(world, monkeypatch):
    monkeypatch.setattr(guard, "EVERY", 1)
    x, cu = torch.randn(30, 4, 16), torch.tensor([0, 12, 30], dtype=torch.int32)
    world.spoil = lambda out: torch.cat((out[:12], out[12:] * 2))
    with activate(world.dispatcher()):
        for _ in range(2):
            sgl_kernels.attention_varlen(x, x, x, cu, cu, 18, 18)
    assert world.registry.quarantined("attention_varlen")


def test_a_call_that_gives_its_output_gets_the_exact_answer_in_it(world):
    """Whether the backend writes into it or not, what is in the caller's tensor is right."""
    world.spoil = nan
    x = torch.randn(1, 20, 4, 16)
    out = torch.empty_like(x)
    with activate(world.dispatcher()):
        sgl_kernels.attention(x, x, x, out=out)
    torch.testing.assert_close(out, reference.attention(x, x, x))

    def writes(*args, out=None):
        out[0].fill_(float("nan"))

    op = world.registry.op("attention")
    fresh = World()
    with activate(fresh.dispatcher()) as dispatcher:
        selection = sgl_kernels.explain("attention", x, x, x)
        args = op.canonical(x, x, x)
        guard.watched(writes, op, selection, dispatcher.registry, dispatcher.forget)(
            *args, out=(out.fill_(1.0),)
        )
    torch.testing.assert_close(out, reference.attention(x, x, x))
    assert fresh.registry.quarantined("attention")


def test_a_check_that_falls_into_a_capture_is_made_after_it(world, monkeypatch):
    capturing = [True]
    monkeypatch.setattr(guard, "is_capturing", lambda: capturing[0])
    world.spoil = nan
    x = torch.randn(1, 20, 4, 16)
    with activate(world.dispatcher()):
        assert _attend(x).isnan().any() and not world.registry.quarantined("attention")
        capturing[0] = False
        assert not _attend(x).isnan().any()
    assert world.registry.quarantined("attention")


def test_threads_share_the_count_and_the_verdict(world, monkeypatch):
    from concurrent.futures import ThreadPoolExecutor

    monkeypatch.setattr(guard, "EVERY", 10)
    checks, real = [], guard._fault
    monkeypatch.setattr(guard, "_fault", lambda *a: (checks.append(a[-1]), real(*a))[1])
    x = torch.randn(1, 20, 4, 16)
    dispatcher = world.dispatcher()

    def one(_):
        with activate(dispatcher):
            return _attend(x)

    one(0)
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(one, range(99)))
    assert sorted(checks) == list(range(10)), "100 calls, a check at every tenth, none twice and none missed"
    world.spoil = nan
    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(one, range(40)))
    assert world.registry.quarantined("attention") and not answers[-1].isnan().any()


def test_the_exact_answer_comes_with_its_device_current(world, monkeypatch):
    """A Triton kernel launches on the current device, which need not be that of the tensors."""
    from sgl_kernels.core.device import Device

    op = world.registry.op("attention")
    facts = op.facts(*op.canonical(*(torch.empty(1, 4, 2, 16, device="meta"),) * 3))
    there = Device("cuda", "sm90", (9, 0), "", 1)
    for implementation in world.registry.implementations("attention"):
        object.__setattr__(implementation, "launches_on_current_device", True)
    selection = guard.select(
        "attention", facts, there, lambda name: None, OpPolicy(), world.registry.implementations("attention")
    )
    run = guard._exact(op, selection, world.registry)
    assert run.__qualname__.startswith("guarded."), run


def test_exact_backends_are_not_wrapped(world):
    """What costs nothing when it is not asked for must stay so."""
    x = torch.randn(1, 20, 4, 16)
    with activate(world.dispatcher(Settings())) as dispatcher:
        _attend(x)
        (run,) = dispatcher.bound.values()
    assert run.__qualname__.startswith("World."), run


def test_sampled_rows_are_those_of_the_reference():
    op = registry.op("attention")
    for case in op.cases():
        if "test" not in case.tags:
            continue
        args = op.canonical(*case.make(torch.device("cpu"), torch.float32, seed=3))
        if not all(args[0].shape) or not args[1].shape[1]:
            continue
        out = op.reference(*args)
        for turn in (0, 5):
            got, want, _ = sampling.sampled(out, args, turn)
            torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-5, equal_nan=True, msg=case.name)


def _inputs():
    torch.manual_seed(0)
    return [torch.randn(2, 40, 4, 32) for _ in range(3)]


def _low_rows(q, k, v):
    mask = torch.zeros(2, 1, 1, 40)
    mask[0] = torch.finfo(torch.float32).min
    return (q, k, v, mask, False, "bottom_right", None, -1, -1, 0.0)


def _huge_windows(q, k, v):
    return (q, k, v, None, True, "bottom_right", None, 2**63 - 1, 2**31 - 1, 0.0)


def _nan_behind_the_mask(q, k, v):
    mask = torch.ones(2, 1, 1, 40, dtype=torch.bool)
    mask[..., 30:] = False
    k[:, 30:] = float("nan")
    return (q, k, v, mask, False, "bottom_right", None, -1, -1, 0.0)


def _tiny(q, k, v):
    return (q, k, v * 1e-30, None, False, "bottom_right", None, -1, -1, 0.0)


def _terms_that_cancel(q, k, v):
    return (q * 0, k, torch.cat((v[:, :20], -v[:, :20]), 1), None, False, "bottom_right", None, -1, -1, 0.0)


def _below_and_beyond_float16(q, k, v):
    v[:, :, :2] *= 1e-9
    v[:, :, 2:] *= 1e-12
    return (q.half(), k.half(), v.half(), None, False, "bottom_right", None, -1, -1, 0.0)


@pytest.mark.parametrize(
    "edge",
    [_low_rows, _huge_windows, _nan_behind_the_mask, _tiny, _terms_that_cancel, _below_and_beyond_float16],
)
@pytest.mark.parametrize("name", ["attention", "attention_lse"])
def test_a_right_backend_stays_at_the_edges(edge, name):
    """Right as a quantised backend is: each weighted value is off by a little of its own size."""
    op, args = registry.op(name), edge(*_inputs())
    out = op.reference(*args)
    first = out[0] if isinstance(out, tuple) else out
    sizes = args[2].float().abs().mean().to(first.dtype)
    near = first + 1e-3 * sizes * torch.randn_like(first).clamp(-2, 2)
    near = near.masked_fill(first == 0, 0) if edge is _low_rows else near
    assert guard._fault(op, (near, out[1]) if isinstance(out, tuple) else near, args, 0) == ""
