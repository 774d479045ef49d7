"""DTensor: every way to split a call gives the whole call's result, forwards and backwards, on two processes."""

from __future__ import annotations

import copy
import multiprocessing
import os
import traceback

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn

import sgl_kernels
from sgl_kernels.core.registry import registry
from sgl_kernels.core.sharding import splits


def _every_split(mesh) -> None:
    from torch.distributed.tensor import DTensor, Replicate, Shard, distribute_tensor

    from sgl_kernels.ops._front import DOORS
    from tests.ops.test_fingerprint import smoke

    for name in registry.ops():
        op, args = registry.op(name), smoke(name)
        want = DOORS[name](args, None, None)
        wants = want if isinstance(want, tuple) else (want,)
        whole = [
            distribute_tensor(a, mesh, [Replicate()], src_data_rank=None) if isinstance(a, Tensor) else a
            for a in args
        ]
        for outs, ins in [([None] * len(wants), {}), *splits(op, tuple(whole))]:
            given = [
                distribute_tensor(
                    a, mesh, [Replicate() if ins.get(i) is None else Shard(ins[i])], src_data_rank=None
                )
                if isinstance(a, Tensor)
                else a
                for i, a in enumerate(args)
            ]
            got = DOORS[name](tuple(given), None, None)
            for g, w, d in zip(got if isinstance(got, tuple) else (got,), wants, outs, strict=True):
                assert isinstance(g, DTensor), name
                assert g.placements == ((Replicate() if d is None else Shard(d)),), (name, d, g.placements)
                full = g.full_tensor()
                if w.dtype.itemsize == 1:
                    assert torch.equal(full.view(torch.uint8), w.view(torch.uint8)), name
                else:
                    torch.testing.assert_close(full, w, msg=lambda m: f"{name} {ins}: {m}")  # noqa: B023


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm, self.up, self.down = nn.LayerNorm(64), nn.Linear(64, 128), nn.Linear(128, 64)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.down(torch.nn.functional.gelu(self.up(self.norm(x))))


def _models(mesh) -> None:
    from torch.distributed.fsdp import fully_shard
    from torch.distributed.tensor import Replicate, distribute_module, distribute_tensor
    from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module

    torch.manual_seed(0)
    stock, x = nn.Sequential(Block(), nn.RMSNorm(64)), torch.randn(3, 5, 64)
    stock(x).sin().sum().backward()
    want = stock(x).detach()
    gradient = stock[0].norm.weight.grad

    sharded = fully_shard(copy.deepcopy(stock))
    with sgl_kernels.apply(sharded):
        sharded.zero_grad()
        out = sharded(x)
        torch.testing.assert_close(out.detach(), want)
        out.sin().sum().backward()
        torch.testing.assert_close(sharded[0].norm.weight.grad.full_tensor(), gradient)

    parallel = copy.deepcopy(stock)
    plan = {"0.up": ColwiseParallel(), "0.down": RowwiseParallel()}
    parallelize_module(parallel, mesh, plan)
    with sgl_kernels.apply(parallel):
        torch.testing.assert_close(parallel(x).detach(), want)

    whole = distribute_module(copy.deepcopy(stock), mesh)
    given = distribute_tensor(x, mesh, [Replicate()])
    with sgl_kernels.apply(whole):
        out = whole(given)
        torch.testing.assert_close(out.full_tensor().detach(), want)
        out.sin().sum().backward()

    t = distribute_tensor(x, mesh, [Replicate()]).requires_grad_()
    sgl_kernels.rms_norm(t).sin().sum().backward()  # torch's own ops serve where a gradient is asked for
    plain = x.clone().requires_grad_()
    sgl_kernels.rms_norm(plain).sin().sum().backward()
    torch.testing.assert_close(t.grad.full_tensor(), plain.grad)


def _process(rank: int, store: str, queue) -> None:
    try:
        os.environ["GLOO_SOCKET_IFNAME"] = "lo"
        torch.set_num_threads(1)
        dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=2)
        mesh = dist.init_device_mesh("cpu", (2,))
        _every_split(mesh)
        _models(mesh)
        dist.destroy_process_group()
        queue.put("")
    except BaseException:
        queue.put(traceback.format_exc())


@pytest.mark.slow
@pytest.mark.skipif(not dist.is_available(), reason="torch was built without torch.distributed")
def test_on_two_processes(tmp_path):
    context = multiprocessing.get_context("spawn")
    queue = context.Queue()
    workers = [
        context.Process(target=_process, args=(rank, str(tmp_path / "store"), queue), daemon=True)
        for rank in range(2)
    ]
    for worker in workers:
        worker.start()
    try:
        told = [queue.get(timeout=300)]
        if not told[0]:
            told.append(queue.get(timeout=60))
    finally:
        for worker in workers:
            worker.join(5)
            worker.kill()
    assert not any(told), told[0] or told[-1]
