"""The IP-Adapter of a pipeline: pictures that stand in its prompts, see models/ip_adapter.py."""
import pathlib
from typing import Any

import numpy as np

from npdiffusion.checkpoints.ip_adapters import find_encoder, open_encoder, open_ip_adapter
from npdiffusion.models.diagnosis import finite
from npdiffusion.models.ip_adapter import ImagePrompt
from npdiffusion.pictures.clip_pixels import clip_pixels
from npdiffusion.pictures.images import rgb


class ImagePrompts:
    """An IP-Adapter, its image encoder, and what it adds to each cross-attention of a pipeline's UNet

    path: the adapter's file      encoder: its image encoder, or None for the one beside it or in the model's folder
    """
    def __init__(self, path: Any, encoder: Any, pipeline: Any) -> None:
        adapter = open_ip_adapter(path, pipeline.unet, pipeline.family)
        folder = pathlib.Path(str(pipeline.source)).expanduser()
        part = open_encoder(find_encoder(encoder, path, folder), adapter.model.image_proj)
        for each in adapter, part:
            each.fill(pipeline.adapters.dtype)
        self.adapter, self.encoder = adapter.model, part.model
        self.layers = self.adapter.layers(pipeline.unet)


def image_prompts(prompts: ImagePrompts | None, resolved: Any) -> list[ImagePrompt]:
    """What the UNet attends to beside the words → [ImagePrompt]      prompts: `ImagePrompts` or None; resolved: a Resolved"""
    if prompts is None:
        return []
    request, side = resolved.request, prompts.encoder.config.image_size
    pixels = clip_pixels(rgb(request.ip_image, "ip_image"), side)
    tokens = finite(prompts.adapter, "ip_adapter", prompts.encoder, pixels, method="tokens")
    halves = reversed(tokens[:1 + (resolved.guidance > 1)])              # the negative one comes first
    tokens = np.concatenate([np.repeat(half, request.count, axis=0) for half in halves])
    return [ImagePrompt(prompts.layers, tokens, request.value("ip_scale"))]
