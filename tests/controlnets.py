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
    wake(made)
    return made


@torch.no_grad()
def wake(made):
    """Numbers in the zero convolutions: a random ControlNet does nothing otherwise"""
    for each in (*made.controlnet_down_blocks, made.controlnet_mid_block, made.controlnet_cond_embedding.conv_out):
        each.weight.copy_(0.3 * torch.randn(each.weight.shape) / each.weight.shape[1] ** 0.5)


def picture(seed=3, width=48, height=32):
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8))


def mask():
    return Image.fromarray(np.where(np.arange(48) < 24, 0, 255).astype(np.uint8)[None].repeat(32, axis=0))
