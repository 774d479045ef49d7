"""The settings that are not policies, in groups of plain values."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class TraceSettings:
    """Logging and dumping at op boundaries."""

    level: int = 0  # 0 off, 1 calls, 3 shapes, 5 statistics, 10 dumps; values between act as the lower one
    dest: str = "stdout"  # stdout | stderr | path; "%i" becomes the pid when it is opened
    dump_dir: str = "sglang_kernel_api_dumps"
    include: tuple[str, ...] = ()  # fnmatch patterns on "op/backend" and on the op name
    exclude: tuple[str, ...] = ()
    max_dump_bytes: int = 20 << 30
    max_dump_calls: int = 1000


@dataclass(frozen=True, slots=True)
class Runtime:
    """What the optional server and pipeline layers read."""

    stage_logging: bool = False
    server_dev_mode: bool = False
    torch_profiler_dir: str | None = None
    worker_multiproc_method: str = "fork"
    use_runai_model_streamer: bool = True


@dataclass(frozen=True, slots=True)
class Apple:
    """Apple GPUs."""

    use_mlx: bool | None = None  # None: off


@dataclass(frozen=True, slots=True)
class Rocm:
    """AMD GPUs."""

    vae: bool = False
    cudnn_benchmark: bool = False


@dataclass(frozen=True, slots=True)
class Quantization:
    """Low-precision matrix products."""

    flashinfer_fp4_gemm_backend: str | None = None


@dataclass(frozen=True, slots=True)
class CacheKnobs:
    """The step-cache knobs that exist once per transformer."""

    fn: int = 1
    bn: int = 0
    warmup: int = 4
    rdt: float = 0.24
    mc: int = 3
    taylorseer: bool = False
    ts_order: int = 1


@dataclass(frozen=True, slots=True)
class CacheDit(CacheKnobs):
    """The step cache: the primary transformer's knobs, the secondary's, and what both share."""

    enabled: bool = False
    scm_preset: str = "none"
    scm_policy: str = "dynamic"
    scm_compute_bins: tuple[int, ...] = ()
    scm_cache_bins: tuple[int, ...] = ()
    secondary: CacheKnobs = field(default_factory=CacheKnobs)


@dataclass(frozen=True, slots=True)
class CloudStorage:
    """Where generated files are uploaded. Keys never appear in a repr."""

    type: str | None = None
    bucket_name: str | None = None
    endpoint_url: str | None = None
    region_name: str = "us-east-1"
    access_key_id: str | None = field(default=None, repr=False)
    secret_access_key: str | None = field(default=None, repr=False)
