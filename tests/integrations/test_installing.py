"""install() and uninstall(): blocks nest, and each leaves the process as it found it."""

from __future__ import annotations

import importlib
import threading
from collections.abc import Iterator
from typing import Any

import pytest
import torch
import torch.nn.functional as F

import sgl_kernels
from sgl_kernels import integrations
from sgl_kernels.integrations import LIBRARIES
from tests.integrations import tiny

pytest.importorskip("diffusers")
pytest.importorskip("transformers")
NAMES = list(LIBRARIES)


@pytest.fixture(autouse=True)
def _out_again() -> Iterator[None]:
    yield
    for name in NAMES:
        sgl_kernels.uninstall(name)


def installed(name: str) -> bool:
    return bool(importlib.import_module(LIBRARIES[name]).is_installed())


@pytest.mark.parametrize("name", NAMES)
def test_an_inner_block_leaves_the_outer_one_in_force(name: str) -> None:
    with sgl_kernels.install(name):
        with sgl_kernels.install(name):
            with sgl_kernels.install(name):
                pass
            assert installed(name)
        assert installed(name)
    assert not installed(name)


@pytest.mark.parametrize("name", NAMES)
def test_a_block_inside_an_installation_for_good(name: str) -> None:
    sgl_kernels.install(name)
    with pytest.raises(KeyError), sgl_kernels.install(name):
        raise KeyError
    assert installed(name)
    sgl_kernels.uninstall(name)  # takes it out, however often it was installed
    assert not installed(name)
    sgl_kernels.uninstall(name)


@pytest.mark.parametrize("name", NAMES)
def test_installations_are_given_back_in_any_order_and_once(name: str) -> None:
    one, two = sgl_kernels.install(name), sgl_kernels.install(name)
    one.uninstall()
    one.uninstall()
    assert installed(name)
    two.uninstall()
    assert not installed(name)
    old = sgl_kernels.install(name)
    sgl_kernels.uninstall(name)
    new = sgl_kernels.install(name)
    old.uninstall()  # was taken out with everything else; the new one is not its to give back
    assert installed(name)
    new.uninstall()
    assert not installed(name) and not integrations._wanted.get(name)


@pytest.mark.parametrize("name", NAMES)
def test_threads_each_with_a_block(name: str) -> None:
    missing: list[str] = []

    def work() -> None:
        for _ in range(20):
            with sgl_kernels.install(name):
                if not installed(name):
                    missing.append(name)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert missing == [] and not installed(name)


def served(model: Any, run: Any) -> int:
    with torch.no_grad(), sgl_kernels.record() as recorder:
        run(model)
    return sum(e.calls for e in recorder.report().entries if e.op == "attention")


@pytest.mark.parametrize(
    "name, family", [("torch", "unet"), ("diffusers", "flux"), ("diffusers", "unet"), ("torch", "flux")]
)
def test_a_block_of_somebody_else_and_an_applied_model(name: str, family: str) -> None:
    model, run = tiny.MODELS[family]()
    with sgl_kernels.apply(model):
        before = served(model, run)
        with sgl_kernels.install(name):
            assert served(model, run) == before
        assert served(model, run) == before > 0
        sgl_kernels.install(name)
        sgl_kernels.uninstall(name)
        assert served(model, run) == before
    with sgl_kernels.install(name):
        applied = sgl_kernels.apply(model)
    assert served(model, run) == before
    applied.remove()
    assert (
        served(model, run) == 0
        and F.scaled_dot_product_attention is torch._C._nn.scaled_dot_product_attention
    )
