"""Which attention of diffusers is served: what reaches SDPA, unless its processor or the user names the backend."""

from __future__ import annotations

import importlib
import inspect
import pkgutil
from collections.abc import Iterator
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import sgl_kernels
from sgl_kernels.integrations import processors
from tests.integrations import tiny
from tests.integrations.state import differences, snapshot

diffusers = pytest.importorskip("diffusers")
theirs = pytest.importorskip("diffusers.models.attention_dispatch")
attention_backend, dispatch_attention_fn = theirs.attention_backend, theirs.dispatch_attention_fn


@pytest.fixture(autouse=True)
def _backend_in_force() -> Iterator[None]:
    active = theirs._AttentionBackendRegistry._active_backend
    yield
    theirs._AttentionBackendRegistry.set_active_backend(active)


def served(run: Any, model: nn.Module) -> int:
    with torch.no_grad(), sgl_kernels.record() as recorder:
        run(model)
    return sum(e.calls for e in recorder.report().entries if e.op.startswith("attention"))


# Read one by one in 0.42.1. Linear attention, bmm on whole or sliced scores, xformers, NATTEN, or flex by name.
NEVER = {
    "AttnAddedKVProcessor", "AttnProcessor", "CustomDiffusionAttnProcessor", "CustomDiffusionXFormersAttnProcessor",
    "IPAdapterAttnProcessor", "IPAdapterXFormersAttnProcessor", "Kandinsky6SRAttnProcessor",
    "LTX2VideoVaeNeighborhoodNattenProcessor", "PAGCFGSanaLinearAttnProcessor2_0",
    "PAGIdentitySanaLinearAttnProcessor2_0", "SanaLinearAttnProcessor2_0", "SanaLinearAttnProcessor3_0",
    "SanaMultiscaleAttnProcessor2_0", "SlicedAttnAddedKVProcessor", "SlicedAttnProcessor",
    "XFormersAttnAddedKVProcessor", "XFormersAttnProcessor", "XFormersJointAttnProcessor",
}  # fmt: skip


def test_every_processor_of_diffusers_is_told_apart() -> None:
    found: dict[str, bool] = {}
    for info in pkgutil.walk_packages(diffusers.models.__path__, "diffusers.models."):
        module = importlib.import_module(info.name)
        for name, cls in vars(module).items():
            if (
                inspect.isclass(cls)
                and cls.__module__ == info.name
                and "Proc" in name
                and "__call__" in dir(cls)
            ):
                found[name] = processors._processor_serves(cls)
    assert len(found) > 100
    assert {name for name, serves in found.items() if not serves} == NEVER & set(found)


class Named:
    def __call__(self, attn: nn.Module, x: torch.Tensor) -> torch.Tensor:
        return dispatch_attention_fn(x, x, x, backend="flex")


class Helped:
    def __call__(self, attn: nn.Module, x: torch.Tensor) -> torch.Tensor:
        return _helper(x)


class Inherited(Helped):
    pass


class Method:
    def attend(self, x: torch.Tensor) -> torch.Tensor:
        return F.scaled_dot_product_attention(x, x, x)

    def __call__(self, attn: nn.Module, x: torch.Tensor) -> torch.Tensor:
        return self.attend(x)


class Bound:
    """Its SDPA is torch's for good: taken by name before anybody could exchange it."""

    def __call__(self, attn: nn.Module, x: torch.Tensor) -> torch.Tensor:
        return scaled_dot_product_attention(x, x, x)


class AsModule(nn.Module):
    def forward(self, attn: nn.Module, x: torch.Tensor) -> torch.Tensor:
        return F.scaled_dot_product_attention(x, x, x)


def _helper(x: torch.Tensor) -> torch.Tensor:
    return dispatch_attention_fn(x, x, x, backend=None)


scaled_dot_product_attention = F.scaled_dot_product_attention


@pytest.mark.parametrize(
    "made, serves",
    [(Named(), False), (Helped(), True), (Inherited(), True), (Method(), True), (Bound(), False), (AsModule(), True),
     (lambda attn, x: F.scaled_dot_product_attention(x, x, x), True), (lambda attn, x: x.relu(), False)],
)  # fmt: skip
def test_what_a_processor_of_any_shape_reaches(made: Any, serves: bool) -> None:
    holder = nn.Module()
    holder.processor = made
    assert processors.calls_attention(holder)
    assert processors.reaches_sdpa(holder) == serves


def anyflow() -> tiny.Made:
    model = diffusers.AnyFlowFARTransformer3DModel(
        patch_size=(1, 2, 2), compressed_patch_size=(1, 4, 4), full_chunk_limit=3, num_attention_heads=2,
        attention_head_dim=12, in_channels=4, out_channels=4, text_dim=16, freq_dim=32, ffn_dim=32, num_layers=1,
        cross_attn_norm=True, rope_max_seq_len=32, gate_value=0.25, deltatime_type="r",
    )  # fmt: skip
    inputs = dict(
        hidden_states=tiny._r(1, 4, 4, 8, 8), timestep=torch.full((1, 4), 500.0), r_timestep=torch.full((1, 4), 250.0),
        encoder_hidden_states=tiny._r(1, 12, 16), chunk_partition=[2, 2],
    )  # fmt: skip
    return tiny.randomised(model), lambda m: m(**inputs)[0]


def ltx2_decoder() -> tiny.Made:
    model = diffusers.LTX2VideoDiffusionDecoderModel(
        out_channels=3, latent_channels=8, patch_size=2, decoder_head_dim=16,
        decoder_stage_channels=(64, 32, 16, 16, 16), decoder_stage_depths=(1, 1, 1, 1, 1),
        decoder_stage_kernels=((1, 3, 3),) * 4,
        decoder_upsample_strides=((1, 2, 2), (2, 1, 1), (2, 2, 2), (2, 2, 2)),
        decoder_upsample_channel_reductions=(2, 2, 1, 1), decoder_stage5_kernel=(1, 3, 3), decoder_t_emb_dim=32,
        spatial_compression_ratio=16, temporal_compression_ratio=8,
    ).eval()  # fmt: skip
    return model, lambda m: m(z=tiny._r(1, 8, 1, 3, 3), generator=torch.Generator().manual_seed(0))[0]


@torch.no_grad()
@pytest.mark.filterwarnings("ignore:flex_attention called without")
@pytest.mark.parametrize("make, attends", [(anyflow, "attn2"), (ltx2_decoder, "")], ids=["anyflow", "ltx2"])
def test_processors_that_build_a_block_mask_keep_flex(make: Any, attends: str) -> None:
    model, run = make()
    want = run(model)
    before = snapshot(model)
    with sgl_kernels.apply(model) as applied:
        assert torch.allclose(run(model), want, rtol=1e-4, atol=1e-4 * float(want.abs().max()))
        assert all(name.endswith(attends) for name in applied.attention) and bool(applied.attention) == bool(
            attends
        )
    assert differences(before, snapshot(model)) == []


@torch.no_grad()
@pytest.mark.parametrize("name", ["native", "_native_math", "_native_flash", "flex"])
@pytest.mark.filterwarnings("ignore:flex_attention called without")
def test_a_backend_the_user_set_is_kept(name: str) -> None:
    model, run = tiny.flux()
    model.set_attention_backend(name)
    want, before = run(model), snapshot(model)
    with sgl_kernels.apply(model, norms=False, linears=False) as applied:
        assert applied.attention == () and len(applied.left) == 2
        assert {p._attention_backend for p in model.attn_processors.values()} == {name}
        assert torch.equal(run(model), want) and served(run, model) == 0
        model.reset_attention_backend()
        theirs._AttentionBackendRegistry.set_active_backend(theirs.AttentionBackendName.NATIVE)
        assert served(run, model) == 2
        model.set_attention_backend(name)
        assert served(run, model) == 0
    assert differences(before, snapshot(model)) == []


@torch.no_grad()
def test_a_backend_in_force_is_kept_and_only_while_it_is() -> None:
    model, run = tiny.flux()
    vae, decode = tiny.vae()  # its processor calls torch's SDPA and asks no dispatcher
    with sgl_kernels.apply(model), sgl_kernels.apply(vae):
        assert served(run, model) == 2
        with attention_backend("_native_math"):
            assert served(run, model) == 0 and served(decode, vae) == 2
            with sgl_kernels.apply(model) as inside:
                assert inside.attention == ()
        assert served(run, model) == 0  # given back at the end of the block
    with attention_backend("native"), sgl_kernels.apply(model) as applied:
        assert len(applied.attention) == 2 and served(run, model) == 2


@torch.no_grad()
def test_our_own_name_and_apply_go_together() -> None:
    model, run = tiny.flux()
    with sgl_kernels.install("diffusers"):
        model.set_attention_backend("sgl_kernels")
        with sgl_kernels.apply(model) as applied:
            assert len(applied.attention) == 2 and served(run, model) == 2
        assert served(run, model) == 2
        model.reset_attention_backend()


@torch.no_grad()
def test_a_kept_backend_inside_a_served_module() -> None:
    class Outer(nn.Module):
        def __init__(self, inner: nn.Module) -> None:
            super().__init__()
            self.inner = inner

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.inner(F.scaled_dot_product_attention(x, x, x))

    class Inner(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.processor = Processor()

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.processor(self, x)

    class Processor:
        _attention_backend = "_native_math"

        def __call__(self, attn: nn.Module, x: torch.Tensor) -> torch.Tensor:
            return dispatch_attention_fn(x, x, x, backend=self._attention_backend)

    model, x = Outer(Inner()), torch.randn(1, 2, 3, 8)
    want = model(x)
    with sgl_kernels.apply(model) as applied:
        assert applied.attention == ("",) and served(lambda m: m(x), model) == 1
        assert torch.allclose(model(x), want, atol=1e-5)
        torch._dynamo.reset()
        graphed = torch.compile(model, backend="aot_eager", fullgraph=True)
        assert served(lambda m: m(x), graphed) == 1 and torch.allclose(graphed(x), want, atol=1e-5)
    torch._dynamo.reset()


@torch.no_grad()
def test_linear_and_sliced_attention_is_not_counted_and_not_changed() -> None:
    from diffusers.models.attention_processor import AttnProcessor, AttnProcessor2_0

    model, run = tiny.unet()
    model.set_attn_processor(AttnProcessor())
    want = run(model)
    with sgl_kernels.apply(model, norms=False, linears=False) as applied:
        assert applied.attention == () and torch.equal(run(model), want)
        model.set_attn_processor(AttnProcessor2_0())  # chosen while applied: it is served
        assert served(run, model) == 8
    model.set_attention_slice(1)
    want = run(model)
    with sgl_kernels.apply(model, norms=False, linears=False) as applied:
        assert applied.attention == () and torch.equal(run(model), want)


@torch.no_grad()
def test_the_linear_attention_of_sana_is_not_counted_and_the_other_is() -> None:
    model = diffusers.SanaTransformer2DModel(
        patch_size=1, in_channels=4, out_channels=4, num_layers=1, num_attention_heads=2, attention_head_dim=4,
        num_cross_attention_heads=2, cross_attention_head_dim=4, cross_attention_dim=8, caption_channels=8,
        sample_size=8,
    )  # fmt: skip
    model = tiny.randomised(model)
    x, text, t = tiny._r(2, 4, 8, 8), tiny._r(2, 5, 8), torch.tensor([3, 400])

    def run(m: nn.Module) -> torch.Tensor:
        return m(x, encoder_hidden_states=text, timestep=t, return_dict=False)[0]

    want = run(model)
    with sgl_kernels.apply(model) as applied:
        assert applied.attention == ("transformer_blocks.0.attn2",) and served(run, model) == 1
        assert applied.left == ("transformer_blocks.0.attn1",) and "1 attention layers left" in repr(applied)
        assert torch.allclose(run(model), want, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("change", [
    {}, {"attn_mask": torch.ones(2, 1, 1, 6, dtype=torch.bool)}, {"attn_mask": torch.ones(2, 6, dtype=torch.bool)},
    {"attn_mask": torch.ones(6, 6, dtype=torch.bool).tril()}, {"is_causal": True}, {"scale": 0.3}, {"dropout_p": 1e-9},
    {"attn_mask": torch.zeros(2, 4, 6, 6)},
], ids=lambda c: "-".join(c) or "plain")  # fmt: skip
def test_the_short_way_from_native_means_what_native_means(change: dict[str, Any]) -> None:
    q, k, v = (tiny._r(2, 6, 4, 8, seed=i) for i in range(3))
    want = dispatch_attention_fn(q, k, v, **change)
    own = theirs._AttentionBackendRegistry._backends["native"]

    class Model(nn.Module):
        def forward(self) -> torch.Tensor:
            return dispatch_attention_fn(q, k, v, **change)

    model = Model()
    with sgl_kernels.apply(model) as applied:
        assert applied.attention == ("",)
        assert torch.allclose(model(), want, atol=1e-5)
        assert torch.allclose(
            dispatch_attention_fn(q, k, v, **change), want, atol=1e-5
        )  # beside the model: theirs
        assert served(lambda m: dispatch_attention_fn(q, k, v, **change), model) == 0
        assert served(lambda m: m(), model) == ("dropout_p" not in change)
    assert theirs._AttentionBackendRegistry._backends["native"] is own
    assert all(type(key) is theirs.AttentionBackendName for key in theirs._AttentionBackendRegistry._backends)


def test_the_short_way_closes_with_the_last_model() -> None:
    own = theirs._AttentionBackendRegistry._backends["native"]
    model, _ = tiny.flux()
    other, run = tiny.flux()
    one, two = sgl_kernels.apply(model), sgl_kernels.apply(other)
    one.remove()
    assert theirs._AttentionBackendRegistry._backends["native"] is not own and served(run, other) == 2
    two.remove()
    assert theirs._AttentionBackendRegistry._backends["native"] is own
    with sgl_kernels.install("diffusers"):
        applied = sgl_kernels.apply(model)
    model.transformer_blocks[0].attn.processor._attention_backend = "sgl_kernels"  # taken out: their own runs
    applied.remove()
