"""What a checkpoint's scales mean: their layout, their values, whose they are, and the factors of AWQ."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from sgl_kernels.integrations.checkpoints import CheckpointError, load_checkpoint
from sgl_kernels.ops.nvfp4.api import nvfp4_dequantize, nvfp4_quantize
from sgl_kernels.ops.nvfp4.layouts import swizzle_scales

FILE = "model.safetensors"
ALIGNED, ODD = (256, 256), (48, 96)


def weights(kind, shape, seed=0):
    """As in models (rows and columns of different size), or without any such structure."""
    g = torch.Generator().manual_seed(seed)
    w = torch.randn(shape, generator=g)
    n, k = shape
    if kind == "rows":
        return w * (0.3 * torch.randn(n, 1, generator=g)).exp()
    if kind == "columns":
        return w * (0.5 * torch.randn(1, k // 16, generator=g)).exp().repeat_interleave(16, 1)
    if kind == "outliers":
        return w * torch.where(torch.rand(1, k, generator=g) < 0.05, 20.0, 1.0)
    return w


def parts(w, layout="linear", swap=False):
    """(key -> tensor of one layer as ModelOpt names it, the value that it has)."""
    q = nvfp4_quantize(w)
    data = (q.data << 4) | (q.data >> 4) if swap else q.data
    scale = swizzle_scales(q.block_scale) if layout == "swizzled" else q.block_scale
    made = {"weight": data, "weight_scale": scale.contiguous(), "weight_scale_2": q.global_scale}
    return made, nvfp4_dequantize(q, torch.float32)


def saved(path, layers, extra=(), metadata=None):
    tensors = {f"{name}.{leaf}": t.clone() for name, made in layers.items() for leaf, t in made.items()}
    save_file(tensors | dict(extra), path / FILE, metadata=metadata)
    return path / FILE


def model_of(**shapes):
    return nn.ModuleDict({name: nn.Linear(k, n, bias=False) for name, (n, k) in shapes.items()})


def value(model, name):
    return nvfp4_dequantize(model[name].quantised_weight(), torch.float32)


@pytest.mark.parametrize("swap", [False, True], ids=["low first", "high first"])
@pytest.mark.parametrize("layout", ["linear", "swizzled"])
@pytest.mark.parametrize("kind", ["rows", "columns", "outliers"])
@pytest.mark.parametrize("shape", [ALIGNED, (128, 64), (384, 1024)])
def test_scales_tell_their_layout_where_rows_or_columns_differ(tmp_path, shape, kind, layout, swap):
    """N a multiple of 128 and K of 64: both layouts have one shape, and nothing in the file says which it is."""
    made, want = parts(weights(kind, shape), layout, swap)
    model = model_of(p=shape)
    report = load_checkpoint(model, saved(tmp_path, {"p": made}), swap_nibbles=swap)
    if report.scale_layouts[0][1] == "the scales themselves" or layout == ("swizzled" if swap else "linear"):
        assert report.scale_layouts[0][0] == layout
        assert torch.equal(value(model, "p"), want)
    else:  # too small to tell: then the caller says it
        assert shape == (128, 64) and report.scale_layouts == (
            ("swizzled" if swap else "linear", "the order of nibbles"),
        )
    again = model_of(p=shape)
    report = load_checkpoint(again, tmp_path / FILE, swap_nibbles=swap, scale_layout=layout)
    assert report.scale_layouts == ((layout, "scale_layout"),) and torch.equal(value(again, "p"), want)


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("swap, layout", [(False, "linear"), (True, "swizzled")])
def test_scales_without_structure_follow_the_order_of_nibbles(tmp_path, swap, layout, seed):
    made, want = parts(weights("plain", ALIGNED, seed), layout, swap)
    model = model_of(p=ALIGNED)
    report = load_checkpoint(model, saved(tmp_path, {"p": made}), swap_nibbles=swap)
    assert report.scale_layouts == ((layout, "the order of nibbles"),)
    assert torch.equal(value(model, "p"), want)


@pytest.mark.parametrize("layout", ["linear", "swizzled"])
def test_layers_of_one_file_agree(tmp_path, layout):
    """An odd layer's shape tells the layout of the others."""
    layers = {"p": parts(weights("plain", ALIGNED), layout), "q": parts(weights("plain", ODD), layout)}
    file = saved(tmp_path, {name: made for name, (made, _) in layers.items()})
    model = model_of(p=ALIGNED, q=ODD)
    report = load_checkpoint(model, file)
    assert dict(report.scale_layouts) == {layout: "the shape of 'q'"} or len(report.scale_layouts) == 2
    for name, (_, want) in layers.items():
        assert torch.equal(value(model, name), want)


def test_layers_that_do_not_agree_are_refused(tmp_path):
    layers = {
        "p": parts(weights("rows", ALIGNED))[0],
        "q": parts(weights("rows", ODD), "linear")[0],
        "r": parts(weights("rows", ODD), "swizzled")[0],
    }
    file = saved(tmp_path, layers)
    model = model_of(p=ALIGNED, q=ODD, r=ODD)
    with pytest.raises(
        CheckpointError, match=r"'q.weight_scale' .* is linear and 'r.weight_scale' .* is swizzled"
    ):
        load_checkpoint(model, file)
    assert all(type(m) is nn.Linear for m in model.values())


def comfy(form="nvfp4"):
    return torch.tensor(list(json.dumps({"format": form}).encode()), dtype=torch.uint8)


@pytest.mark.parametrize("mark", ["tensor", "metadata"])
@pytest.mark.parametrize("shape", [ALIGNED, ODD])
def test_comfyui_marks_its_layers(tmp_path, shape, mark):
    """Swizzled scales and high nibbles first, without an argument."""
    made, want = parts(weights("plain", shape), "swizzled", swap=True)
    metadata = {"_quantization_metadata": json.dumps({"layers": {"p": {"format": "nvfp4"}}})}
    extra = {"p.comfy_quant": comfy()} if mark == "tensor" else {}
    file = saved(tmp_path, {"p": made}, extra, metadata if mark == "metadata" else None)
    model = model_of(p=shape)
    report = load_checkpoint(model, file)
    assert report.scale_layouts == (("swizzled", "ComfyUI's mark"),) and torch.equal(value(model, "p"), want)


@pytest.mark.parametrize(
    "extra, metadata, match",
    [
        ({"p.comfy_quant": comfy("float8_e4m3fn")}, None, "'p.comfy_quant' in .* has format 'float8_e4m3fn'"),
        ({"p.comfy_quant": torch.tensor([255], dtype=torch.uint8)}, None, "'p.comfy_quant' .* is not JSON in UTF-8"),
        ({"p.comfy_quant": torch.ones(3)}, None, "is not uint8, expected JSON in bytes"),
        ({}, '{"layers": {"p": {"format": "mxfp8"}}}', "for 'p' has format 'mxfp8'"),
        ({}, '{"layers": {"other": {"format": "int8"}}}', "for 'other' has format 'int8'"),
        ({}, '{"layers": {"p": 5}}', "for 'p' has format 5"),
        ({}, '{"layers": [1]}', "is a list, expected an object"),
        ({}, "[" * 100_000, "nested too deeply"),
    ],
)  # fmt: skip
def test_marks_of_other_kinds_are_refused_by_name(tmp_path, extra, metadata, match):
    made, _ = parts(weights("rows", ALIGNED), "swizzled", swap=True)
    file = saved(tmp_path, {"p": made}, extra, metadata and {"_quantization_metadata": metadata})
    with pytest.raises(CheckpointError, match=match):
        load_checkpoint(model_of(p=ALIGNED), file)


@pytest.mark.parametrize("shape", [(48, 64), (200, 80), (256, 256), (1024, 512)])
@pytest.mark.parametrize("high_first", [True, False])
def test_comfy_kitchens_own_bytes(tmp_path, shape, high_first):
    kitchen = pytest.importorskip("comfy_kitchen", reason="comfy-kitchen is not installed")
    w = (weights("rows", shape)).bfloat16()
    scale = w.float().abs().max() / 2688
    data, blocks = kitchen.quantize_nvfp4(w, scale, pad_16x=True)
    want = kitchen.dequantize_nvfp4(data, scale, blocks, torch.float32)[: shape[0], : shape[1]]
    data = data[: shape[0]].contiguous()
    if not high_first:
        data = (data << 4) | (data >> 4)
    file = saved(
        tmp_path, {"p": {"weight": data, "weight_scale": blocks.contiguous(), "weight_scale_2": scale}}
    )
    model = model_of(p=shape)
    load_checkpoint(model, file, swap_nibbles=high_first)
    got = value(model, "p")
    assert (got - want).norm() <= 1e-6 * want.norm()


@pytest.mark.parametrize("asked", ["rows", "", 5])
def test_arguments_are_checked(tmp_path, asked):
    file = saved(tmp_path, {"p": parts(weights("rows", ODD))[0]})
    with pytest.raises(ValueError, match=r"scale_layout is .*, expected linear, swizzled or None"):
        load_checkpoint(model_of(p=ODD), file, scale_layout=asked)
    with pytest.raises(ValueError, match="activation is 'fp8'"):
        load_checkpoint(model_of(p=ODD), file, activation="fp8")


def test_a_layout_that_the_shape_denies_is_refused(tmp_path):
    file = saved(tmp_path, {"p": parts(weights("rows", ODD))[0]})
    with pytest.raises(CheckpointError, match="not that of swizzled scales, as scale_layout says"):
        load_checkpoint(model_of(p=ODD), file, scale_layout="swizzled")


def poke(index, byte):
    return lambda t: t["p.weight_scale"].view(torch.uint8).view(-1)[index : index + 1].fill_(byte)


def put(leaf, tensor):
    return lambda t: t.__setitem__(f"p.{leaf}", tensor)


@pytest.mark.parametrize("layout", ["linear", "swizzled"])
@pytest.mark.parametrize(
    "change, match",
    [
        (poke(0, 0x7F), "'p.weight_scale' in model.safetensors has NaN in 1 of"),
        (poke(1, 0xFF), "has 1 negative values of"),
        (poke(2, 0x80), "has 1 negative values of"),
        (put("weight_scale_2", torch.tensor(0.0)), r"'p.weight_scale_2' in model.safetensors is \[0.0\], expected"),
        (put("weight_scale_2", torch.tensor(-1.0)), "expected a positive finite number"),
        (put("weight_scale_2", torch.tensor(1e300, dtype=torch.float64)), "expected a positive finite number"),
        (put("weight_scale_2", torch.tensor(1e-300, dtype=torch.float64)), "expected a positive finite number"),
        (put("weight_scale_2", torch.tensor(1)), "is torch.int64, expected a float"),
        (put("weight_scale_2", torch.ones(1).to(torch.float8_e4m3fn)), "is torch.float8_e4m3fn, expected a float"),
        (put("weight_scale_2", torch.zeros(0)), r"has shape \[0\], expected one number"),
        (put("input_scale", torch.tensor(0.0)), "'p.input_scale' in .* expected a positive finite number"),
        (put("input_scale", torch.tensor(float("inf"))), "expected a positive finite number"),
        (put("input_scale", torch.tensor([1.0, float("nan")])), "expected a positive finite number"),
        (put("input_scale", torch.tensor([1.0, 2.0])), "different scales .* for fused partitions"),
        (put("pre_quant_scale", torch.ones(5)), r"has shape \[5\], expected \[96\]"),
        (put("pre_quant_scale", torch.ones(96, dtype=torch.int32)), "is torch.int32, expected a float"),
        (put("pre_quant_scale", torch.full((96,), float("nan"))), "has NaN or infinities"),
        (put("weight_zero_point", torch.ones(3)), "in a scheme that is not served"),
        (put("weight_g_idx", torch.ones(96)), "in a scheme that is not served"),
    ],
)  # fmt: skip
def test_scales_that_are_none_are_refused_and_nothing_is_loaded(tmp_path, change, match, layout):
    file = saved(tmp_path, {"p": parts(weights("rows", ODD), layout)[0]})
    tensors = load_file(file)
    change(tensors)
    save_file(tensors, file)
    model = model_of(p=ODD)
    before = model["p"].weight.detach().clone()
    for ignore in ([], ["*"]):
        with pytest.raises(CheckpointError, match=match):
            load_checkpoint(model, file, input_factors=True, ignore=ignore)
    assert type(model["p"]) is nn.Linear and torch.equal(model["p"].weight, before)


def test_the_inverse_of_a_tiny_global_scale_is_refused(tmp_path):
    made, _ = parts(weights("rows", ODD))
    names = {"weight": "weight_packed", "weight_scale_2": "weight_global_scale"}
    layer = {names.get(leaf, leaf): t for leaf, t in made.items()}
    layer["weight_global_scale"] = torch.tensor(1e-45)
    with pytest.raises(
        CheckpointError, match=r"'p.weight_global_scale' .* expected a positive finite number"
    ):
        load_checkpoint(model_of(p=ODD), saved(tmp_path, {"p": layer}))


def test_padding_of_swizzled_scales_may_hold_anything(tmp_path):
    made, want = parts(weights("rows", ODD), "swizzled")
    raw = made["weight_scale"].view(torch.uint8)
    raw[raw == 0] = 0xFF
    model = model_of(p=ODD)
    load_checkpoint(model, saved(tmp_path, {"p": made}))
    assert torch.equal(value(model, "p"), want)


@pytest.mark.parametrize("kind", ["quantised twice", "quantised and plain", "plain twice"])
def test_one_name_is_filled_once(tmp_path, kind):
    layer, plain = parts(weights("rows", ODD))[0], {"weight": torch.randn(ODD)}
    made = {
        "quantised twice": {"p": layer, "q": layer},
        "quantised and plain": {"p": layer, "q": plain},
        "plain twice": {"p": plain, "q": plain},
    }[kind]
    model = model_of(p=ODD)
    with pytest.raises(
        CheckpointError, match=r"'[pq].weight' in .* and '[pq].weight' in .* are both for the model's 'p"
    ):
        load_checkpoint(model, saved(tmp_path, made), rename=lambda name: "p", ignore="*")
    assert type(model["p"]) is nn.Linear


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int8, torch.bool])
def test_plain_tensors_of_another_kind_are_refused(tmp_path, dtype):
    tensors = {"p.weight": torch.zeros(ODD, dtype=dtype)}
    save_file(tensors, tmp_path / FILE)
    with pytest.raises(CheckpointError, match=r"'p.weight"):
        load_checkpoint(model_of(p=ODD), tmp_path / FILE)


@pytest.mark.parametrize("leaf", ["weight_scale", "scale_weight", "weight_scale_inv"])
def test_the_scales_of_other_schemes_cannot_be_ignored(tmp_path, leaf):
    """An FP8 layer loads where its bytes are its values; with a scale beside it, it would be another layer."""
    tensors = {"p.weight": torch.randn(ODD).to(torch.float8_e4m3fn)}
    save_file(tensors, tmp_path / FILE)
    model = model_of(p=ODD)
    load_checkpoint(model, tmp_path / FILE)
    assert torch.equal(model["p"].weight, tensors["p.weight"].float())
    save_file(tensors | {f"p.{leaf}": torch.tensor(0.5)}, tmp_path / FILE)
    with pytest.raises(CheckpointError, match=f"'p.{leaf}' .* in a scheme that is not served"):
        load_checkpoint(model, tmp_path / FILE, ignore=["*"])
