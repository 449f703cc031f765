"""The networks of the recipe, built from `settings`, and the token ids of a caption."""

from functools import cache

from diffusers import AutoencoderKL, UNet2DConditionModel
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from . import settings


def new_vae(scaling_factor=1.0):
    return AutoencoderKL(**settings.VAE, scaling_factor=scaling_factor)


def new_unet():
    return UNet2DConditionModel(**settings.UNET)


def new_text_encoder():
    return CLIPTextModel(CLIPTextConfig(**settings.TEXT))


@cache
def tokenizer():
    return CLIPTokenizer.from_pretrained(settings.MODEL / "tokenizer")


def token_ids(captions):
    """list of N texts → (N, 77) int64: start, the words, end, and ends up to 77"""
    return tokenizer()(list(captions), padding="max_length", max_length=settings.TOKENS, truncation=True,
                       return_tensors="np").input_ids
