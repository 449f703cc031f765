"""The IP-Adapters of a pipeline: pictures that stand in its prompts, see models/ip_adapter.py."""
from collections.abc import Mapping
from typing import Any

import numpy as np

from npdiffusion.errors import UserError
from npdiffusion.models.diagnosis import finite
from npdiffusion.models.ip_adapter import ImagePrompt
from npdiffusion.pictures.clip_pixels import clip_pixels
from npdiffusion.pictures.images import rgb
from npdiffusion.settings import several


class ImagePrompts:
    """IP-Adapters, the image encoder that all of them read, and what each adds to the cross-attentions of a UNet

    parts: as by `checkpoints.ip_adapters.open_ip_adapters`
    """
    def __init__(self, parts: Mapping[str, Any], unet: Any) -> None:
        self.adapters = [part.model for name, part in parts.items() if name.startswith("ip_adapter")]
        self.encoder = parts["image_encoder"].model
        self.layers = [adapter.layers(unet) for adapter in self.adapters]


def check(request: Any, adapters: int) -> None:
    """UserError unless each of so many IP-Adapters has its picture, and its scale, if there isn't one for all"""
    pictures, scales = len(request.ip_image or ()), len(several(request, "ip_scale"))
    if pictures != adapters and adapters and pictures:
        raise UserError(f"ip_image: there are {pictures} for {adapters} IP-Adapters; name one for each, in their order")
    if pictures and scales not in (1, adapters):
        raise UserError(f"ip_scale: there are {scales} for {adapters} IP-Adapters; name one for all, or one for each")


def image_prompts(prompts: ImagePrompts | None, resolved: Any) -> list[ImagePrompt]:
    """What the UNet attends to beside the words → [ImagePrompt]      prompts: `ImagePrompts` or None; resolved: a Resolved"""
    if prompts is None:
        return []
    request, found = resolved.request, []
    scales = several(request, "ip_scale")
    scales = scales if len(scales) == len(prompts.adapters) else scales * len(prompts.adapters)
    for adapter, layers, image, scale in zip(prompts.adapters, prompts.layers, request.ip_image, scales, strict=True):
        pixels = clip_pixels(rgb(image, "ip_image"), prompts.encoder.config.image_size)
        tokens = finite(adapter, "ip_adapter", prompts.encoder, pixels, method="tokens")
        halves = reversed(tokens[:1 + (resolved.guidance > 1)])          # the negative one comes first
        tokens = np.concatenate([np.repeat(half, request.count, axis=0) for half in halves])
        found.append(ImagePrompt(layers, tokens, scale))
    return found
