"""Lossy backends under watch: sampled rows, quarantine for the process, exact answers."""

from __future__ import annotations

import logging

import pytest
import torch

import sgl_kernels
from sgl_kernels.core import guard
from sgl_kernels.core.dispatch import Dispatcher, activate
from sgl_kernels.core.implementation import Fidelity, Implementation
from sgl_kernels.core.log import forget_warnings
from sgl_kernels.core.registry import Registry, registry
from sgl_kernels.core.settings import OpPolicy, Settings
from sgl_kernels.core.verdict import Reason
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
        self.spoil, self.ran = (lambda out: out), []
        self.registry = Registry()
        for op in registry.ops().values():
            self.registry.define(op)
        for op in ("attention", "attention_lse"):
            self.registry.add([
                Implementation(op=op, backend="torch_sdpa", load=self._load(op, "torch_sdpa")),
                Implementation(op=op, backend="sage_attn", load=self._load(op, "sage_attn"), rank=5,
                               fidelity=Fidelity.LOSSY),
            ], "test")  # fmt: skip

    def _load(self, op, backend):
        exact = getattr(reference, op)

        def run(*args):
            self.ran.append(backend)
            out = exact(*args)
            if backend == "torch_sdpa":
                return out
            return (self.spoil(out[0]), out[1]) if isinstance(out, tuple) else self.spoil(out)

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
        assert world.ran == ["sage_attn", "torch_sdpa"]
        for n in (20, 21):  # the shape that was bound, and a new one
            y = x[:, :n] if n == 20 else torch.randn(2, n, 4, 16)
            torch.testing.assert_close(_attend(y), reference.attention(y, y, y))
        assert world.ran[2:] == ["torch_sdpa"] * 2, "it is not asked again"
        rejected = sgl_kernels.explain("attention", x, x, x).rejected("sage_attn")
        assert rejected.reason is Reason.BUG and cause in rejected.detail
        assert [e.backend for e in sgl_kernels.report().entries] == ["torch_sdpa"] * 2, dispatcher.selections
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
    assert world.ran == ["torch_sdpa"] * 2
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
            got, want = sampling.sampled(out, args, turn)
            torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-5, equal_nan=True, msg=case.name)
