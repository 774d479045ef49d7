"""Tiny random models of the families the integrations promise to serve, with inputs for each."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

Made = tuple[nn.Module, Callable[[nn.Module], Tensor]]


def randomised(model: nn.Module, seed: int = 0) -> nn.Module:
    """Every parameter drawn anew: fresh models have zero gates and unit norms, which hide mistakes."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            if parameter.ndim == 0 or not parameter.numel():
                continue
            if parameter.ndim == 1:
                parameter.copy_(noise * 0.2 + (1.0 if name.endswith("weight") else 0.0))
            else:
                parameter.copy_(noise / max(1, parameter[0].numel()) ** 0.5)
    return model.eval()


def _r(*shape: int, seed: int = 1) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def flux() -> Made:
    from diffusers import FluxTransformer2DModel

    model = FluxTransformer2DModel(
        in_channels=16, num_layers=1, num_single_layers=1, attention_head_dim=16, num_attention_heads=2,
        joint_attention_dim=24, pooled_projection_dim=20, guidance_embeds=False, axes_dims_rope=(4, 6, 6),
    )  # fmt: skip
    inputs = dict(
        hidden_states=_r(2, 16, 16), encoder_hidden_states=_r(2, 7, 24), pooled_projections=_r(2, 20),
        timestep=torch.tensor([0.5, 0.9]), img_ids=torch.arange(48.0).reshape(16, 3) % 4, txt_ids=torch.zeros(7, 3),
    )  # fmt: skip
    return randomised(model), lambda m: m(**inputs, return_dict=False)[0]


def wan() -> Made:
    from diffusers import WanTransformer3DModel

    model = WanTransformer3DModel(
        patch_size=(1, 2, 2), num_attention_heads=2, attention_head_dim=12, in_channels=4, out_channels=4,
        text_dim=16, freq_dim=32, ffn_dim=32, num_layers=2, cross_attn_norm=True, rope_max_seq_len=32,
    )  # fmt: skip
    x, t, text = _r(2, 4, 2, 8, 8), torch.tensor([10, 500]), _r(2, 9, 16)
    return randomised(model), lambda m: m(x, t, text, return_dict=False)[0]


def sd3() -> Made:
    from diffusers import SD3Transformer2DModel

    model = SD3Transformer2DModel(
        sample_size=8, patch_size=2, in_channels=4, num_layers=2, attention_head_dim=8, num_attention_heads=4,
        joint_attention_dim=24, caption_projection_dim=32, pooled_projection_dim=20, out_channels=4,
        pos_embed_max_size=8, qk_norm="rms_norm", dual_attention_layers=(0,),
    )  # fmt: skip
    x, text, pooled, t = _r(2, 4, 8, 8), _r(2, 7, 24), _r(2, 20), torch.tensor([3, 900])
    return randomised(model), lambda m: m(x, text, pooled, t, return_dict=False)[0]


def qwen_image() -> Made:
    from diffusers import QwenImageTransformer2DModel

    model = QwenImageTransformer2DModel(
        patch_size=2, in_channels=16, out_channels=4, num_layers=2, attention_head_dim=16, num_attention_heads=3,
        joint_attention_dim=16, axes_dims_rope=(4, 6, 6),
    )  # fmt: skip
    keep = torch.ones(2, 7, dtype=torch.bool)
    keep[1, 4:] = False
    inputs = dict(
        hidden_states=_r(2, 16, 16), encoder_hidden_states=_r(2, 7, 16), encoder_hidden_states_mask=keep,
        timestep=torch.tensor([0.3, 0.9]), img_shapes=[[(1, 4, 4)], [(1, 4, 4)]],
    )  # fmt: skip
    return randomised(model), lambda m: m(**inputs, return_dict=False)[0]


def dit() -> Made:
    from diffusers import DiTTransformer2DModel

    model = DiTTransformer2DModel(
        num_attention_heads=2, attention_head_dim=16, in_channels=1, out_channels=1, num_layers=2, sample_size=14,
        patch_size=2, num_embeds_ada_norm=10, norm_num_groups=1,
    )  # fmt: skip
    x, t, y = _r(3, 1, 14, 14), torch.tensor([1, 40, 900]), torch.tensor([0, 3, 10])
    return randomised(model), lambda m: m(x, timestep=t, class_labels=y, return_dict=False)[0]


def vae() -> Made:
    from diffusers import AutoencoderKL

    model = AutoencoderKL(
        in_channels=3, out_channels=3, block_out_channels=(8, 16), layers_per_block=1, latent_channels=4,
        norm_num_groups=4, down_block_types=("DownEncoderBlock2D",) * 2, up_block_types=("UpDecoderBlock2D",) * 2,
    )  # fmt: skip
    x = _r(2, 3, 16, 16)
    return randomised(model), lambda m: m(x, return_dict=False)[0]


def unet() -> Made:
    from diffusers import UNet2DConditionModel

    model = UNet2DConditionModel(
        sample_size=8, in_channels=4, out_channels=4, block_out_channels=(8, 16), layers_per_block=1,
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"), up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        cross_attention_dim=12, attention_head_dim=4, norm_num_groups=4,
    )  # fmt: skip
    x, text = _r(2, 4, 8, 8), _r(2, 7, 12)
    keep = torch.ones(2, 7, dtype=torch.bool)
    keep[1, 3:] = False
    return randomised(model), lambda m: m(x, 7, text, encoder_attention_mask=keep, return_dict=False)[0]


IDS = torch.tensor([[5, 6, 7, 8, 9, 10, 11], [12, 13, 14, 0, 0, 0, 0]])
PADDING = (IDS != 0).long()
_SMALL: dict[str, Any] = dict(
    vocab_size=32, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
    max_position_embeddings=64, pad_token_id=0,
)  # fmt: skip


def llama() -> Made:
    from transformers import LlamaConfig, LlamaForCausalLM

    model = LlamaForCausalLM(LlamaConfig(**_SMALL, num_key_value_heads=2))
    keep = PADDING.bool()[..., None]
    return randomised(model), lambda m: m(input_ids=IDS, attention_mask=PADDING).logits * keep


def gemma2() -> Made:
    from transformers import Gemma2Config, Gemma2ForCausalLM

    model = Gemma2ForCausalLM(
        Gemma2Config(
            **_SMALL, num_key_value_heads=2, head_dim=8, sliding_window=3, attn_logit_softcapping=5.0,
            query_pre_attn_scalar=16, attn_implementation="eager",
        )
    )  # fmt: skip
    keep = PADDING.bool()[..., None]
    return randomised(model), lambda m: m(input_ids=IDS, attention_mask=PADDING).logits * keep


def bert() -> Made:
    from transformers import BertConfig, BertModel

    model = BertModel(BertConfig(**_SMALL))
    keep = PADDING.bool()[..., None]
    return randomised(model), lambda m: m(input_ids=IDS, attention_mask=PADDING).last_hidden_state * keep


def clip() -> Made:
    from transformers import CLIPConfig, CLIPModel

    text = {k: v for k, v in _SMALL.items() if k != "pad_token_id"} | {"eos_token_id": 2, "bos_token_id": 1}
    vision = dict(
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        image_size=8,
        patch_size=4,
    )
    model = CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=16))
    image = _r(2, 3, 8, 8)

    def run(m: nn.Module) -> Tensor:
        out = m(input_ids=IDS, pixel_values=image, attention_mask=PADDING)
        return torch.cat([out.text_embeds, out.image_embeds])

    return randomised(model), run


def t5() -> Made:
    from transformers import T5Config, T5EncoderModel

    model = T5EncoderModel(
        T5Config(vocab_size=32, d_model=32, d_kv=8, d_ff=48, num_layers=2, num_heads=4, pad_token_id=0)
    )
    keep = PADDING.bool()[..., None]
    return randomised(model), lambda m: m(input_ids=IDS, attention_mask=PADDING).last_hidden_state * keep


DIFFUSERS = {f.__name__: f for f in (flux, wan, sd3, qwen_image, dit, vae, unet)}
TRANSFORMERS = {f.__name__: f for f in (llama, gemma2, bert, clip, t5)}
MODELS = DIFFUSERS | TRANSFORMERS
