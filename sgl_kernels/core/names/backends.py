"""Backend names: the canonical ones, and the spellings people bring from elsewhere."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable

from sgl_kernels.core.errors import ConfigError

KnownNames = Collection[str] | Callable[[], Collection[str]]
"""Further names that are right, or a function giving them, called only when a name is not ours."""

CANONICAL: tuple[str, ...] = (
    "fa2",
    "fa3",
    "fa4",
    "torch",
    "torch_cudnn",
    "torch_flash",
    "torch_efficient",
    "flex",
    "sage_attn",
    "sage_attn3",
    "sparge_attn",
    "xformers",
    "flashinfer",
    "aiter",
    "ascend",
    "xpu",
    "musa",
    "mlx",
    "triton",
    "triton_int8",
    "cpu",
    "sage_cpu",
    "zentorch",
    "hf_kernels",
    "flashinfer_cudnn",
    "flashinfer_cutlass",
    "flashinfer_trtllm",
)

FP4_KERNELS: dict[str, str] = {
    "cudnn": "flashinfer_cudnn",
    "cutlass": "flashinfer_cutlass",
    "trtllm": "flashinfer_trtllm",
    "cute_dsl": "flashinfer_cute_dsl",
    "cute-dsl": "flashinfer_cute_dsl",
    "cutedsl_low_latency": "flashinfer_cutedsl_low_latency",
    "b12x": "flashinfer_b12x",
    "cake": "flashinfer_cake",
}
"""FlashInfer's name of a product of FP4 matrices, and the backend that runs it."""

FA: tuple[str, ...] = ("fa4", "fa3", "fa2")
"""What `fa` stands for: the newest FlashAttention generation first."""

AUTO = "auto"
"""Alone in a list: no preference, rank decides."""


def _table(*rows: tuple[tuple[str, ...], str]) -> dict[str, tuple[str, ...]]:
    return {alias: targets for targets, aliases in rows for alias in aliases.split()}


# Left: what runs, in order. Right: what people type. Keys are in the form of `_normalise`: lower case,
# underscores, no leading underscore (diffusers marks its private names with one).
ALIASES: dict[str, tuple[str, ...]] = _table(
    (FA, "fa flash_attn flash_attention flashattention flashattn flash_attn_vllm_v1"),
    (("fa2",), "flash flash2 flash_2 flash_varlen flash_attn2 flash_attn_2 flash_attention_2"),
    (("fa2", "hf_kernels"), "flash_hub flash_varlen_hub"),
    (("fa3",), "flash3 flash_3 flash_attn3 flash_attn_3 flash_attention3 flash_attention_3 flash_varlen_3"),
    (("fa3", "hf_kernels"), "flash_3_hub flash_3_varlen_hub"),
    (("fa4",), "flash4 flash_4 flash_attn4 flash_attn_4 flash_attention4 flash_attention_4"),
    (("fa4", "hf_kernels"), "flash_4_hub"),
    (("torch",), "torch_sdpa sdpa native native_math math eager pytorch sdpa_math torch_math torch_native"),
    (("torch_cudnn",), "cudnn cudnn_sdpa torch_cudnn_sdpa native_cudnn dynamic_cudnn_sdpa cudnn_attention"),
    (("torch_flash",), "native_flash sdpa_flash torch_flash_sdpa"),
    (("torch_efficient",), "native_efficient efficient sdpa_efficient mem_efficient torch_efficient_sdpa"),
    (("flex",), "flex_attn flex_attention torch_flex"),
    (("sage_attn",), "sage sage2 sage_2 sage_attn2 sage_attn_2 sage_attention sageattn sageattention"),
    (("sage_attn",), "sage_qk_int8_pv_fp8_cuda sage_qk_int8_pv_fp8_cuda_sm90 sage_qk_int8_pv_fp16_cuda"),
    (("sage_attn",), "sage_qk_int8_pv_fp16_triton sage_varlen"),
    (("sage_attn", "hf_kernels"), "sage_hub"),
    (("sage_attn3",), "sage3 sage_3 sage_attn_3 sageattn3 sageattention3 sage_attention_3 sage_blackwell"),
    (("sage_attn3", "hf_kernels"), "sage_blackwell_hub"),
    (("sparge_attn",), "sparge spargeattn sparge_attention sparse_sage"),
    (("xformers",), "xformer xformers_attn memory_efficient_attention"),
    (("flashinfer",), "flash_infer flashinfer_attn"),
    (("aiter",), "aiter_fa rocm_aiter_fa aiter_attn"),
    (("aiter", "hf_kernels"), "aiter_fa2_hub aiter_hub"),
    (("ascend",), "npu torch_npu native_npu ascend_fa cann"),
    (("xpu",), "intel_xpu intel xpu_fa"),
    (("musa",), "torch_musa mthreads"),
    (("mlx",), "metal apple_mlx"),
    (("triton",), "triton_attn"),
    (("cpu",), "cpp sgl_cpu"),
    (("hf_kernels",), "hub kernels hf_kernel kernels_community"),
    (("flashinfer_cudnn",), "fp4_cudnn"),
    (("flashinfer_cutlass",), "fp4_cutlass cutlass"),
    (("flashinfer_trtllm",), "fp4_trtllm trtllm"),
)

# SGLang-Diffusion backends that change the mathematics in ways this release has no kernel for.
NOT_OFFERED: dict[str, str] = {
    "sliding_tile_attn": "sparge_attn",
    "video_sparse_attn": "sparge_attn",
    "video_sparse_attn_h3": "sparge_attn",
    "hybrid_window_attn_h3": "sparge_attn",
    "sparse_video_gen_2_attn": "sparge_attn",
    "vmoba_attn": "sparge_attn",
    "sla_attn": "sparge_attn",
    "sage_sla_attn": "sparge_attn",
    "block_sparse_attn": "sparge_attn",
    "rain_fusion_attn": "sparge_attn",
    "sol_attn": "sparge_attn",
    "subblock_sparse_attn": "sparge_attn",
    "cube_sparse_attn": "sparge_attn",
    "aiter_sage": "aiter or sage_attn",
    "laser_attn": "ascend",
    "fp8_fa_sm120": "sage_attn",
    "native_xla": "torch",
    "no_attention": "torch",
}


def _normalise(name: str) -> str:
    return name.strip().lower().replace("-", "_").lstrip("_")


def nearest(word: str, options: Iterable[str]) -> str:
    """The option closest to `word` in spelling, or an empty string when none is close."""
    import difflib  # only a wrong name needs it: 2 ms an import need not pay

    lowered = {option.lower(): option for option in options}
    found = difflib.get_close_matches(word.lower(), lowered, n=1, cutoff=0.6)
    if not found:
        return ""
    # At 0.6 alone 'acme' would be close to 'ascend'; 'attn' and 'attention' are as far apart and do belong.
    close = difflib.SequenceMatcher(None, word.lower(), found[0]).ratio() >= 0.65
    return lowered[found[0]] if close or found[0][:2] == word[:2].lower() else ""


def did_you_mean(word: str, options: Iterable[str]) -> str:
    """'; did you mean X?' or an empty string, ready to append to a message."""
    found = nearest(word, options)
    return f"; did you mean {found!r}?" if found else ""


def resolve_names(text: str | Iterable[str], known: KnownNames = ()) -> tuple[str, ...]:
    """Canonical backend names for a comma list (or a list) of names and aliases, in order, each once.

    Any case; '-' counts as '_'. An alias may stand for several backends: 'fa' gives fa4, fa3, fa2. 'auto',
    alone, gives an empty tuple. Names in `known` (third-party backends) are kept as they are.

    Raises ConfigError for an unknown or empty name, with the nearest match.
    """
    words = text.split(",") if isinstance(text, str) else list(text)
    if [_normalise(word) for word in words] == [AUTO]:
        return ()
    result: dict[str, None] = {}
    for word in words:
        for name in _resolve_one(word, known):
            result[name] = None
    return tuple(result)


def _resolve_one(word: str, known: KnownNames) -> tuple[str, ...]:
    name = _normalise(word)
    if name in CANONICAL:
        return (name,)
    if name in ALIASES:
        return ALIASES[name]
    if not name:
        raise ConfigError("a backend name is empty; separate names by single commas: 'fa3,torch'")
    if name == AUTO:
        raise ConfigError("'auto' means no preference and stands alone; remove it, or remove the other names")
    extra = tuple(known() if callable(known) else known)
    for other in extra:
        if word.strip() == other or name == _normalise(other):
            return (other,)
    if name in NOT_OFFERED:
        raise ConfigError(
            f"backend {word.strip()!r} exists in SGLang or diffusers but not here; try {NOT_OFFERED[name]}"
        )
    every = tuple(dict.fromkeys(("fa", *CANONICAL, *extra)))
    suggestion = did_you_mean(name, (*every, *ALIASES)) or ";"
    raise ConfigError(f"unknown backend {word.strip()!r}{suggestion} known: {', '.join(every)}")
