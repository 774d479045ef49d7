"""Options and fixtures shared by every test."""

from __future__ import annotations

import random

import pytest
import torch

from sgl_kernels.core import log


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--require", default="", help="comma list of backends whose skips become failures")
    parser.addoption("--device", default="cpu", help="torch device the parity matrix runs on")
    parser.addoption("--cpu-arch", default="", help="what the processor is taken for: see make emulated")


def pytest_configure(config: pytest.Config) -> None:
    """With --cpu-arch, selection believes in an instruction set that only an emulated library has."""
    arch = config.getoption("--cpu-arch")
    if arch:
        from sgl_kernels.core.device import cpu_arch

        capabilities = {"avx512_bf16": arch == "avx512bf16", "avx512_vnni": True}
        torch.cpu.get_capabilities = lambda: capabilities
        torch.backends.cpu.get_cpu_capability = lambda: (
            "AVX512" if arch.startswith("avx512") else arch.upper()
        )
        cpu_arch.cache_clear()
        assert cpu_arch() == arch, f"--cpu-arch {arch}: cpu_arch() is {cpu_arch()}"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """What may take minutes comes first, so that no process waits at the end for another's last test."""

    def patience(item: pytest.Item) -> float:
        mark = item.get_closest_marker("timeout")
        return float(mark.args[0]) if mark and mark.args else 0.0

    items.sort(key=patience, reverse=True)


@pytest.fixture
def device(request: pytest.FixtureRequest) -> torch.device:
    return torch.device(request.config.getoption("--device"))


@pytest.fixture
def seed() -> int:
    """A fresh seed for every test, printed by pytest when the test fails."""
    value = random.SystemRandom().randrange(2**31)
    print(f"seed {value}")
    return value


class Require:
    """Skips that somebody asked to see become failures."""

    def __init__(self, names: str) -> None:
        self.names = {n for n in names.split(",") if n}

    def skip(self, backend: str, why: str) -> None:
        if backend in self.names:
            pytest.fail(f"--require {backend}: {why}")
        pytest.skip(why)


@pytest.fixture
def require(request: pytest.FixtureRequest) -> Require:
    return Require(request.config.getoption("--require"))


@pytest.fixture(autouse=True)
def _threads() -> None:
    torch.set_num_threads(min(2, torch.get_num_threads()))


@pytest.fixture(autouse=True)
def _our_logger():
    """Reading settings sets the level of our logger, and each warning speaks once: neither outlives a test."""
    level = log.logger.level
    yield
    log.logger.setLevel(level)
    log.forget_warnings()


@pytest.fixture(autouse=True)
def flags_may_be_set():
    """torch's own test helpers, once imported, forbid every later test to set a flag of torch.backends."""
    # By the function's own globals: `torch.backends` itself is exchanged for a wrapper while it loads.
    torch.backends.flags_frozen.__globals__["__allow_nonbracketed_mutation_flag"] = True
