"""CLIP's image encoder (Radford et al. 2021, arXiv:2103.00020): a vision transformer (Dosovitskiy et al. 2021, 2010.11929).

    x = [class_embedding, patches W] + position_embedding, then pre_layrnorm (which transformers spells so)
    x = x + attention(layer_norm1(x));  x = x + mlp(layer_norm2(x))        in each layer, where all tokens see each other
    image embedding = visual_projection(post_layernorm(x at the class token))

IP-Adapters read it: ViT-H/14 has 32 layers of width 1280, bigG 48 of 1664. N pictures of S × S pixels (224), patches of p × p
(14), T = 1 + (S/p)² tokens, C channels, P numbers of the embedding; float32.
"""
from dataclasses import dataclass
from typing import Any

import numpy as np

from npdiffusion.kernels.arrays import Array
from npdiffusion.models import expected
from npdiffusion.models.clip import CLIPEncoder
from npdiffusion.models.configs import LARGEST, Reader
from npdiffusion.models.layers import Conv2d, Embedding, LayerNorm, Linear
from npdiffusion.models.tree import Module

LARGEST_IMAGE = 2048


@dataclass(frozen=True)
class CLIPVisionConfig:
    """Sizes of an image encoder; ViT-H/14's by default."""
    hidden_size: int = 1280
    intermediate_size: int = 5120
    num_hidden_layers: int = 32
    num_attention_heads: int = 16
    image_size: int = 224
    patch_size: int = 14
    projection_dim: int = 1024
    layer_norm_eps: float = 1e-5
    hidden_act: str = "gelu"

    @classmethod
    def from_dict(cls, settings: dict[str, Any], source: Any = "image_encoder/config.json") -> "CLIPVisionConfig":
        read = Reader(settings, source)
        largest = {"num_hidden_layers": LARGEST["layers"], "image_size": LARGEST_IMAGE, "patch_size": LARGEST_IMAGE,
                   "intermediate_size": 4 * LARGEST["channels"]}
        config = cls(layer_norm_eps=read.number("layer_norm_eps", cls.layer_norm_eps),
                     hidden_act=read.settings.get("hidden_act", "quick_gelu"),
                     **{name: read.integer(name, getattr(cls, name), largest.get(name, LARGEST["channels"])) for name in (
                         "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "image_size",
                         "patch_size", "projection_dim")})
        if config.hidden_act not in ("quick_gelu", "gelu"):
            read.fail("hidden_act", "only quick_gelu and gelu are known")
        read.divisible("num_attention_heads", [config.hidden_size], config.num_attention_heads)
        read.divisible("patch_size", [config.image_size], config.patch_size)
        return config


class CLIPVisionEmbeddings(Module):
    """Pixels (N, S, S, 3) → (N, T, C)"""
    def __init__(self, config: CLIPVisionConfig) -> None:
        self.class_embedding = np.zeros(config.hidden_size, np.float32)
        self.patch_embedding = Conv2d(3, config.hidden_size, config.patch_size, config.patch_size, (0, 0, 0, 0), bias=False)
        self.position_embedding = Embedding((config.image_size // config.patch_size) ** 2 + 1, config.hidden_size)

    def __call__(self, pixels: Array) -> Array:
        patches = self.patch_embedding(pixels)
        patches = patches.reshape(len(patches), -1, patches.shape[-1])
        first = np.broadcast_to(self.class_embedding, (len(patches), 1, patches.shape[-1]))
        tokens = np.concatenate([first, patches], axis=1)
        return tokens + self.position_embedding(np.arange(tokens.shape[1]))


class CLIPVisionTransformer(Module):
    """Pixels (N, S, S, 3) → a list: the embeddings after their norm, then every layer's output, (N, T, C)"""
    def __init__(self, config: CLIPVisionConfig) -> None:
        self.embeddings = CLIPVisionEmbeddings(config)
        self.pre_layrnorm = LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.encoder = CLIPEncoder(config, causal=False)
        self.post_layernorm = LayerNorm(config.hidden_size, eps=config.layer_norm_eps)

    def __call__(self, pixels: Array) -> list[Array]:
        return self.encoder(self.pre_layrnorm(self.embeddings(pixels)))


class CLIPVisionModelWithProjection(Module):
    """Pixels (N, S, S, 3), float32, normalised (pictures/clip_pixels.py) → image embeddings (N, P)"""
    def __init__(self, config: CLIPVisionConfig) -> None:
        self.config = config
        self.vision_model = CLIPVisionTransformer(config)
        self.visual_projection = Linear(config.hidden_size, config.projection_dim, bias=False)

    def __call__(self, pixels: Array) -> Array:
        return self.visual_projection(self.vision_model.post_layernorm(self.hidden_states(pixels)[-1][:, 0]))

    def hidden_states(self, pixels: Array) -> list[Array]:
        """A list: the embeddings, then every layer's output, (N, T, C); [-2] is the penultimate"""
        expected.pictures(pixels, "pictures", 3)
        return self.vision_model(pixels)
