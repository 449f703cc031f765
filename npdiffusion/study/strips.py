"""The way of a picture, as pictures: from noise to it (filmstrip), and from it to noise (forward_process).

    filmstrip          x_t, the state after each step, and x̂₀, what the denoiser sees in it
    forward_process    x_t = √ᾱ_t x₀ + √(1 − ᾱ_t) ε      Ho et al. 2020, arXiv:2006.11239, equation 4
"""
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from PIL import Image

from npdiffusion.diffusion.schedules import NoiseSchedule
from npdiffusion.errors import UserError
from npdiffusion.pictures.images import rgb, to_images
from npdiffusion.pictures.preview import Decoder, Linear
from npdiffusion.pictures.sheets import sheet
from npdiffusion.study.making import finished, make, resolved_for

MOST_FRAMES = 50
LARGEST = 256                 # pixels a side up to which the autoencoder decodes frames; beyond, the linear preview does


@dataclass
class Film:
    """What `filmstrip` found: a frame for each of `steps`. states, x0: latents (h, w, C); the pictures of both; images"""
    steps: list[int] = field(default_factory=list)
    states: list[np.ndarray] = field(default_factory=list)
    x0: list[np.ndarray] = field(default_factory=list)
    state_pictures: list[Image.Image] = field(default_factory=list)
    x0_pictures: list[Image.Image] = field(default_factory=list)
    images: list[Image.Image] = field(default_factory=list)

    def sheet(self) -> Image.Image:
        """Both rows on one sheet, x_t above x̂₀ → PIL image"""
        captions = [f"step {step}, x" for step in self.steps] + [f"step {step}, x0" for step in self.steps]
        return sheet([*self.state_pictures, *self.x0_pictures], captions, columns=len(self.steps))


def filmstrip(pipeline: Any, prompt: str, negative_prompt: str = "", *, frames: int = 10, **settings: Any) -> Film:
    """Make a picture and keep frames of its way → Film

    frames    how many at most, evenly over the steps, the last one included; up to MOST_FRAMES
    settings  as for `generate`; of a batch, the first picture is shown
    Pictures up to 256 pixels a side are decoded by the autoencoder, larger ones by the linear preview (pictures/preview.py).
    """
    if not 1 <= frames <= MOST_FRAMES:
        raise UserError(f"frames is {frames}: it must be from 1 to {MOST_FRAMES}")
    resolved, film = resolved_for(pipeline, prompt, negative_prompt, **settings), Film()
    chosen = evenly(resolved.planned, frames)

    def step(done, total, latents):
        if done in chosen:
            film.steps.append(done)
            film.states.append(latents[0].copy())

    def preview(done, total, x0):
        if done in chosen:
            film.x0.append(x0[0].copy())

    film.images = finished(pipeline, resolved, make(pipeline, resolved, [], step, preview))
    decode = decoder(pipeline, resolved)
    film.state_pictures = [picture(decode, x) for x in film.states]
    film.x0_pictures = [picture(decode, x) for x in film.x0]
    return film


def evenly(steps: int, most: int) -> set[int]:
    """At most so many of the steps 1 … n, the last one among them → set"""
    count = min(steps, most)
    return {-(-(number + 1) * steps // count) for number in range(count)}


def decoder(pipeline: Any, resolved: Any) -> Decoder | Linear:
    """Latents (N, h, w, C) → images (N, H, W, 3), about [−1, 1], as frames of such a picture are decoded"""
    return Decoder(pipeline.vae) if max(resolved.passes[-1].canvas.size) <= LARGEST else Linear(pipeline.vae)


def picture(decode: Callable[[np.ndarray], np.ndarray], latents: np.ndarray) -> Image.Image:
    """Latents (h, w, C) of one picture → PIL image"""
    return to_images(np.nan_to_num(decode(latents[None])))[0]


def forward_process(image: Any, steps: int | Sequence[int] = 8, *, schedule: NoiseSchedule | None = None,
                    seed: int = 0) -> list[tuple[int, Image.Image]]:
    """A picture under more and more noise → [(t, PIL image), ...]; the same noise ε throughout

    image     PIL image, path or array, see `pictures.images.rgb`
    steps     a number of time steps, from 0 to the training's last, or a list of them
    schedule  whose ᾱ; by default Stable Diffusion v1's. `pipeline.schedule` is a model's.
    Here the noise is on pixels, so that it can be seen; latent diffusion puts it on latents.
    """
    schedule = schedule or NoiseSchedule()
    last = schedule.num_train_timesteps - 1
    times = np.linspace(0, last, steps).round().astype(int).tolist() if isinstance(steps, int) else list(steps)
    if not times or not all(isinstance(t, int) and 0 <= t <= last for t in times):
        raise UserError(f"steps is {steps!r}: a number from 1 on, or whole numbers from 0 to {last}, was expected")
    x0 = 2 * (np.asarray(rgb(image, "image"), np.float32) / 255) - 1
    noise = np.random.default_rng(seed).standard_normal(x0.shape, np.float32)
    found = []
    for t in times:
        abar = float(schedule.alphas_cumprod[t])
        found.append((t, to_images((math.sqrt(abar) * x0 + math.sqrt(1 - abar) * noise)[None])[0]))
    return found
