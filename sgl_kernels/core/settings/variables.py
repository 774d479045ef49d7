"""The one table of environment variables: name, key, type, default, range, section, meaning, status."""

from __future__ import annotations

import dataclasses
from typing import Any

from sgl_kernels.core.log import LEVELS
from sgl_kernels.core.names import levels
from sgl_kernels.core.names.backends import AUTO, FP4_KERNELS
from sgl_kernels.core.names.platforms import PLATFORMS

from .variable import Variable


def _row(name: str, key: str, kind: str, default: Any, meaning: str, **more: Any) -> Variable:
    return Variable(name, key, kind, default, meaning, **more)


def _now(name: str, key: str, kind: str, default: Any, meaning: str, **more: Any) -> Variable:
    """A row whose behaviour this release has."""
    return Variable(name, key, kind, default, meaning, implemented=True, **more)


def _section(title: str, *rows: Variable) -> tuple[Variable, ...]:
    return tuple(dataclasses.replace(row, section=title) for row in rows)


def _knobs(prefix: str, key: str, **defaults: Any) -> tuple[Variable, ...]:
    """The seven rows that exist for the primary transformer and again for the secondary."""

    def row(name: str, kind: str, meaning: str, **more: Any) -> Variable:
        value, note = defaults.get(name), "" if defaults else "from primary"
        return Variable(
            prefix + name, f"{key}.{name.lower()}", kind, value, meaning, default_text=note, **more
        )

    return (
        row("FN", "int", "First N blocks, always computed", low=1),
        row("BN", "int", "Last N blocks, always computed", low=0),
        row("WARMUP", "int", "Steps before caching starts", low=0),
        row("RDT", "float", "Residual difference below which a step is reused", low=0),
        row("MC", "int", "Most cached steps in a row; -1 is unlimited", low=-1),
        row("TAYLORSEER", "bool", "Extrapolate cached steps with TaylorSeer"),
        row("TS_ORDER", "int", "Order of TaylorSeer", low=1, high=2),
    )


RUNTIME = _section(
    "Runtime",
    _now(
        "SGLANG_DIFFUSION_TARGET_DEVICE",
        "target_device",
        "choice",
        None,
        "Platform that tools, integrations and the runtime aim at; tensors stay where they are",
        choices=PLATFORMS,
        default_text="best present",
    ),
    _now(
        "SGLANG_DIFFUSION_ATTENTION_BACKEND",
        "attention.backends",
        "backends",
        (),
        "Attention backends to prefer, in order: one name or a comma list",
        default_text="by rank",
    ),
    _now(
        "SGLANG_DIFFUSION_ATTENTION_CONFIG",
        "attention_config",
        "path",
        None,
        "Configuration file (YAML or JSON) with backends, rules and options",
        in_file=False,
    ),
    _row(
        "SGLANG_DIFFUSION_STAGE_LOGGING",
        "runtime.stage_logging",
        "bool",
        False,
        "Log the time of every pipeline stage",
    ),
    _row(
        "SGLANG_DIFFUSION_SERVER_DEV_MODE",
        "runtime.server_dev_mode",
        "bool",
        False,
        "Offer the HTTP endpoints meant for debugging",
    ),
    _row(
        "SGLANG_DIFFUSION_TORCH_PROFILER_DIR",
        "runtime.torch_profiler_dir",
        "absolute path",
        None,
        "Profile with torch.profiler and write the traces here",
    ),
    _now(
        "SGLANG_DIFFUSION_CACHE_ROOT",
        "cache_root",
        "path",
        "~/.cache/sgl_diffusion",
        "Directory of everything that may be deleted; under XDG_CACHE_HOME when that is set",
    ),
    _now(
        "SGLANG_DIFFUSION_CONFIG_ROOT",
        "config_root",
        "path",
        "~/.config/sgl_diffusion",
        "Directory searched for configuration files; under XDG_CONFIG_HOME when that is set",
        in_file=False,
    ),
    _now(
        "SGLANG_DIFFUSION_LOGGING_LEVEL",
        "logging_level",
        "choice",
        "INFO",
        "Level of the logger named sgl_kernels",
        choices=LEVELS,
        aliases=(("WARN", "WARNING"), ("FATAL", "CRITICAL")),
    ),
    _row(
        "SGLANG_DIFFUSION_WORKER_MULTIPROC_METHOD",
        "runtime.worker_multiproc_method",
        "choice",
        "fork",
        "How worker processes start",
        choices=("fork", "spawn"),
    ),
    _row(
        "SGLANG_USE_RUNAI_MODEL_STREAMER",
        "runtime.use_runai_model_streamer",
        "bool",
        True,
        "Load weights with the Run:AI model streamer when it is installed",
    ),
)

PLATFORM = (
    *_section(
        "Apple MPS",
        _now(
            "SGLANG_USE_MLX",
            "apple.use_mlx",
            "bool",
            None,
            "Run norms, adaLN and rope on MPS through MLX and fused Metal kernels",
            default_text="off",
        ),
    ),
    *_section(
        "ROCm (AMD GPUs)",
        _now("SGLANG_USE_ROCM_VAE", "rocm.vae", "bool", False, "Use AITER's GroupNorm in applied VAEs"),
        _now(
            "SGLANG_USE_ROCM_CUDNN_BENCHMARK",
            "rocm.cudnn_benchmark",
            "bool",
            False,
            "Let MIOpen search for the fastest convolutions of applied VAEs, and of nothing else",
        ),
    ),
)

QUANTIZATION = _section(
    "Quantization",
    _row(
        "SGLANG_DIFFUSION_FLASHINFER_FP4_GEMM_BACKEND",
        "quantization.flashinfer_fp4_gemm_backend",
        "choice",
        None,
        "FlashInfer's matrix product for generic NVFP4",
        choices=(AUTO, *dict.fromkeys(FP4_KERNELS.values())),
        aliases=tuple(FP4_KERNELS.items()),
        default_text="by rank",
    ),
)

CACHE = (
    *_section(
        "Cache-DiT",
        _row(
            "SGLANG_CACHE_DIT_ENABLED",
            "cache_dit.enabled",
            "bool",
            False,
            "Cache transformer steps with Cache-DiT",
        ),
        *_knobs(
            "SGLANG_CACHE_DIT_",
            "cache_dit",
            **{"FN": 1, "BN": 0, "WARMUP": 4, "RDT": 0.24, "MC": 3, "TAYLORSEER": False, "TS_ORDER": 1},
        ),
        _row(
            "SGLANG_CACHE_DIT_SCM_PRESET",
            "cache_dit.scm_preset",
            "choice",
            "none",
            "Which steps are computed, as a preset",
            choices=("none", "slow", "medium", "fast", "ultra"),
        ),
        _row(
            "SGLANG_CACHE_DIT_SCM_POLICY",
            "cache_dit.scm_policy",
            "choice",
            "dynamic",
            "Whether a cacheable step must still pass the residual test (dynamic) or not (static)",
            choices=("dynamic", "static"),
        ),
        _row(
            "SGLANG_CACHE_DIT_SCM_COMPUTE_BINS",
            "cache_dit.scm_compute_bins",
            "counts",
            (),
            "Lengths of the runs of computed steps, such as 8,3,3; goes with SCM_CACHE_BINS",
        ),
        _row(
            "SGLANG_CACHE_DIT_SCM_CACHE_BINS",
            "cache_dit.scm_cache_bins",
            "counts",
            (),
            "Lengths of the runs of cached steps between them; goes with SCM_COMPUTE_BINS",
        ),
    ),
    *_section(
        "Cache-DiT secondary transformer", *_knobs("SGLANG_CACHE_DIT_SECONDARY_", "cache_dit.secondary")
    ),
)

CLOUD = _section(
    "Cloud storage",
    _row(
        "SGLANG_CLOUD_STORAGE_TYPE",
        "cloud.type",
        "choice",
        None,
        "Upload generated files; s3 is the one kind",
        choices=("s3",),
    ),
    _row("SGLANG_S3_BUCKET_NAME", "cloud.bucket_name", "text", None, "Name of the bucket"),
    _row("SGLANG_S3_ENDPOINT_URL", "cloud.endpoint_url", "url", None, "Endpoint of an S3-compatible service"),
    _row("SGLANG_S3_REGION_NAME", "cloud.region_name", "text", "us-east-1", "Region of the bucket"),
    _row("SGLANG_S3_ACCESS_KEY_ID", "cloud.access_key_id", "secret", None, "Access key", in_file=False),
    _row(
        "SGLANG_S3_SECRET_ACCESS_KEY", "cloud.secret_access_key", "secret", None, "Secret key", in_file=False
    ),
)

TRACE = _section(
    "Crash debugging",
    _now(
        "SGLANG_KERNEL_API_LOGLEVEL",
        "trace.level",
        "int",
        0,
        "Log op calls: 1 names, 3 tensor metadata, 5 statistics, 10 dumps",
        low=0,
        high=10,
    ),
    _now(
        "SGLANG_KERNEL_API_LOGDEST",
        "trace.dest",
        "path",
        "stdout",
        "Where the log goes: stdout, stderr or a file; %i becomes the process id",
    ),
    _now(
        "SGLANG_KERNEL_API_DUMP_DIR",
        "trace.dump_dir",
        "path",
        "sglang_kernel_api_dumps",
        "Directory of the dumps; %i becomes the process id",
    ),
    _now(
        "SGLANG_KERNEL_API_DUMP_INCLUDE",
        "trace.include",
        "patterns",
        (),
        "Dump only calls whose op or op/backend matches one of these wildcards",
        default_text="everything",
    ),
    _now(
        "SGLANG_KERNEL_API_DUMP_EXCLUDE",
        "trace.exclude",
        "patterns",
        (),
        "Dump no call whose op or op/backend matches one of these wildcards",
    ),
    _now("", "trace.max_dump_bytes", "int", 20 << 30, "Stop dumping after this many bytes", low=0),
    _now("", "trace.max_dump_calls", "int", 1000, "Stop dumping after this many calls", low=0),
)

OWN = _section(
    "sgl_kernels",
    _now(
        "SGL_KERNELS_STRICT",
        "default.strict",
        "bool",
        False,
        "A preference that cannot be met is an error instead of a warning",
    ),
    _now(
        "SGL_KERNELS_ALLOW_LOSSY",
        "default.allow_lossy",
        "bool",
        False,
        "Quantised and sparse backends may be chosen without being named",
    ),
    _now("SGL_KERNELS_CHECK", "check", "bool", False, "Check the arguments of every call in full"),
    _now("SGL_KERNELS_TUNING", "tuning_paths", "paths", (), "Tuning tables to use, files or directories"),
    _now(
        "SGL_KERNELS_CPU_ISA",
        "cpu_isa",
        "choice",
        None,
        "Instruction set our CPU kernels are held down to",
        choices=tuple(levels.LEVELS),
        in_file=False,
        default_text="best present",
    ),
)

TABLE: tuple[Variable, ...] = (*RUNTIME, *PLATFORM, *QUANTIZATION, *CACHE, *CLOUD, *TRACE, *OWN)
"""Every setting that is a single value. `sgl-kernels env` and docs/settings.md are printings of it."""

BY_NAME: dict[str, Variable] = {row.name: row for row in TABLE if row.name}
BY_KEY: dict[str, Variable] = {row.key: row for row in TABLE}

PREFIXES: tuple[str, ...] = (
    "SGLANG_DIFFUSION_",
    "SGLANG_CACHE_DIT_",
    "SGLANG_KERNEL_API_",
    "SGLANG_CLOUD_STORAGE_",
    "SGLANG_S3_",
    "SGL_KERNELS_",
)
"""Names that start so and are not in the table are reported: a typo must not go unnoticed."""

READ_ELSEWHERE: frozenset[str] = frozenset(
    f"SGL_KERNELS_{name}"
    for name in (
        *("CPU_LIBRARY", "REQUIRE_EXTENSION", "BUILD_SANITIZE", "BUILD_EMULATED"),  # the loader and the build
        *("FUZZ_EXAMPLES", "EVIDENCE", "UNDER_SANITIZER"),  # the tests
    )
)
"""Variables for those who build and test the package. They are no settings, and no typos either."""
