"""What a picture is going to be, while it is being made: x̂₀, what the denoiser makes of each noisy state, as pixels.

    linear   RGB = z W + b for each latent pixel z, enlarged       takes no time
    taesd    the tiny autoencoder decodes, see taesd.py            takes some percent of a step
    vae      the model's own autoencoder decodes                   takes as long as a step, or longer

That four numbers nearly are a colour was found by "keturn" in 2022 (discuss.huggingface.co/t/23204), whose W for the
autoencoder of Stable Diffusion v1 is used for it; W and b for XL's are those of stable-diffusion.cpp. Any other is asked
itself, TAESD too, which may be either's: it decodes a few fields of random colours, and W and b are the least-squares fit.

N pictures, h × w latent pixels, C channels of latents, f pixels in each direction for a latent pixel.
"""
import functools
import os
from collections.abc import Callable
from typing import Any

import numpy as np
from PIL import Image

from npdiffusion.errors import UserError, nearest
from npdiffusion.memory import tiles
from npdiffusion.models.configs import XL_FACTOR, VAEConfig
from npdiffusion.pictures.images import look_into, replace_png, save_png, to_images
from npdiffusion.pictures.sheets import sheet
from npdiffusion.settings.run import PREVIEWS

V1_WEIGHTS = np.array([[0.298, 0.207, 0.208], [0.187, 0.286, 0.173], [-0.158, 0.189, 0.264], [-0.184, -0.271, -0.473]],
                      np.float32)                        # (C, 3), to values in [−1, 1]
XL_WEIGHTS = np.array([[0.2583, 0.2776, 0.3297], [-0.2997, 0.1054, 0.0142], [0.0505, 0.1862, -0.1433],
                       [-0.2119, -0.1499, -0.0800]], np.float32)
XL_OFFSET = np.array([0.1444, -0.0333, 0.0071], np.float32)
KNOWN = {VAEConfig.scaling_factor: (V1_WEIGHTS, 0), XL_FACTOR: (XL_WEIGHTS, XL_OFFSET)}      # by the factor of the latents
MARK = "npdiffusion preview"                             # a text inside each preview that is written
FIELDS, FIELD = 64, 6                                    # how many colours the fit sees, and latent pixels of each side


class Previews:
    """To be given to `generate` as `preview`: keeps and writes a picture of x̂₀ every few steps.

    kind    one of PREVIEWS     vae: the autoencoder of the model, or TAESD for "taesd"
    path    a PNG file that is written anew each time, all at once; None writes none
    every   how many steps there are from one to the next; the last step has one as well
    strip   a PNG file for all of them as one sheet after the last step; a file that is there already stays, and the
            sheet gets the next free name, which is `saved_strip`
    tile    from (width, height) of a picture to the size of the tiles in which `vae` decodes it, see memory/tiles.py
    images, steps   what was made since step 1, of the first picture of a batch, and after which steps
    """
    def __init__(self, kind: str, vae: Any, path: str | os.PathLike[str] | None = None, every: int = 1,
                 strip: str | os.PathLike[str] | None = None, tile: Callable[[int, int], int | None] | None = None) -> None:
        if kind not in PREVIEWS:
            raise UserError(f"preview is {kind!r}: {nearest(kind, PREVIEWS)}known are {', '.join(PREVIEWS)}")
        if every < 1:
            raise UserError(f"preview_every is {every}: it must be 1 or more")
        self.decode = Linear(vae) if kind == "linear" else Decoder(vae, tile)
        self.path, self.every, self.strip, self.saved_strip = path, every, strip, None
        self.images, self.steps = [], []

    def __call__(self, step: int, steps: int, x0: np.ndarray) -> None:       # x0: (N, h, w, C)
        if step == 1:
            self.images, self.steps = [], []
        if step % self.every and step != steps:
            return
        image, = to_images(np.nan_to_num(self.decode(x0[:1])))
        self.images.append(image)
        self.steps.append(step)
        if self.path is not None:
            replace_png(image, self.path, MARK)
        if self.strip is not None and step == steps:
            self.saved_strip = save_png(sheet(self.images, [f"step {number}" for number in self.steps]), self.strip)


def is_preview(path: str | os.PathLike[str]) -> bool:
    """Whether a file is a preview of an earlier run, which may be written anew."""
    try:
        with look_into(path) as image:
            return image.info.get(MARK) is not None
    except UserError:
        return False


class Decoder:
    """Latents (N, h, w, C) → images (N, f·h, f·w, 3), about [−1, 1]"""
    def __init__(self, vae: Any, tile: Callable[[int, int], int | None] | None = None) -> None:
        self.vae, self.tile = vae, tile or functools.partial(tiles.choose, vae.config)

    def __call__(self, latents: np.ndarray) -> np.ndarray:
        f = self.vae.config.reduction
        return self.vae.decode(latents, self.tile(f * latents.shape[2], f * latents.shape[1]))


class Linear:
    """Latents (N, h, w, C) → images (N, f·h, f·w, 3), about [−1, 1]"""
    def __init__(self, vae: Any) -> None:
        self.reduction = vae.config.reduction
        self.weights, self.offset = known(vae.config) or fit(vae)

    def __call__(self, latents: np.ndarray) -> np.ndarray:
        colours = np.clip(latents @ self.weights + self.offset, -1, 1)
        size = latents.shape[2] * self.reduction, latents.shape[1] * self.reduction
        return np.stack([np.stack([np.asarray(Image.fromarray(channel).resize(size, Image.Resampling.BICUBIC))
                                   for channel in np.moveaxis(image, -1, 0)], axis=-1) for image in colours])


def known(config: Any) -> tuple[np.ndarray, Any] | None:
    """W and b of Stable Diffusion's autoencoders and those of their kind: fine-tuned ones have the same latents; or None"""
    if isinstance(config, VAEConfig) and config.block_out_channels == VAEConfig.block_out_channels:
        return KNOWN.get(config.scaling_factor)
    return None


def fit(vae: Any) -> tuple[np.ndarray, np.ndarray]:
    """W (C, 3) and b (3,) with least squares of z W + b − RGB, for fields of one colour as they are decoded.

    The z are normal, as latents are on average. Only the middle of a field counts, which sees no edge.
    """
    z = np.random.default_rng(0).standard_normal((FIELDS, 1, 1, vae.config.latent_channels)).astype(np.float32)
    f = vae.config.reduction
    middle = slice(f * (FIELD // 2 - 1), f * (FIELD // 2 + 1))
    fields = np.broadcast_to(z, (FIELDS, FIELD, FIELD, z.shape[-1]))
    colours = vae.decode(fields)[:, middle, middle].mean(axis=(1, 2))
    known = np.concatenate([z[:, 0, 0], np.ones((FIELDS, 1), np.float32)], axis=1)
    solution = np.linalg.lstsq(known, np.clip(colours, -1, 1), rcond=None)[0].astype(np.float32)
    return solution[:-1], solution[-1]
