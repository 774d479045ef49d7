"""How small the parts of a configuration are made: by the name of an attribute, and by the type of a model."""

from __future__ import annotations

from typing import Any

# The first pattern that matches the whole name of an integer attribute gives its value.
SIZES: tuple[tuple[str, int], ...] = (
    (r"(vocab_size|.*_vocab_size|encoder_hash_byte_group_vocab|num_embeddings)", 99),
    (r"(type_vocab_size|num_query_tokens|num_codebooks|num_quantizers|n_codebooks)", 4),
    (r"(num_key_value_heads|num_kv_heads|n_head_kv|.*num_key_value_heads)", 2),
    (
        r"(num_attention_heads|num_heads|n_head|n_heads|.*attention_heads|num_kv_shared_layers_|index_n_heads"
        r"|linear_num_(key_|value_)?heads|encoder_num_heads)",
        4,
    ),
    (r"(mamba_n_heads|mamba_num_heads)", 8),
    (r"(num_hidden_layers|num_layers|n_layer|n_layers|.*_layers|depth|layers|num_self_attends_per_block)", 2),
    (
        r"(head_dim|d_kv|kv_channels|global_head_dim|attention_head_size|qk_nope_head_dim|v_head_dim|d_head"
        r"|linear_(key_|value_)?head_dim|swa_head_dim|.*_head_dim|dim_head|mamba_d_head|mamba_head_dim)",
        8,
    ),
    (r"(rotary_dim|hidden_size_per_layer_input|laurel_rank|mamba_d_state|ssm_state_size)", 8),
    (r"(q_lora_rank|kv_lora_rank|o_lora_rank|mamba_chunk_size|chunk_size|state_size|block_size)", 16),
    (
        r"(hidden_size|d_model|n_embd|dim|embed_dim|embedding_size|word_embed_proj_dim|projection_dim"
        r"|.*_hidden_size|.*hidden_dim|emb_dim|embedding_dim|d_latents|output_dim|project_dim|.*_embed_dim)",
        32,
    ),
    (
        r"(intermediate_size|d_ff|ffn_dim|n_inner|.*_ffn_dim|.*intermediate_size|.*mlp_dim|ffn_hidden_size|d_inner"
        r"|dff|dim_ff|.*dim_feedforward|.*_linear_units|intermediate_size_mlp|.*feedforward_dim|.*intermediate_dim)",
        48,
    ),
    (
        r"(max_position_embeddings|n_positions|n_ctx|max_seq_len|max_.*_positions|max_text_len|max_.*embeddings)",
        64,
    ),
    (r"(num_experts|n_routed_experts|num_local_experts|moe_num_experts|index_topk|zero_expert_num)", 4),
    (r"(num_experts_per_tok|moe_k|moe_topk|num_selected_experts|num_experts_per_token|experts_per_token)", 2),
    (r"(n_group|num_expert_group)", 1),
    (r"topk_group", 1),
    (r"(image_size|pretrain_image_size)", 16),
    (r"patch_size", 4),
    (r"(sliding_window|attention_window_size|sliding_window_size|local_attention|attention_chunk_size)", 3),
    (r"(num_mel_bins|num_conv_pos_embeddings|num_conv_pos_embedding_groups)", 16),
    (r"(num_filters|upsample_groups|base_channels|latent_channels|output_channels)", 32),
    (r"(num_queries|two_stage_num_proposals)", 6),
    (
        r"(mask_feature_size|fpn_feature_size|conv_dim|mask_dim|.*_conv_channels|codevector_dim|.*codebook_dim)",
        32,
    ),
)
"""Sizes of integers."""

SPECIAL = {"pad_token_id": 1, "bos_token_id": 0, "eos_token_id": 2, "decoder_start_token_id": 2}
UNSET: dict[str, Any] = dict(
    vocab_size=99, n_routed_experts=4, num_experts_per_tok=2, image_token_id=95, image_token_index=95,
    mlp_layer_types=["dense", "sparse"],
)  # fmt: skip
"""What is None by default, and that some model cannot do without."""
ROPE: dict[str, Any] = {"rope_type": "default", "rope_theta": 10000.0}
RESNET: dict[str, Any] = dict(
    model_type="resnet", embedding_size=8, hidden_sizes=[8, 8, 16, 16], depths=[1, 1, 1, 1], out_features=["stage4"]
)  # fmt: skip
THREE = RESNET | {"out_features": ["stage2", "stage3", "stage4"]}
HGNET: dict[str, Any] = dict(
    model_type="hgnet_v2", stem_channels=[3, 8, 8], stage_in_channels=[8, 16, 16, 32], hidden_sizes=[16, 16, 32, 32],
    stage_mid_channels=[8, 8, 8, 16], stage_out_channels=[16, 16, 32, 32], stage_num_blocks=[1, 1, 1, 1],
    stage_numb_of_layers=[1, 1, 1, 1], depths=[1, 1, 1, 1], embedding_size=8,
    out_features=["stage2", "stage3", "stage4"],
)  # fmt: skip
RTDETR: dict[str, Any] = dict(
    model_type="rt_detr_resnet", embedding_size=8, hidden_sizes=[16, 16, 32, 32], depths=[1, 1, 1, 1],
    out_features=["stage2", "stage3", "stage4"],
)  # fmt: skip
DETECTION: dict[str, Any] = dict(
    backbone=None, use_timm_backbone=False, use_pretrained_backbone=False, backbone_config=RESNET, num_queries=4
)  # fmt: skip
ANCHORS: dict[str, Any] = dict(
    encoder_in_channels=[16, 32, 32], decoder_in_channels=[32, 32, 32], num_queries=6, num_denoising=0, d_model=32,
    encoder_hidden_dim=32, decoder_n_points=2, encoder_ffn_dim=48, decoder_ffn_dim=48,
)  # fmt: skip
SPEECH: dict[str, Any] = dict(
    conv_dim=(16, 16, 16), conv_kernel=(8, 3, 3), conv_stride=(4, 2, 2), num_feat_extract_layers=3,
    num_conv_pos_embeddings=16, num_conv_pos_embedding_groups=2, feat_extract_norm="group",
)  # fmt: skip
SERIES: dict[str, Any] = dict(prediction_length=4, context_length=12, lags_sequence=[1, 2])
TOKENIZER: dict[str, Any] = dict(downsampling_ratios=[2, 2], depths=[1, 1, 1], num_filters=8)

SPECIFIC: dict[str, dict[str, Any]] = {
    "detr": DETECTION,
    "table-transformer": DETECTION,
    "dab-detr": DETECTION,
    "conditional_detr": DETECTION,
    "deformable_detr": DETECTION | {"backbone_config": THREE},
    "d_fine": ANCHORS | {"backbone_config": HGNET, "decoder_layers": 2},
    "deimv2": ANCHORS | {"backbone_config": HGNET, "decoder_layers": 2},
    "rt_detr": ANCHORS | {"backbone_config": RTDETR},
    "rt_detr_v2": ANCHORS | {"backbone_config": RTDETR},
    "pp_doclayout_v2": ANCHORS
    | {"backbone_config": HGNET, "class_thresholds": [0.5] * 80, "class_order": list(range(80))},
    "pp_doclayout_v3": ANCHORS
    | {
        "backbone_config": HGNET | {"out_features": ["stage1", "stage2", "stage3", "stage4"]},
        "x4_feat_dim": 16,
        "num_prototypes": 8,
    },
    "gemma4_text": {
        "num_kv_shared_layers": 0,
        "hidden_size_per_layer_input": 8,
        "vocab_size_per_layer_input": 99,
    },
    "efficientnet": {"hidden_dim": 320, "width_coefficient": 0.25, "depth_coefficient": 0.4},
    "align_vision_model": {"hidden_dim": 320, "width_coefficient": 0.25, "depth_coefficient": 0.4},
    "informer": SERIES,
    "autoformer": SERIES,
    "time_series_transformer": SERIES,
    "bridgetower_vision_model": {"hidden_size": 64},
    "bridgetower_text_model": {"hidden_size": 64},
    "bridgetower": {"hidden_size": 64, "num_attention_heads": 4},
    "musicgen_decoder": {"num_codebooks": 1},
    "musicgen_melody_decoder": {"num_codebooks": 1},
    "swin": {"window_size": 2, "image_size": 64},
    "swinv2": {"window_size": 2, "image_size": 64},
    "maskformer-swin": {"window_size": 2, "image_size": 64},
    "led": {"attention_window": 4},
    "longformer": {"attention_window": 4},
    "chameleon": {"vocabulary_map": {"<image>": 5}},
    "emu3": {"vocabulary_map": {"<image>": 5}},
    "bamba": {"attn_layer_indices": [1]},
    "jamba": {"attn_layer_offset": 1, "attn_layer_period": 2},
    "granitemoehybrid": {"layer_types": ["mamba", "attention"]},
    "zamba": dict(
        attention_hidden_size=64,
        attention_head_dim=16,
        layers_block_type=["mamba", "hybrid", "hybrid"],
        num_hidden_layers=3,
    ),
    "zamba2": {
        "attention_hidden_size": 64,
        "attention_head_dim": 16,
        "layers_block_type": ["mamba", "hybrid"],
    },
    "align": {"projection_dim": 80},
    "layoutlmv3": {"coordinate_size": 6, "shape_size": 4},
    "lilt": {"hidden_size": 48, "channel_shrink_ratio": 4},
    "reformer": {
        "axial_pos_shape": [8, 8],
        "axial_pos_embds_dim": [16, 16],
        "num_buckets": 2,
        "is_decoder": True,
    },
    "sam_hq_vision_model": {"image_size": 64},
    "sam2_hiera_det_model": {
        "hidden_size": 16,
        "embed_dim_per_stage": [16, 32, 64, 128],
        "num_attention_heads": 1,
    },
    "muse_spark_text": {"moe_hidden_size": 32},
    "donut-swin": {"window_size": 2, "depths": [1, 1], "num_heads": [2, 2]},
    "vibevoice_acoustic_tokenizer_encoder": TOKENIZER,
    "vibevoice_acoustic_tokenizer_decoder": TOKENIZER,
    "lfm2_moe": {"layer_types": ["conv", "full_attention"]},
    "hunyuan_v1_dense": {"rope_parameters": ROPE},
    "gemma3n_text": {"num_kv_shared_layers": 0, "vocab_size_per_layer_input": 99},
    "gemma4_unified_text": {"num_kv_shared_layers": 0, "vocab_size_per_layer_input": 99},
    "dac": {"codebook_size": 64},
    "xlstm": dict(hidden_size=64, embedding_dim=64, chunk_size=64, qk_dim_factor=1.0),
    "codegen": {"rotary_dim": 4},
    "gptj": {"rotary_dim": 4},
    "encodec": {"num_filters": 8, "hidden_size": 32, "codebook_size": 32},
    "mamba2": dict(num_heads=8, head_dim=8, n_groups=2, state_size=16, chunk_size=8),
    "vjepa2": dict(crop_size=16, frames_per_clip=4),
    "xmod": {"default_language": "en_XX"},
    "bailing_hybrid": {"topk_group": 1},
    "cohere_compass_text": {"rope_parameters": dict.fromkeys(("full_attention", "sliding_attention"), ROPE)},
    "granite4_vision": dict(deepstack_layer_map=[[-1, 0]], spatial_target_layers=[0, 0, 0, 0]),
    "qwen4_exp_text": dict(
        indexer_n_heads=4, indexer_kv_heads=1, indexer_head_dim=8, indexer_budget=4, indexer_compress_ratio=2
    ),
    "bros": {"hidden_size": 128},
    "dbrx": {"attn_config": {"rope_theta": 10000.0, "kv_n_heads": 2, "clip_qkv": 8.0}},
    "mobilebert": dict(embedding_size=32, intra_bottleneck_size=32),
    "moonshine": dict(encoder_num_key_value_heads=4, decoder_num_key_value_heads=4),
    "mimi": {"vector_quantization_hidden_dimension": 32},
    "kosmos-2": {"latent_query_num": 3},
    "speech_to_text": dict(conv_channels=32, input_feat_per_channel=16),
    "recurrent_gemma": {"num_hidden_layers": 3},
    "pvt": {"image_size": 64},
    "markuplm": dict(max_xpath_tag_unit_embeddings=256, max_xpath_subs_unit_embeddings=1024),
    "nemotron": {"num_key_value_heads": 2},
    "step3p5": {"sliding_window": 3},
    "sam2_vision_model": {"backbone_channel_list": [128, 64, 32, 16]},
    "hubert": SPEECH,
    "wav2vec2": SPEECH,
    "wav2vec2-conformer": SPEECH,
    "unispeech": SPEECH,
    "unispeech-sat": SPEECH,
    "wavlm": SPEECH,
    "data2vec-audio": SPEECH,
    "sew": SPEECH,
    "sew-d": SPEECH,
}
"""What the configuration of a model type needs besides small sizes."""
