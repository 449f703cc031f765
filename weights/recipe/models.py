"""The networks of the recipe, built from `settings`, and the token ids of a caption."""

from functools import cache

import numpy as np

from npdiffusion.models.clip import CLIPTextModel
from npdiffusion.models.configs import CLIPTextConfig, UNetConfig, VAEConfig
from npdiffusion.models.unet import UNet2DConditionModel
from npdiffusion.models.vae import AutoencoderKL
from npdiffusion.text.tokenizer import CLIPTokenizer

from . import settings


def new_vae(scaling_factor=1.0):
    return AutoencoderKL(VAEConfig.from_dict(settings.VAE | dict(scaling_factor=scaling_factor)))


def new_unet():
    return UNet2DConditionModel(UNetConfig.from_dict(settings.UNET))


def new_text_encoder():
    return CLIPTextModel(CLIPTextConfig.from_dict(settings.TEXT))


@cache
def tokenizer():
    return CLIPTokenizer.from_folder(settings.MODEL / "tokenizer")


def token_ids(captions):
    """list of N texts → (N, 77) integers: start, the words, end, and ends up to 77"""
    return np.stack([tokenizer().encode(caption) for caption in captions])
