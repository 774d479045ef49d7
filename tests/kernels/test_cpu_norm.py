"""RMS, layer and group norm in C++ against float64, over dtypes, odd sizes, strides and awkward values."""

from __future__ import annotations

import pytest
import torch

from tests.kernels.cpu_rowwise import DTYPES, MISSING, check, normal, padded, run


@pytest.fixture(autouse=True)
def extension(require):
    if MISSING is not None:
        require.skip("cpu", MISSING)


SIZES = (1, 7, 16, 31, 32, 33, 64, 131, 768, 1153, 3072)
PARAM_SHAPES = ((72,), (2, 72), (2, 1, 72), (2, 12, 72), (2, 3, 1, 72), (1, 72), (1, 12, 72))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("dim", SIZES)
def test_row_norms_match_float64(dtype, dim):
    for rows in (1, 4, 9):
        x = normal(rows, dim, dtype=dtype)
        own, wide = normal(dim, dtype=dtype, seed=1), normal(dim, seed=2)
        check("rms_norm", x, own, 1e-6, 0.0)
        check("rms_norm", x, wide, 1e-6, 1.0)
        check("rms_norm", x, None, 1e-6, 1.0)
        check("layer_norm", x, own, wide, 1e-5)
        check("layer_norm", x, None, None, 1e-5)
        check("layer_norm", padded(x), own, None, 1e-5)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("mean", (100.0, 1000.0))
def test_large_means_lose_nothing(dtype, mean):
    for dim in (7, 64, 768, 3072):
        x = (normal(8, dim, seed=3) + mean).to(dtype)
        check("layer_norm", x, None, None, 1e-5)
    check("group_norm", (normal(2, 32, 9, 9) + mean).to(dtype), 8, None, None, 1e-5, "none")


def test_constant_rows_are_exactly_zero():
    for dtype in DTYPES:
        assert torch.equal(run("layer_norm", torch.full((5, 96), 100.0, dtype=dtype), None, None, 1e-6)[0],
                           torch.zeros(5, 96, dtype=dtype))  # fmt: skip


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("norm", ("layer", "rms"))
@pytest.mark.parametrize("shape", PARAM_SHAPES)
def test_modulated_norms_match_float64(dtype, norm, shape):
    x, residual = normal(2, 12, 72, dtype=dtype), normal(2, 12, 72, dtype=dtype, seed=1)
    for params in (dtype, torch.float32, torch.float64):
        gate, scale, shift = (normal(*shape, dtype=params, seed=s) for s in (2, 3, 4))
        weight, bias = normal(72, seed=5), normal(72, dtype=torch.float16, seed=6)
        check("norm_scale_shift", x, scale, shift, None, None, 1e-6, norm)
        check("norm_scale_shift", x, scale, None, weight, bias, 1e-6, norm)
        check("residual_gate_norm_scale_shift", residual, x, gate, scale, shift, weight, bias, 1e-6, norm)
        check(
            "residual_gate_norm_scale_shift", padded(residual), x, None, None, shift, None, None, 1e-6, norm
        )


def test_per_frame_parameters_may_have_different_numbers_of_frames():
    x = normal(2, 12, 40)
    check("norm_scale_shift", x, normal(2, 4, 1, 40), normal(2, 6, 1, 40), None, None, 1e-6, "layer")
    check("norm_scale_shift", x, normal(1, 12, 1, 40), normal(2, 1, 1, 40), None, None, 1e-6, "rms")


@pytest.mark.parametrize("dtype", DTYPES)
def test_streamed_results_equal_cached_ones(dtype):
    """More than 32 MiB moved: past the caches. The same rows in two halves: not."""
    x, y = normal(2048, 4160, dtype=dtype), normal(2048, 4160, dtype=dtype, seed=1)
    for op, args in (
        ("layer_norm", (x, None, None, 1e-6)),
        ("residual_gate_norm_scale_shift", (x, y, None, None, None, None, None, 1e-6, "rms")),
        ("gelu_tanh", (x,)),
        ("gate_residual", (x, y, normal(4160))),
    ):
        whole = run(op, *args)
        cut = [run(op, *(a[half] if isinstance(a, torch.Tensor) and a.ndim == 2 else a for a in args))
               for half in (slice(0, 200), slice(200, 300))]  # fmt: skip
        for i, out in enumerate(whole):
            assert torch.equal(out[:300], torch.cat([part[i] for part in cut]))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    "shape", ((2, 32, 5, 7), (1, 64, 16, 16), (2, 8, 3), (3, 32), (2, 32, 3, 4, 5), (2, 33, 1, 1))
)
@pytest.mark.parametrize("activation", ("none", "silu"))
def test_group_norm_matches_float64_in_every_layout(dtype, shape, activation):
    x, channels = normal(*shape, dtype=dtype), shape[1]
    weight, bias = normal(channels, dtype=dtype, seed=1), normal(channels, seed=2)
    layouts = [x, padded(x), x.transpose(0, 1).contiguous().transpose(0, 1)]
    if x.ndim == 4:
        layouts += [x.to(memory_format=torch.channels_last), x.transpose(2, 3)]
    if x.ndim == 5:
        layouts += [x.to(memory_format=torch.channels_last_3d)]
    for groups in {1, channels, 11 if channels == 33 else 4}:
        for value in layouts:
            (out,) = check("group_norm", value, groups, weight, bias, 1e-5, activation)
            check("group_norm", value, groups, None, None, 1e-5, activation)
            assert out.stride() == torch.empty_like(value).stride()


def test_group_norm_of_one_large_group_does_not_depend_on_threads():
    x = normal(1, 8, 96, 96) + 10
    threads = torch.get_num_threads()
    results = []
    for layout in (torch.contiguous_format, torch.channels_last):
        for count in (1, 2):
            torch.set_num_threads(count)
            results.append(run("group_norm", x.to(memory_format=layout), 2, None, None, 1e-5, "silu")[0])
    torch.set_num_threads(threads)
    assert torch.equal(results[0], results[1])
    assert torch.equal(results[2], results[3])


def test_a_row_whose_squares_overflow_is_finite():
    """At every instruction set: test_cpu_elementwise.py runs this file again for each."""
    for dim in (7, 64, 1153):
        x = normal(6, dim)
        x[2, dim // 2] = 1e30
        plain = run("layer_norm", x, None, None, 1e-5)[0]
        scale, shift = normal(dim, seed=1), normal(dim, seed=2)
        modulated = run("norm_scale_shift", x, scale, shift, None, None, 1e-5, "layer")[0]
        gate = torch.zeros(dim)
        after_sum = run(
            "residual_gate_norm_scale_shift", x, x, gate, scale, shift, None, None, 1e-5, "layer"
        )[0]
        for out in (plain, modulated, after_sum):
            assert out.isfinite().all()


@pytest.mark.parametrize("dtype", DTYPES)
def test_nan_and_infinity_stay_in_their_row(dtype):
    for bad in (float("nan"), float("inf"), -float("inf")):
        x = normal(6, 70, dtype=dtype)
        x[2, 3] = bad
        for out in (*run("rms_norm", x, None, 1e-6, 0.0), *run("layer_norm", x, None, None, 1e-6)):
            finite = torch.isfinite(out).all(-1)
            assert finite.tolist() == [True, True, False, True, True, True]
        check("rms_norm", x, normal(70), 1e-6, 0.0)
        check("layer_norm", x, normal(70), None, 1e-6)


def test_nan_parameters_of_any_payload_make_nan():
    """Rounding to bf16 must not carry a NaN with all bits set into another number."""
    weight = torch.full((64,), -1, dtype=torch.int32).view(torch.float32)
    out = run("rms_norm", normal(3, 64, dtype=torch.bfloat16), weight, 1e-6, 0.0)[0]
    assert out.isnan().all()
    x = torch.full((3, 64), 0x7FFF, dtype=torch.int16).view(torch.bfloat16)
    assert run("layer_norm", x, None, None, 1e-6)[0].isnan().all()


def test_empty_tensors_give_empty_results():
    assert run("rms_norm", torch.empty(2, 0, 64), None, 1e-6, 0.0)[0].shape == (2, 0, 64)
    out, total = run(
        "residual_gate_norm_scale_shift", torch.empty(0, 8), torch.empty(0, 8), *[None] * 5, 1e-6, "rms"
    )
    assert out.shape == total.shape == (0, 8)
    assert run("group_norm", torch.empty(0, 32, 4, 4), 8, None, None, 1e-6, "none")[0].shape == (0, 32, 4, 4)


def test_errors_name_the_argument():
    x = normal(2, 3, 8)
    for args, text in (
        (("rms_norm", x, normal(7), 1e-6, 0.0), r"rms_norm: weight has shape \[7\], expected \[8\]"),
        (("rms_norm", x.int(), None, 1e-6, 0.0), "x has a dtype other than float32"),
        (("norm_scale_shift", x, normal(3, 5, 8), None, None, None, 1e-6, "rms"), "scale has shape"),
        (("norm_scale_shift", x, None, None, None, None, 1e-6, "batch"), "norm is 'batch'"),
        (("residual_gate_norm_scale_shift", normal(2, 8), x, *[None] * 5, 1e-6, "rms"), "residual has shape"),
        (
            ("group_norm", x, 2, None, None, 1e-6, "none"),
            "num_groups is 2, expected a divisor of the 3 channels",
        ),
        (("group_norm", x, 3, None, None, 1e-6, "relu"), "activation is 'relu'"),
    ):
        with pytest.raises(RuntimeError, match=text):
            run(*args)
