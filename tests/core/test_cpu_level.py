"""The level in force: named by settings, held down and never up, and everybody who depends on it hears of a change."""

from __future__ import annotations

import pytest
import torch

import sgl_kernels
from sgl_kernels.core import cpu_level, device, dispatch
from sgl_kernels.core.device import Device, cpu_arch, probe, processor_arch
from sgl_kernels.core.dispatch import Dispatcher
from sgl_kernels.core.errors import ConfigError
from sgl_kernels.core.names.levels import LEVELS, held_down
from sgl_kernels.core.selection.requires import Requires
from sgl_kernels.core.settings import Settings
from sgl_kernels.core.settings.variables import BY_KEY

CPU = torch.device("cpu")
VARIABLE = "SGL_KERNELS_CPU_ISA"


@pytest.fixture(autouse=True)
def own_default():
    """Settings of a test's own, and those of before afterwards."""
    before = dispatch.set_default(None)
    yield
    dispatch.set_default(before)


@pytest.fixture
def widest(monkeypatch):
    """As if the processor had all of x86-64's levels."""
    monkeypatch.setattr(device, "processor_arch", lambda: "avx512bf16")
    cpu_arch.cache_clear()
    probe.cache_clear()
    yield
    cpu_arch.cache_clear()
    probe.cache_clear()


@pytest.mark.parametrize(
    "present, named, found",
    [
        ("avx512bf16", None, "avx512bf16"),
        ("avx512bf16", "amx", "avx512bf16"),
        ("avx512bf16", "avx512", "avx512"),
        ("avx2", "avx512", "avx2"),
        ("avx2", "avx2", "avx2"),
        ("avx512", "baseline", "baseline"),
        ("avx512", "neon", "baseline"),  # neither contains the other
        ("neon", "avx2", "baseline"),
        ("neon", "neon", "neon"),
        ("baseline", "amx", "baseline"),
    ],
)
def test_down_and_never_up(present, named, found):
    assert held_down(present, named) == found


def test_levels_are_sets_that_hold_themselves():
    for name, holds in LEVELS.items():
        assert name in holds and all(LEVELS[inner] <= holds for inner in holds)
    assert BY_KEY["cpu_isa"].choices == tuple(LEVELS)


@pytest.mark.parametrize("level", [*LEVELS, None])
def test_configure_acts(level, widest):
    sgl_kernels.configure(Settings(cpu_isa=level))
    expected = held_down("avx512bf16", level)
    found = probe(CPU)
    assert cpu_level.named() == level and cpu_arch() == found.arch == expected
    assert found.processor == ("" if expected == "avx512bf16" else "avx512bf16")


def test_before_settings_are_read_the_environment_speaks(monkeypatch, widest):
    monkeypatch.setenv(VARIABLE, " AVX2 ")
    assert cpu_level.named() == "avx2" and cpu_arch() == "avx2"
    sgl_kernels.configure(Settings())
    assert cpu_level.named() is None and cpu_arch() == "avx512bf16"
    sgl_kernels.configure()
    assert cpu_arch() == "avx2"


def test_the_first_call_reads_the_environment(monkeypatch, widest):
    assert cpu_arch() == "avx512bf16"
    monkeypatch.setenv(VARIABLE, "avx512")
    sgl_kernels.explain("rms_norm", torch.ones(2, 8))
    assert cpu_arch() == "avx512"


def test_a_misspelt_level_names_the_variable(monkeypatch):
    monkeypatch.setenv(VARIABLE, "avx1024")
    for ask in (
        cpu_level.named,
        cpu_arch,
        sgl_kernels.configure,
        lambda: sgl_kernels.explain("silu_mul", torch.ones(2, 8)),
    ):
        with pytest.raises(ConfigError, match=f"{VARIABLE} is 'avx1024'; expected one of baseline, avx2"):
            ask()
    assert probe(CPU).platform == "cpu"  # and never raises


def test_followers_hear_of_changes_and_of_nothing_else(monkeypatch):
    heard = []
    monkeypatch.setattr(cpu_level, "_followers", [])
    cpu_level.follow(lambda: heard.append(cpu_level.named()))
    for settings in (
        Settings(),
        Settings(check=True),
        Settings(cpu_isa="avx2"),
        Settings(cpu_isa="avx2", check=True),
    ):
        sgl_kernels.configure(settings)
    sgl_kernels.configure(Settings())
    assert heard == [None, "avx2", None]


def test_decisions_are_made_anew_in_every_dispatcher(widest):
    """Ranks are those of the level in force, also where a dispatcher had decided before."""
    x, weight = torch.randn(64, 512, dtype=torch.bfloat16), torch.randn(256, 512, dtype=torch.bfloat16)
    sgl_kernels.configure(Settings())
    with dispatch.activate(Dispatcher(Settings())) as kept:
        for level in (None, "avx2", "baseline", "avx512", None):
            sgl_kernels.linear(x, weight)
            held = held_down("avx512bf16", level)
            assert [s.device.arch for s in kept.selections.values()] == [held if level else "avx512bf16"]
            imagined = sgl_kernels.explain("linear", x, weight, device=f"cpu:{held}")
            assert sgl_kernels.explain("linear", x, weight).chosen == imagined.chosen
            sgl_kernels.configure(
                Settings(cpu_isa={None: "avx2", "avx2": "baseline", "baseline": "avx512"}.get(level))
            )


def test_an_imagined_machine_is_as_it_is_said_to_be(widest):
    sgl_kernels.configure(Settings(cpu_isa="baseline"))
    selection = sgl_kernels.explain("linear", torch.ones(64, 512), torch.ones(256, 512), device="cpu:avx2")
    assert selection.device == Device("cpu", "avx2")


def test_other_peoples_backends_are_asked_what_the_processor_has():
    """What holds our kernels down does not hold theirs."""
    needs = Requires(archs=frozenset({"avx512"}))
    assert needs.rejects(torch.float32, Device("cpu", "avx2", processor="avx512"), lambda name: None) is None
    rejected = needs.rejects(torch.float32, Device("cpu", "avx2"), lambda name: None)
    assert rejected is not None and "device is avx2" in rejected.detail


def test_this_processor_has_a_level():
    assert processor_arch() in LEVELS
