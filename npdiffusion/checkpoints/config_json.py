"""config.json of a model, as diffusers and transformers write it, from its sizes: the way back from models/configs.py."""
from npdiffusion.models.configs import MID_BLOCKS, TinyVAEConfig, UNetConfig, VAEConfig


def config(sizes):
    """config.json of a model of these sizes → dictionary"""
    def same(names):
        return {name: getattr(sizes, name) for name in names.split()}
    if isinstance(sizes, UNetConfig):
        return {"_class_name": "UNet2DConditionModel", "attention_head_dim": sizes.heads, **blocks(sizes),
                "mid_block_type": None if sizes.mid_depth is None else MID_BLOCKS[not sizes.mid_depth],
                "use_linear_projection": sizes.linear_projection, "only_cross_attention": sizes.only_cross_attention or False,
                "addition_embed_type": "text_time" if sizes.added_width else None,
                "addition_time_embed_dim": sizes.size_width, "projection_class_embeddings_input_dim": sizes.added_width,
                **same("sample_size in_channels out_channels block_out_channels layers_per_block cross_attention_dim "
                       "norm_num_groups norm_eps flip_sin_to_cos freq_shift time_cond_proj_dim")}
    if isinstance(sizes, VAEConfig):
        levels = len(sizes.block_out_channels)
        return {"_class_name": "AutoencoderKL", "down_block_types": ["DownEncoderBlock2D"] * levels,
                "up_block_types": ["UpDecoderBlock2D"] * levels,
                **same("sample_size latent_channels block_out_channels layers_per_block norm_num_groups scaling_factor")}
    if isinstance(sizes, TinyVAEConfig):
        return {"_class_name": "AutoencoderTiny", "encoder_block_out_channels": [sizes.channels] * len(sizes.encoder_blocks),
                "decoder_block_out_channels": [sizes.channels] * len(sizes.decoder_blocks),
                "num_encoder_blocks": sizes.encoder_blocks, "num_decoder_blocks": sizes.decoder_blocks,
                **same("latent_channels scaling_factor")}
    end = sizes.vocab_size - 1
    return {"architectures": ["CLIPTextModel"], "model_type": "clip_text_model", "bos_token_id": end - 1, "eos_token_id": end,
            "pad_token_id": end, **same("vocab_size hidden_size intermediate_size num_hidden_layers num_attention_heads "
                                        "max_position_embeddings layer_norm_eps hidden_act projection_dim")}


def blocks(sizes):
    """What a UNet's levels are made of; depths of transformers are left out where each is one block."""
    kinds = ["CrossAttn" if attends else "" for attends in sizes.cross_attention]
    found = {"down_block_types": [f"{kind}DownBlock2D" for kind in kinds],
             "up_block_types": [f"{kind}UpBlock2D" for kind in reversed(kinds)]}
    if sizes.down_depths is None and sizes.up_depths is None and sizes.mid_depth in (None, 0, 1):
        return found
    levels = range(len(sizes.block_out_channels))
    return found | {
        "transformer_layers_per_block": [sizes.depths(level) if sizes.cross_attention[level] else sizes.mid_depth or 1
                                         for level in levels],
        "reverse_transformer_layers_per_block": [sizes.depths(level, up=True) for level in reversed(levels)]}
