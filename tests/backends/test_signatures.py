"""Our stand-ins have the vendors' signatures: names, order and defaults, as recorded with their versions."""

from __future__ import annotations

import importlib.metadata
import inspect

import pytest

from tests.backends import (
    signatures,
    test_aiter,
    test_flash_attn,
    test_hub_xpu_musa,
    test_nvfp4_flashinfer,
    test_sparge_zentorch,
)
from tests.backends import test_sage_xformers_flashinfer as others

FLASHINFER = {f"{m}.{n}": f for m, functions in others.FLASHINFER.items() for n, f in functions.items()}
AITER = {f"{m}.{n}": f for m, functions in test_aiter._modules(3).items() for n, f in functions.items()}
FAKES = {
    "flash_attn.flash_attn_interface.flash_attn_func": test_flash_attn.fa2_func,
    "flash_attn.flash_attn_interface.flash_attn_varlen_func": test_flash_attn.fa2_varlen,
    "flash_attn_interface.flash_attn_func": test_flash_attn.fa3_func,
    "flash_attn_interface.flash_attn_varlen_func": test_flash_attn.fa3_varlen,
    "flash_attn.cute.flash_attn_func": test_flash_attn.fa4_func,
    "flash_attn.cute.flash_attn_varlen_func": test_flash_attn.fa4_varlen,
    "sageattention.sageattn": others.sageattn_v2,
    "sageattn3.sageattn3_blackwell": others.sageattn3_blackwell,
    "spas_sage_attn.spas_sage2_attn_meansim_topk_cuda": test_sparge_zentorch.spas_sage2_attn_meansim_topk_cuda,
    "xformers.ops.memory_efficient_attention": others.memory_efficient_attention,
    "kernels.get_kernel": test_hub_xpu_musa._get_kernel(None, []),
    "flashinfer.gemm.mm_fp4": test_nvfp4_flashinfer.make_mm_fp4([]),
    "flashinfer.quantization.nvfp4_quantize": test_nvfp4_flashinfer.nvfp4_quantize,
    **FLASHINFER,
    **AITER,
}


def _said(parameters):
    """Defaults that Python and the source spell apart: 1e-06, torch.float16."""
    return [str(p).replace("1e-06", "1e-6") for p in parameters]


@pytest.mark.parametrize("name", FAKES)
def test_a_stand_in_has_the_real_signature(name):
    found = signatures.recorded()[name]
    assert found["version"] and any(c.isdigit() for c in found["version"])
    assert _said(signatures.of_callable(FAKES[name])) == _said(found["parameters"]), found["version"]


def test_every_recorded_signature_has_a_stand_in():
    assert set(signatures.recorded()) == set(FAKES)


def test_sources_and_callables_read_alike(tmp_path):
    source = "def f(q, k, scale=None, window=(-1, -1), *, op=None, **kw):\n    return q\n"
    (tmp_path / "m.py").write_text(source)
    space: dict = {}
    exec(source, space)
    want = ["q", "k", "scale=None", "window=(-1, -1)", "*", "op=None", "**kw"]
    assert signatures.of_source(str(tmp_path / "m.py"), "f") == want == signatures.of_callable(space["f"])


@pytest.mark.parametrize("package, module, function, fake", [
    ("sageattention", "sageattention", "sageattn", others.sageattn_v1),
    ("kernels", "kernels", "get_kernel", None),
    ("xformers", "xformers.ops", "memory_efficient_attention", None),
    ("flashinfer-python", "flashinfer.prefill", "single_prefill_with_kv_cache", None),
])  # fmt: skip
def test_the_installed_release_has_the_recorded_signature(package, module, function, fake):
    """Where a vendor's package is installed, its own function is asked."""
    try:
        version = importlib.metadata.version(package)
        real = getattr(__import__(module, fromlist=[function]), function)
    except Exception as error:  # absent, or it does not import without its device
        pytest.skip(f"{package} cannot be asked here: {type(error).__name__}: {error}")
    if package == "sageattention" and not version.startswith("1."):
        fake = others.sageattn_v2
    want = (
        signatures.of_callable(fake) if fake else signatures.recorded()[f"{module}.{function}"]["parameters"]
    )
    assert _said(signatures.of_callable(inspect.unwrap(real))) == _said(want), version
