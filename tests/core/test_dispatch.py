"""Binding, overrides, threads and tasks."""

from __future__ import annotations

import asyncio
import contextvars
import logging
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

import sgl_kernels
from sgl_kernels.core import dispatch
from sgl_kernels.core.dispatch import Dispatcher, activate, current
from sgl_kernels.core.registry import Registry, registry
from sgl_kernels.core.selection.implementation import Fidelity, Implementation
from sgl_kernels.core.selection.verdict import Reason, Rejected
from sgl_kernels.core.settings import Settings, load_settings


def _marked(value: float):
    def load(config):
        return lambda x, weight, eps, weight_offset: torch.full_like(x, value)

    return load


def _rejecting(facts):
    return Rejected(Reason.SHAPE, "columns must be even") if facts.dim % 2 else None


@pytest.fixture
def world():
    """A registry of three rms_norm backends whose results say who ran."""
    fresh = Registry()
    for op in registry.ops().values():
        fresh.define(op)
    fresh.add(
        [
            Implementation(op="rms_norm", backend="torch", load=_marked(0.0), differentiable=True),
            Implementation(op="rms_norm", backend="cpu", load=_marked(1.0), rank=10, rejects=_rejecting),
            Implementation(op="rms_norm", backend="triton", load=_marked(2.0), rank=5),
            Implementation(
                op="rms_norm", backend="sage_attn", load=_marked(3.0), rank=50, fidelity=Fidelity.LOSSY
            ),
        ],
        "test",
    )
    with activate(Dispatcher(Settings(), source=fresh)) as dispatcher:
        yield dispatcher


def ran(dim: int = 4, **kw) -> float:
    return sgl_kernels.rms_norm(torch.ones(1, dim), **kw)[0, 0].item()


def test_rank_decides_and_a_rejection_moves_on(world):
    assert ran() == 1.0
    assert ran(3) == 2.0


def test_a_named_backend_is_strict(world):
    assert ran(backend="triton") == 2.0
    with pytest.raises(sgl_kernels.UnsupportedError, match="columns must be even") as caught:
        ran(3, backend="cpu")
    assert caught.value.selection.rejected("cpu").reason is Reason.SHAPE


def test_an_unknown_backend_is_an_error_with_the_nearest_name(world):
    with pytest.raises(sgl_kernels.ConfigError, match="tritn"):
        ran(backend="tritn")


def test_a_backend_that_does_not_offer_the_op_is_told_apart(world):
    with pytest.raises(sgl_kernels.UnsupportedError, match="does not implement rms_norm"):
        ran(backend="xformers")


def test_use_nests_and_the_innermost_wins(world):
    with sgl_kernels.use(backend="triton"):
        assert ran() == 2.0
        with sgl_kernels.use(rms_norm="torch"):
            assert ran() == 0.0
        assert ran() == 2.0
    assert ran() == 1.0


def test_use_is_forgiving_unless_strict(world):
    with sgl_kernels.use(backend="cpu"):
        assert ran(3) == 2.0
    with sgl_kernels.use(backend="cpu", strict=True), pytest.raises(sgl_kernels.UnsupportedError):
        ran(3)


def test_use_allow_lossy(world):
    with sgl_kernels.use(allow_lossy=True):
        assert ran() == 3.0
    assert ran() == 1.0


def test_use_of_an_unknown_name_or_op_is_an_error(world):
    with pytest.raises(sgl_kernels.ConfigError), sgl_kernels.use(backend="nobody"):
        pass
    with pytest.raises(sgl_kernels.ConfigError, match="rms_nrm"), sgl_kernels.use(rms_nrm="cpu"):
        pass


def test_reentering_an_override_keeps_its_bindings(world):
    with sgl_kernels.use(backend="triton") as first:
        ran()
    with sgl_kernels.use(backend="triton") as second:
        assert second is first and second.bound


def test_an_unmet_preference_warns_once(world, caplog):
    with caplog.at_level(logging.WARNING, "sgl_kernels"), sgl_kernels.use(backend="cpu"):
        for dim in (3, 5, 7):
            ran(dim)
    messages = [r.getMessage() for r in caplog.records if "columns must be even" in r.getMessage()]
    assert len(messages) <= 1  # another test may have used up this cause: once per process


def test_a_load_failure_falls_through_and_shows_in_explain(world):
    def load(config):
        raise OSError("libcudart.so.13: cannot open shared object file")

    world.registry.add(
        [Implementation(op="layer_norm", backend="torch", load=lambda c: lambda *a: a[0])], "t"
    )
    world.registry.add([Implementation(op="layer_norm", backend="cpu", load=load, rank=9)], "t")
    x = torch.ones(2, 4)
    assert sgl_kernels.layer_norm(x) is x
    op = world.registry.op("layer_norm")
    selection = world.decide(op, None, op.facts(x, None, None, 1e-5), dispatch.probe(x.device))
    assert selection.rejected("cpu").reason is Reason.LOAD and "libcudart" in selection.rejected("cpu").detail


def test_thirty_two_threads_with_different_overrides_do_not_leak(world):
    names = {"torch": 0.0, "cpu": 1.0, "triton": 2.0, "sage_attn": 3.0}
    barrier = threading.Barrier(32)

    def work(index: int) -> list[float]:
        name = list(names)[index % 4]
        with activate(world):
            barrier.wait()
            results = []
            for _ in range(50):
                with sgl_kernels.use(backend=name):
                    results.append(ran(4 + 2 * (index % 3)) - names[name])
                results.append(ran() - 1.0)
            return results

    with ThreadPoolExecutor(32) as pool:
        for results in pool.map(work, range(32)):
            assert set(results) == {0.0}


def test_a_new_thread_starts_without_the_override_and_a_copied_context_keeps_it():
    seen = {}
    with sgl_kernels.use(backend="torch", strict=True) as inner:
        plain = threading.Thread(target=lambda: seen.update(plain=current()))
        context = contextvars.copy_context()
        copied = threading.Thread(target=lambda: seen.update(copied=context.run(current)))
        for thread in (plain, copied):
            thread.start()
            thread.join()
    assert seen["plain"] is not inner and seen["copied"] is inner


def test_asyncio_tasks_do_not_see_each_others_overrides(world):
    async def task(name: str, expected: float) -> None:
        with sgl_kernels.use(backend=name):
            for _ in range(10):
                await asyncio.sleep(0)
                assert ran() == expected
                assert await asyncio.to_thread(ran) == expected

    async def main() -> None:
        await asyncio.gather(task("torch", 0.0), task("cpu", 1.0), task("triton", 2.0))

    asyncio.run(main())
    assert ran() == 1.0


def test_the_memo_is_bounded(world, monkeypatch):
    monkeypatch.setattr(dispatch, "MAX_BOUND", 8)
    for dim in range(2, 60, 2):
        ran(dim)
    assert len(world.bound) <= 8


def test_configure_replaces_the_process_default():
    before = dispatch.set_default(None)
    try:
        sgl_kernels.configure(load_settings({"SGLANG_DIFFUSION_ATTENTION_BACKEND": "torch"}))
        q = torch.randn(1, 4, 2, 16)
        assert sgl_kernels.explain("attention", q, q, q).why.startswith("prefer[0]")
    finally:
        dispatch.set_default(before)


def test_explain_runs_nothing_and_loads_nothing():
    q = torch.empty(1, 1024, 8, 64, device="meta", dtype=torch.bfloat16)
    selection = sgl_kernels.explain("attention", q, q, q, is_causal=True, device="cuda:sm90")
    assert selection.device.arch == "sm90" and selection.facts.causal == "square"


def test_explain_refuses_what_the_call_would_refuse():
    q = torch.empty(1, 8, 2, 16, device="meta")
    with pytest.raises(TypeError, match="unknown argument 'casual'"):
        sgl_kernels.explain("attention", q, q, q, casual=True)
    with pytest.raises(ValueError, match="k has 3"):
        sgl_kernels.explain("attention", q, q[:, :, :1].expand(1, 8, 3, 16), q[:, :, :1].expand(1, 8, 3, 16))


def test_check_refuses_non_finite_results_of_finite_inputs(world):
    world.registry.add(
        [Implementation(op="gelu_tanh", backend="torch", load=lambda c: lambda x: x / 0.0)], "test"
    )
    with sgl_kernels.use(check=True), pytest.raises(FloatingPointError, match="gelu_tanh"):
        sgl_kernels.gelu_tanh(torch.ones(3))


def test_record_counts_what_ran(world):
    with sgl_kernels.record() as recorder:
        for _ in range(3):
            ran()
        ran(3)
    entries = {(e.backend, e.shapes): e for e in recorder.report().entries}
    assert entries[("cpu", "1x4")].calls == 3 and entries[("triton", "1x3")].calls == 1
    assert entries[("cpu", "1x4")].why == "rank 10"
    assert "cpu" in str(recorder.report())


def test_warmup_binds_cases():
    op = registry.op("gelu_tanh")
    case = next(c for c in op.cases() if c.name == "plain")
    sgl_kernels.warmup([("gelu_tanh", case)], dtype=torch.float32)
    assert any(decided[0] is op for decided in current().selections)
