"""Backend names: canonical, aliases from SGLang, diffusers and others, and what is said about the rest."""

from __future__ import annotations

import pytest

from sgl_kernels.core.errors import ConfigError
from sgl_kernels.core.names.backends import (
    ALIASES,
    CANONICAL,
    FA,
    NOT_OFFERED,
    did_you_mean,
    nearest,
    resolve_names,
)


@pytest.mark.parametrize("name", CANONICAL)
def test_canonical_names_stand_for_themselves(name: str) -> None:
    assert resolve_names(name) == (name,)
    assert resolve_names(f"  {name.upper()} ") == (name,)


def test_aliases_lead_to_canonical_names_and_hide_none() -> None:
    for alias, targets in ALIASES.items():
        assert set(targets) <= set(CANONICAL), alias
        assert alias not in CANONICAL, f"{alias} is canonical already"
        assert alias == alias.lower().replace("-", "_").lstrip("_"), alias
    assert not set(NOT_OFFERED) & {*CANONICAL, *ALIASES}


@pytest.mark.parametrize(
    "text, expected",
    [
        ("fa", FA),
        ("FLASH_ATTN", FA),
        ("flash", ("fa2",)),
        ("flash_attention_2", ("fa2",)),
        ("flash3", ("fa3",)),
        ("_flash_3", ("fa3",)),
        ("_flash_3_hub", ("fa3", "hf_kernels")),
        ("_flash_varlen_3", ("fa3",)),
        ("flash_4_hub", ("fa4", "hf_kernels")),
        ("sdpa", ("torch",)),
        ("TORCH_SDPA", ("torch",)),
        ("torch", ("torch",)),
        ("native", ("torch",)),
        ("_native_math", ("torch",)),
        ("_native_cudnn", ("torch_cudnn",)),
        ("_native_flash", ("torch_flash",)),
        ("_native_efficient", ("torch_efficient",)),
        ("_native_npu", ("ascend",)),
        ("cudnn_sdpa", ("torch_cudnn",)),
        ("torch_cudnn_sdpa", ("torch_cudnn",)),
        ("sage", ("sage_attn",)),
        ("sage2", ("sage_attn",)),
        ("_sage_qk_int8_pv_fp8_cuda_sm90", ("sage_attn",)),
        ("sage3", ("sage_attn3",)),
        ("sage_attn_3", ("sage_attn3",)),
        ("Flex-Attention", ("flex",)),
        ("ROCM_AITER_FA", ("aiter",)),
        ("npu", ("ascend",)),
    ],
)
def test_names_people_bring(text: str, expected: tuple[str, ...]) -> None:
    assert resolve_names(text) == expected


def test_every_name_of_diffusers_resolves_or_is_explained() -> None:
    dispatch = pytest.importorskip("diffusers.models.attention_dispatch")
    for member in dispatch.AttentionBackendName:
        if member.value != "sgl_kernels":
            try:
                assert resolve_names(member.value)
            except ConfigError as error:
                assert "but not here" in str(error), member.value


def test_a_list_keeps_its_order_and_drops_repetitions() -> None:
    assert resolve_names("triton, fa ,sage,fa3") == ("triton", "fa4", "fa3", "fa2", "sage_attn")
    assert resolve_names(["sdpa", "torch"]) == ("torch",)


def test_auto_is_no_preference_and_stands_alone() -> None:
    assert resolve_names("AUTO") == ()
    with pytest.raises(ConfigError, match="stands alone"):
        resolve_names("auto,fa3")


@pytest.mark.parametrize("text", ["", " ", "fa3,", ",fa3", "fa3,,torch", "-", "_"])
def test_an_empty_name_is_an_error(text: str) -> None:
    with pytest.raises(ConfigError, match="empty"):
        resolve_names(text)


@pytest.mark.parametrize(
    "text, near",
    [
        ("tritn", "triton"),
        ("fa9", "fa"),
        ("sage_atn", "sage_attn"),
        ("torch_spda", "torch_sdpa"),
        ("xformes", "xform"),
    ],
)
def test_an_unknown_name_is_an_error_with_the_nearest(text: str, near: str) -> None:
    with pytest.raises(ConfigError, match=f"unknown backend '{text}'; did you mean '{near}.*known: fa, fa2"):
        resolve_names(text)


def test_a_name_like_nothing_gets_no_suggestion() -> None:
    with pytest.raises(ConfigError, match=r"unknown backend 'qqqq'; known:"):
        resolve_names("qqqq")


def test_backends_of_sglang_without_a_counterpart_are_named_as_such() -> None:
    with pytest.raises(ConfigError, match="exists in SGLang or diffusers but not here; try sparge_attn"):
        resolve_names("VIDEO_SPARSE_ATTN")


def test_third_parties_add_names() -> None:
    assert resolve_names("acme,fa3", known=["acme"]) == ("acme", "fa3")
    assert resolve_names("ACME-One", known=["Acme_One"]) == ("Acme_One",)
    with pytest.raises(ConfigError, match="did you mean 'acme_one'"):
        resolve_names("acme_on", known=["acme_one"])


def test_known_is_asked_only_when_needed() -> None:
    def never() -> list[str]:
        raise AssertionError("asked")

    assert resolve_names("fa,sage", never) == (*FA, "sage_attn")
    assert resolve_names("acme", lambda: ["acme"]) == ("acme",)


def test_nearest() -> None:
    assert nearest("attn", ["attention", "norm"]) == "attention"
    assert nearest("acme", ["ascend"]) == ""
    assert nearest("DEBUK", ["DEBUG", "INFO"]) == "DEBUG"
    assert did_you_mean("x", []) == ""
