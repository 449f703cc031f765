"""Configurations of the families' UNets and text encoders: as published (FULL), and tiny ones on which mistakes show.

Tiny ones have another width at each level where that matters, different depths per layer, and three levels, so that the
middle one differs from both ends.
"""
from tests import references

D, C, U, V = "DownBlock2D", "CrossAttnDownBlock2D", "UpBlock2D", "CrossAttnUpBlock2D"


def blocks(down):
    """`down_block_types` and what mirrors them"""
    return {"down_block_types": down, "up_block_types": tuple({D: U, C: V}[kind] for kind in reversed(down))}


ADDED = dict(addition_embed_type="text_time", addition_time_embed_dim=256, projection_class_embeddings_input_dim=2816)
SD2 = dict(attention_head_dim=(5, 10, 20, 20), cross_attention_dim=1024, use_linear_projection=True)
XL = dict(sample_size=128, block_out_channels=(320, 640, 1280), layers_per_block=2, cross_attention_dim=2048,
          attention_head_dim=(5, 10, 20), use_linear_projection=True, transformer_layers_per_block=(1, 2, 10), **ADDED,
          **blocks((D, C, C)))
SMALL = dict(layers_per_block=1, cross_attention_dim=768, attention_head_dim=8, sample_size=64)
KOALA = XL | dict(layers_per_block=1, transformer_layers_per_block=(0, 2, 5), mid_block_type=None)

FULL = {              # name: (configuration, parameters, tensors)
    "SD v1": (references.FULL_UNET, 859_520_964, 686),
    "SD 2": (references.FULL_UNET | SD2, 865_910_724, 686),
    "SDXL": (XL, 2_567_463_684, 1680),
    "SDXL refiner": (XL | ADDED | dict(
        block_out_channels=(384, 768, 1536, 1536), attention_head_dim=(6, 12, 24, 24), cross_attention_dim=1280,
        transformer_layers_per_block=4, projection_class_embeddings_input_dim=2560, **blocks((D, C, C, D))),
                     2_259_526_660, 1220),
    "SSD-1B": (XL | dict(mid_block_type="UNetMidBlock2D", transformer_layers_per_block=(1, (2, 2), (4, 4)),
                         reverse_transformer_layers_per_block=((4, 4, 10), (2, 1, 1), 1)), 1_331_334_404, 944),
    "Segmind-Vega": (XL | dict(mid_block_type="UNetMidBlock2D", transformer_layers_per_block=(1, (1, 1), (2, 2)),
                               reverse_transformer_layers_per_block=((2, 2, 2), (1, 1, 1), 1)), 745_225_604, 564),
    "KOALA-700M": (KOALA, 782_822_724, 584),
    "KOALA-1B": (KOALA | dict(transformer_layers_per_block=(0, 2, 6), mid_block_type="UNetMidBlock2DCrossAttn"),
                 1_161_184_324, 790),
    "BK-SDM base": (SMALL | dict(block_out_channels=(320, 640, 1280, 1280), **blocks((C, C, C, D))), 579_384_964, 442),
    "BK-SDM small": (SMALL | dict(block_out_channels=(320, 640, 1280, 1280), mid_block_type=None, **blocks((C, C, C, D))),
                     482_346_884, 396),
    "BK-SDM tiny": (SMALL | dict(block_out_channels=(320, 640, 1280), mid_block_type=None, **blocks((C, C, C))),
                    323_384_964, 358),
    "SDXS-512-DreamShaper": (SMALL | dict(block_out_channels=(320, 640, 1280), mid_block_type=None, **blocks((D, C, C))),
                             315_746_244, 280),
    "SDXS-512-0.9": (SMALL | SD2 | dict(
        block_out_channels=(320, 640, 1280), attention_head_dim=(5, 10, 20), mid_block_type=None,
        only_cross_attention=(True, False, False), **blocks((C, C, C))), 328_177_284, 358),
}

TINY_ADDED = dict(addition_embed_type="text_time", addition_time_embed_dim=8, projection_class_embeddings_input_dim=80)
THREE = dict(sample_size=8, norm_num_groups=8, block_out_channels=(32, 64, 96), layers_per_block=2, cross_attention_dim=56)
TINY_XL = THREE | TINY_ADDED | dict(attention_head_dim=(2, 4, 6), use_linear_projection=True,
                                    transformer_layers_per_block=(1, 2, 3), **blocks((D, C, C)))
TINY_SMALL = THREE | dict(layers_per_block=1, attention_head_dim=4)
TINY = {
    "SD 2": THREE | dict(attention_head_dim=(2, 4, 6), use_linear_projection=True, **blocks((C, C, D))),
    "SDXL": TINY_XL,
    "SDXL refiner": TINY_XL | dict(block_out_channels=(32, 64, 96, 96), attention_head_dim=(2, 4, 6, 6),
                                   transformer_layers_per_block=2, projection_class_embeddings_input_dim=72,
                                   **blocks((D, C, C, D))),
    "SSD-1B": TINY_XL | dict(mid_block_type="UNetMidBlock2D", transformer_layers_per_block=(1, (2, 2), (4, 3)),
                             reverse_transformer_layers_per_block=((4, 3, 5), (2, 1, 1), 1)),
    "KOALA-700M": TINY_XL | dict(layers_per_block=1, transformer_layers_per_block=(0, 2, 3), mid_block_type=None),
    "BK-SDM base": TINY_SMALL | blocks((C, C, D)),
    "BK-SDM small": TINY_SMALL | dict(mid_block_type=None, **blocks((C, C, D))),
    "BK-SDM tiny": TINY_SMALL | dict(mid_block_type=None, **blocks((C, C, C))),
    "SDXS-512-DreamShaper": TINY_SMALL | dict(mid_block_type=None, **blocks((D, C, C))),
    "SDXS-512-0.9": TINY_SMALL | dict(mid_block_type=None, only_cross_attention=(True, False, False),
                                      attention_head_dim=(2, 4, 6), use_linear_projection=True, **blocks((C, C, C))),
}
