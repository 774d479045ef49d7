"""Nothing is served by resemblance: each formula is proven, each rival told apart, and no probe touches the model."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import sgl_kernels
from sgl_kernels.integrations import linears, norms, proofs
from sgl_kernels.integrations.modules import role_of
from tests.integrations import tiny
from tests.integrations.state import differences, snapshot

pytest.importorskip("diffusers")
pytest.importorskip("transformers")


class Act(nn.Module):
    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x)


class Gated(nn.Module):
    """A gated MLP as transformers writes it; subclasses differ in one thing."""

    def __init__(self, act: nn.Module) -> None:
        super().__init__()
        self.gate_proj, self.up_proj = nn.Linear(6, 10), nn.Linear(6, 10)
        self.down_proj, self.act_fn = nn.Linear(10, 6), act

    def forward(self, x: Tensor) -> Tensor:
        return self.down_proj(self.act_fn(self.gate_proj(x)) * self.up_proj(x))


def _named(cls: type, name: str) -> type:
    return type(name, (cls,), {"__module__": "transformers.models.odd.modeling_odd"})


GatedMLP = _named(Gated, "OddMLP")


def silu_in_float(x: Tensor) -> Tensor:
    return F.silu(x.float()).to(x.dtype)


SILU: dict[str, Callable[[Tensor], Tensor]] = {
    "F.silu": F.silu, "x * sigmoid": lambda x: x * torch.sigmoid(x), "float": silu_in_float,
}  # fmt: skip
ELEMENTWISE = [
    "celu", "elu", "gelu", "hardshrink", "hardsigmoid", "hardswish", "hardtanh", "leaky_relu", "logsigmoid", "mish",
    "relu", "relu6", "rrelu", "selu", "sigmoid", "softplus", "softshrink", "softsign", "tanh", "tanhshrink",
]  # fmt: skip
RIVALS: dict[str, Callable[[Tensor], Tensor]] = {
    **{name: getattr(F, name) for name in ELEMENTWISE},
    "gelu tanh": lambda x: F.gelu(x, approximate="tanh"),
    "swish 1.702": lambda x: x * torch.sigmoid(1.702 * x),
    "swish 1.001": lambda x: x * torch.sigmoid(1.001 * x),
    "gate clamped at 7": lambda x: F.silu(x.clamp(max=7.0)),
    "gate clamped at 1000": lambda x: F.silu(x.clamp(max=1000.0)),
    "gate clamped below": lambda x: F.silu(x.clamp(min=-10.0)),
    "result clamped at 10": lambda x: F.silu(x).clamp(-10, 10),
    "relu squared": lambda x: F.relu(x).square(),
    "softmax": lambda x: F.softmax(x, -1),
    "identity": lambda x: x,
    "zero": torch.zeros_like,
    "float16 inside": lambda x: F.silu(x.half()).to(x.dtype),
    "bfloat16 inside": lambda x: F.silu(x.bfloat16()).to(x.dtype),
    "no gradient": lambda x: F.silu(x.detach()),
    "silu or not": lambda x: F.silu(x) if x.dtype is not torch.float16 else F.silu(x).clamp(max=100),
    "raises": lambda x: x.nonsense,
    "raises KeyError": lambda x: {}[x.dtype],
    "another dtype": lambda x: F.silu(x.float()),
}


@pytest.mark.parametrize("name", SILU)
def test_silu_in_any_spelling_is_proven(name: str) -> None:
    assert proofs.is_silu_gated(GatedMLP(Act(SILU[name])))
    assert proofs.is_silu_gated(GatedMLP(Act(SILU[name])).bfloat16())


@pytest.mark.parametrize("name", RIVALS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_every_other_activation_is_told_from_silu(name: str, dtype: torch.dtype) -> None:
    assert linears._form(GatedMLP(Act(RIVALS[name])).to(dtype)) is None


def test_every_activation_of_transformers_is_told_apart() -> None:
    from transformers import BertConfig, LlamaConfig
    from transformers.activations import ACT2CLS, ACT2FN
    from transformers.models.bert.modeling_bert import BertIntermediate
    from transformers.models.llama.modeling_llama import LlamaMLP

    small = dict(hidden_size=8, num_attention_heads=2, intermediate_size=12)
    gated, dense = LlamaMLP(LlamaConfig(**small)).bfloat16(), BertIntermediate(BertConfig(**small)).half()
    silu, gelu = set(), set()
    for name in ACT2CLS:
        gated.act_fn = dense.intermediate_act_fn = ACT2FN[name]
        silu |= {name} if proofs.is_silu_gated(gated) else set()
        gelu |= {name} if proofs.is_gelu_of_dense(dense) else set()
    assert silu == {"silu", "swish"} and gelu == {"gelu", "gelu_python"}


def _forward(function: Callable[[Any, Tensor], Any]) -> type:
    return type("OddMLP", (Gated,), {"__module__": "transformers.models.odd", "forward": function})


OTHER_MLPS: dict[str, Callable[[Any, Tensor], Any]] = {
    "swapped": lambda s, x: s.down_proj(s.act_fn(s.up_proj(x)) * s.gate_proj(x)),
    "up clamped at 7": lambda s, x: s.down_proj(s.act_fn(s.gate_proj(x)) * s.up_proj(x).clamp(-7, 7)),
    "up + 1": lambda s, x: s.down_proj(s.act_fn(s.gate_proj(x)) * (s.up_proj(x) + 1)),
    "no gate": lambda s, x: s.down_proj(s.act_fn(s.gate_proj(x)) + s.up_proj(x)),
    "residual": lambda s, x: x + s.down_proj(s.act_fn(s.gate_proj(x)) * s.up_proj(x)),
    "scaled": lambda s, x: 0.5 * s.down_proj(s.act_fn(s.gate_proj(x)) * s.up_proj(x)),
    "dropout": lambda s, x: F.dropout(s.down_proj(s.act_fn(s.gate_proj(x)) * s.up_proj(x)), 0.5, s.training),
    "dropout inside": lambda s, x: s.down_proj(F.dropout(s.act_fn(s.gate_proj(x)) * s.up_proj(x), 0.5, s.training)),
    "normed": lambda s, x: s.down_proj(s.act_fn(s.gate_proj(F.normalize(x))) * s.up_proj(x)),
    "by weight": lambda s, x: F.linear(s.act_fn(s.gate_proj(x)) * s.up_proj(x), s.down_proj.weight),
    "tuple": lambda s, x: (s.down_proj(s.act_fn(s.gate_proj(x)) * s.up_proj(x)), None),
    "sparse": lambda s, x: s.down_proj(s.act_fn(s.gate_proj(x)).where(s.gate_proj(x) > 0.1, 0) * s.up_proj(x)),
    "fp16 clamp": lambda s, x: s.down_proj(
        (s.act_fn(s.gate_proj(x)) * s.up_proj(x)).clamp(-65504, 65504) if x.dtype is torch.float16
        else s.act_fn(s.gate_proj(x)) * s.up_proj(x)
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", OTHER_MLPS)
def test_every_other_gated_mlp_is_left_alone(name: str) -> None:
    assert linears._form(_forward(OTHER_MLPS[name])(nn.SiLU())) is None


def test_the_same_mlp_is_served() -> None:
    module = _forward(lambda s, x: s.down_proj(s.up_proj(x) * s.act_fn(s.gate_proj(x))))(nn.SiLU())
    assert linears._form(module) is linears.silu_gated_mlp


def test_an_activation_that_can_change_is_left_alone() -> None:
    class Swish(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.beta = nn.Parameter(torch.ones(()))

        def forward(self, x: Tensor) -> Tensor:
            return x * torch.sigmoid(self.beta * x)

    assert linears._form(GatedMLP(Swish())) is None


# --- norms ------------------------------------------------------------------------------------------


class RMS(nn.Module):
    def __init__(self, n: int = 16) -> None:
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.ones(n)), nn.Parameter(torch.zeros(n))
        self.variance_epsilon = 1e-6

    def rms(self, x: Tensor, dim: Any = -1) -> Tensor:
        return torch.rsqrt(x.float().square().mean(dim, keepdim=True) + self.variance_epsilon)


def _norm(function: Callable[[Any, Tensor], Any]) -> nn.Module:
    made = type("OddRMSNorm", (RMS,), {"__module__": "transformers.models.odd", "forward": function})()
    return made  # type: ignore[no-any-return]


NORMS: dict[str, tuple[Callable[[Any, Tensor], Any], Any]] = {
    "llama": (lambda s, x: s.weight * (x.float() * s.rms(x)).to(x.dtype), norms.transformers_rms_norm),
    "gemma": (
        lambda s, x: ((x.float() * s.rms(x)) * (1.0 + s.weight.float())).type_as(x), norms.transformers_rms_norm_offset,
    ),
    "bias ignored": (lambda s, x: (x.float() * s.rms(x) * s.weight).to(x.dtype), norms.transformers_rms_norm),
    "weight ignored": (lambda s, x: (x.float() * s.rms(x)).to(x.dtype), None),
    "bias added": (lambda s, x: (x.float() * s.rms(x) * s.weight).to(x.dtype) + s.bias, None),
    "mean taken off": (lambda s, x: s.weight * ((x - x.mean(-1, keepdim=True)) * s.rms(x)).to(x.dtype), None),
    "l2": (lambda s, x: s.weight * F.normalize(x, dim=-1), None),
    "another eps": (lambda s, x: F.rms_norm(x, x.shape[-1:], s.weight, 1e-5), None),
    "eps of its own": (lambda s, x: F.rms_norm(x, x.shape[-1:], s.weight, 1e-6), None),
    "eps after the root": (
        lambda s, x: s.weight * x / (x.square().mean(-1, keepdim=True).sqrt() + s.variance_epsilon), None,
    ),
    "grouped": (
        lambda s, x: s.weight * (x.unflatten(-1, (2, -1)) * s.rms(x.unflatten(-1, (2, -1)))).flatten(-2), None,
    ),
    "over all": (lambda s, x: s.weight * (x * s.rms(x, (-2, -1))).to(x.dtype), None),
    "other dim": (lambda s, x: s.weight * (x * s.rms(x, -2)).to(x.dtype), None),
    "float result": (lambda s, x: s.weight.float() * (x.float() * s.rms(x)), None),
    "abs weight": (lambda s, x: s.weight.abs() * (x.float() * s.rms(x)).to(x.dtype), None),
    "no gradient of the statistic": (lambda s, x: s.weight * (x.float() * s.rms(x).detach()).to(x.dtype), None),
    "in place": (lambda s, x: x.mul_(s.rms(x).to(x.dtype) * s.weight), None),
    "dropout": (lambda s, x: F.dropout(s.weight * (x.float() * s.rms(x)).to(x.dtype), 0.3, s.training), None),
    "counts": (lambda s, x: setattr(s, "n", getattr(s, "n", 0) + 1) or s.weight * (x * s.rms(x)).to(x.dtype), None),
    "three dimensions": (lambda s, x: s.weight * (x * s.rms(x)).view(*[x.shape[i] for i in range(3)]), None),
    "half statistic": (
        lambda s, x: s.weight * x * (x.half().square().mean(-1, keepdim=True) + s.variance_epsilon).rsqrt(),
        None,
    ),
    "ValueError": (lambda s, x: s.weight * x.view(*x.shape[:2], 7, 3), None),
}  # fmt: skip


@pytest.mark.parametrize("name", NORMS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_a_norm_is_what_it_is_proven_to_be(name: str, dtype: torch.dtype) -> None:
    forward, want = NORMS[name]
    module = _norm(forward).to(dtype)
    before = snapshot(module)
    values = [p.clone() for p in module.parameters()]
    assert norms.rms_form(module) is want
    assert differences(before, snapshot(module)) == []
    assert all(torch.equal(p, v) and p.grad is None for p, v in zip(module.parameters(), values, strict=True))


def test_a_call_with_another_length_or_more_arguments_is_stocks() -> None:
    class Gating(RMS):
        def forward(self, x: Tensor, gate: Tensor | None = None) -> Tensor:
            y = (x.float() * self.rms(x)).to(x.dtype) * self.weight
            return y if gate is None else y * F.silu(gate)

    module = _named(Gating, "OddRMSNorm")(1)  # a weight of length 1 broadcasts, which is no norm of ours
    nn.init.constant_(module.weight, 3.0)
    x = torch.randn(2, 5, 8)
    want = [module(x), module(x, x), module(x=x)]
    with sgl_kernels.apply(module):
        have = [module(x), module(x, x), module(x=x)]
    assert all(torch.equal(h, w) for h, w in zip(have, want, strict=True))


def test_probes_see_nothing_of_the_surroundings_and_move_no_random_numbers() -> None:
    model, _ = tiny.llama()
    counts = []
    for surroundings in (
        torch.no_grad(), torch.inference_mode(), torch.autocast("cpu", torch.bfloat16), torch.device("meta"),
        torch.enable_grad(),
    ):  # fmt: skip
        proofs._offsets.clear()
        torch.manual_seed(7)
        state = torch.get_rng_state()
        with surroundings, sgl_kernels.record() as recorder:
            applied = sgl_kernels.apply(model)
        assert torch.equal(torch.get_rng_state(), state) and recorder.report().entries == ()
        counts.append((len(applied.norms), len(applied.linears)))
        applied.remove()
    assert len(set(counts)) == 1 and counts[0][0] == 5


def test_weights_that_are_not_plain_are_not_probed() -> None:
    class Quantised(nn.Parameter):
        pass

    forward, _ = NORMS["llama"]
    module = _norm(forward)
    module._parameters["weight"] = Quantised(torch.ones(16))
    assert norms.rms_form(module) is None


@torch.no_grad()
@pytest.mark.parametrize("act", ["gelu", "gelu_pytorch_tanh", "silu"])
def test_a_whole_model_in_half_precision_is_no_less_accurate(act: str) -> None:
    from transformers import CohereConfig, CohereModel

    torch.manual_seed(3)
    model = tiny.randomised(CohereModel(CohereConfig(**tiny._SMALL, hidden_act=act)))
    exact = model(input_ids=tiny.IDS).last_hidden_state
    half = copy.deepcopy(model).bfloat16()
    stock = half(input_ids=tiny.IDS).last_hidden_state
    with sgl_kernels.apply(half, attention=False) as applied:
        ours = half(input_ids=tiny.IDS).last_hidden_state
    assert any(name.endswith("mlp") for name in applied.linears) == (act == "silu")
    error, stock_error = ((y.float() - exact).norm() for y in (ours, stock))
    assert error <= 1.25 * stock_error


@torch.no_grad()
@pytest.mark.parametrize("family", ["falcon_mamba", "gemma3n_audio", "xlstm"])
def test_models_with_odd_norms_are_applied_and_equal_stock(family: str) -> None:
    import transformers as t

    if family == "falcon_mamba":
        model = t.FalconMambaModel(
            t.FalconMambaConfig(
                vocab_size=32, hidden_size=16, num_hidden_layers=2, state_size=2, intermediate_size=32
            )
        )
        inputs: dict[str, Any] = dict(input_ids=tiny.IDS)
    elif family == "xlstm":
        model = t.xLSTMModel(
            t.xLSTMConfig(
                vocab_size=32,
                hidden_size=128,
                embedding_dim=128,
                num_hidden_layers=1,
                num_blocks=1,
                num_heads=4,
            )
        )
        inputs = dict(input_ids=tiny.IDS)
    else:
        model = t.Gemma3nAudioEncoder(
            t.Gemma3nAudioConfig(
                hidden_size=32,
                conf_num_attention_heads=4,
                conf_num_hidden_layers=1,
                sscp_conv_channel_size=(16, 8),
            )
        )
        inputs = dict(audio_mel=tiny._r(1, 32, 128), audio_mel_mask=torch.zeros(1, 32, dtype=torch.bool))
    model = tiny.randomised(model)
    if family == "falcon_mamba":
        for name, parameter in model.named_parameters():
            if name.endswith("A_log"):
                parameter.abs_()
    want = model(**inputs)[0]
    with sgl_kernels.apply(model) as applied:
        have = model(**inputs)[0]
    assert len(applied.norms) >= 2
    assert torch.allclose(have, want, rtol=1e-4, atol=1e-4 * float(want.abs().max()))


@pytest.mark.parametrize("shape", [(0, 4, 3), (2, 4, 0), (0, 4)])
def test_gradients_of_norms_of_nothing_are_torchs(shape: tuple[int, ...]) -> None:
    norm = nn.GroupNorm(2, 4)
    grads = []
    for _ in range(2):
        x = torch.empty(shape, requires_grad=True)
        norm.zero_grad()
        norm(x).sum().backward()
        grads.append([x.grad, norm.weight.grad.clone(), norm.bias.grad.clone()])
        applied = sgl_kernels.apply(norm)
    applied.remove()
    for want, have in zip(*grads, strict=True):
        assert torch.equal(want.nan_to_num(), have.nan_to_num()) and want.shape == have.shape


@pytest.mark.parametrize(
    "name, cls, role",
    [("attn2", "Attention", "self"), ("cross_attn", "Attention", "cross"), ("crossattention", "BertAttention", "cross"),
     ("EncDecAttention", "T5Attention", "cross"), ("encoder_attn", "BartAttention", "cross"),
     ("across_frames", "AcrossAttention", "self"), ("attn", "BlipCrossAttention", "cross"),
     ("a.cross.attn", "A", "self")],
)  # fmt: skip
def test_the_role_of_a_layer_is_read_in_words(name: str, cls: str, role: str) -> None:
    module = type(cls, (nn.Module,), {})()
    assert role_of(name, module) == role
    module.is_cross_attention = role == "self"
    assert role_of(name, module) != role
