"""ControlNets of diffusers, tiny and random, and a picture that leads."""
import numpy as np
import torch
from diffusers import ControlNetModel as TorchControlNet
from PIL import Image

from tests import references

UNET = {key: value for key, value in references.TINY_UNET.items() if key not in ("sample_size", "up_block_types")}
HINT = (8, 12, 16)     # two convolutions that halve, as the tiny VAE does


def torch_controlnet(seed=5, hint=HINT, **settings):
    torch.manual_seed(seed)
    made = references.make_demanding(TorchControlNet(**UNET | settings, conditioning_embedding_out_channels=hint), seed)
    with torch.no_grad():                    # zeros otherwise: a random one would do nothing
        for each in (*made.controlnet_down_blocks, made.controlnet_mid_block, made.controlnet_cond_embedding.conv_out):
            each.weight.copy_(0.3 * torch.randn(each.weight.shape) / each.weight.shape[1] ** 0.5)
    return made


def picture():
    return Image.fromarray(np.random.default_rng(3).integers(0, 256, (32, 48, 3), dtype=np.uint8))
