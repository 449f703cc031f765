"""From a prompt to a picture.

    tokens → context → noise → denoised latents → image          (Rombach et al. 2021, arXiv:2112.10752)

N pictures of W × H pixels; latents are (N, H/f, W/f, C), f the reduction of the VAE, C its latent channels.
"""
import contextlib
import functools
import math
import numbers
import secrets
import time

import numpy as np

from npdiffusion import memory, noise, tiling
from npdiffusion.adapters.merging import Adapters
from npdiffusion.adapters.textual_inversion import LearntWords
from npdiffusion.allocator import memory_reused
from npdiffusion.denoiser import Denoiser, guided
from npdiffusion.diagnosis import finite
from npdiffusion.errors import UserError
from npdiffusion.images import to_images
from npdiffusion.painting import hires as hires_fix
from npdiffusion.painting import inpainting
from npdiffusion.painting.canvas import Canvas, originals
from npdiffusion.prompts.contexts import Contexts
from npdiffusion.prompts.editing import calls
from npdiffusion.prompts.reading import read
from npdiffusion.sharing import Context

LARGEST_SIDE = 8192          # pixels
CUSTOMARY_GUIDANCE = 7.5     # what users of SD v1 expect where the checkpoint says nothing
CUSTOMARY_STRENGTH = 0.75    # of image to image


class StableDiffusionPipeline:
    """The parts of a model, each usable by itself, and `generate`, which plays them together.

    tokenizer.encode(text) → (77,) ids      text_encoder(ids (N, 77)) → (N, 77, X)      unet(latents, timesteps, context) → ε or v
    vae.encode(images) → mean, logvar       vae.decode(latents) → images in [−1, 1]     schedule: betas and sampler of the checkpoint
    """
    def __init__(self, tokenizer, text_encoder, unet, vae, schedule, source, default_guidance=CUSTOMARY_GUIDANCE,
                 adapters=None):
        self.tokenizer, self.text_encoder, self.unet, self.vae = tokenizer, text_encoder, unet, vae
        self.schedule = schedule      # a NoiseSchedule: betas, prediction type and sampler of the checkpoint
        self.source = source          # where the model came from, for people
        self.default_guidance = default_guidance      # the guidance scale that its makers advise
        self.adapters = adapters or Adapters()        # LoRAs and their like, merged into the weights
        self.words = LearntWords()    # textual inversions
        self.timings = {}             # seconds that each stage of the last `generate` took

    @property
    def size(self):
        """(width, height) in pixels that the model was trained on."""
        return (self.unet.config.sample_size * self.vae.config.reduction,) * 2

    @property
    def default_sampler(self):
        """Name of the sampler that the checkpoint was saved with."""
        return self.schedule.default_sampler

    @memory_reused()
    def generate(self, prompt, negative_prompt="", steps=50, guidance_scale=None, sampler=None, schedule=None, seed=None,
                 width=None, height=None, init_image=None, strength=None, count=1, callback=None, rng="torch",
                 mask_image=None, mask_blur=None, invert_mask=False, padding_mask_crop=None, apply_overlay=True, outpaint=None,
                 hires=None, hires_strength=hires_fix.STRENGTH, hires_steps=None, hires_upscaler="latent",
                 vae_tiling="auto", preview=None, clip_skip=None, prompt_syntax="a1111"):
        """Pictures for a prompt: a list of `count` PIL images; each has its seed in `image.info["seed"]`.

        sampler, schedule   names in `samplers.SAMPLERS` and `schedules.KINDS`; None is the checkpoint's own
        guidance_scale      s of ε_u + s (ε_c − ε_u), arXiv:2207.12598; at 1 the negative prompt has no influence;
                            None is the checkpoint's own: 7.5 unless its model_index.json says otherwise
        seed                of the first picture, the others count on from it; None is a random one
        width, height       pixels, multiples of the VAE's reduction; None is the size the model was trained on, or, when
                            outpainting, that of the extended picture
        init_image          PIL image or path to start from; `strength` in (0, 1] is how far the picture may leave it;
                            None is 0.75, or 1 where a mask says what may be left
        callback            called as callback(step, steps, latents) after each step, step from 1
        rng                 "torch": a seed's noise is that of a torch CPU generator; "numpy": NumPy's own
        clip_skip           how many of the text encoder's last layers are left out; None is 0
        prompt_syntax       "a1111": (weights:1.3), [editing:when], any length, see prompts/; "plain": at most 75 tokens
        Parts of init_image, see painting/:
        mask_image          PIL image or path: white is repainted, black is kept; invert_mask swaps them
        mask_blur           standard deviation of its feathering in pixels; None is 0, or 4 when outpainting
        padding_mask_crop   work on the mask and that many pixels around it, at width × height; None is the whole picture
        apply_overlay       put the original's pixels back where the mask is black; if not, the VAE has changed them a bit
        outpaint            "left=64,right=64" or {"left": 64, …}: extend the picture, and paint what is new
        Hires fix, for pictures from words alone:
        hires               a number above 1: enlarge by it and denoise again with `hires_steps` (None: as many as `steps`)
                            from `hires_strength`; hires_upscaler is "latent" (bilinear) or "lanczos" (as a picture)
        Decoding, see tiling.py and preview.py:
        vae_tiling          "on": the autoencoder takes the picture in overlapping tiles, which needs less memory and
                            changes it a little; "off"; "auto": where one piece would be too large
        preview             called as preview(step, steps, x0) after each step, with the denoised estimate of the latents;
                            `preview.Previews` makes pictures of it
        Raises UserError for a value out of range or a result that is not finite.
        """
        f = self.vae.config.reduction
        picture, mask = originals(init_image, mask_image, mask_blur, invert_mask, outpaint, f)
        size = picture.size if outpaint is not None and padding_mask_crop is None else None
        canvas = Canvas(picture, mask, *self._check_size(width, height, size), padding_mask_crop, apply_overlay)
        guidance_scale = self.default_guidance if guidance_scale is None else guidance_scale
        if not math.isfinite(guidance_scale):
            raise UserError(f"guidance_scale is {guidance_scale}: it must be a finite number, for example 7.5")
        if strength is None:
            strength = CUSTOMARY_STRENGTH if mask is None else 1.0
        make_plan = functools.partial(self.schedule.plan, sampler, kind=schedule)
        plan = make_plan(steps, strength=None if picture is None else strength)
        second = None if hires is None else hires_fix.SecondPass(
            canvas, make_plan, f, hires, hires_strength, hires_steps or steps, hires_upscaler)
        planned = len(plan) + (len(second.plan) if second else 0)
        seeds = _seeds(seed, count)
        draw = self._noise(rng, seeds, canvas.size)
        width, height = second.canvas.size if second else canvas.size
        self.vae.tile = tiling.choose(self.vae.config, width, height, vae_tiling)
        memory.require(memory.picture(self.vae.config, width, height, self.vae.tile), f"{width}×{height} pixels")

        self.timings = {}
        with self._timed("adapters"):
            prompt = self.adapters.follow(prompt, negative_prompt)
        with self._timed("text"):
            texts = [prompt] if guidance_scale == 1 else [prompt, negative_prompt]
            understood = functools.partial(self.contexts, texts, sampler=sampler or self.default_sampler,
                                           clip_skip=clip_skip, syntax=prompt_syntax)
            contexts = understood(steps)
            if second:
                second_contexts = understood(hires_steps or steps, earlier=steps)

        def sample(plan, start, draw, contexts, done=0):
            predict = contexts.by_call(lambda context, negative=None: guided(
                start.predictor(self.predictor), context, negative, guidance_scale), count)
            denoiser = Denoiser(predict, plan)
            denoise = start.denoiser(denoiser)
            for step, latents in enumerate(plan.sample(denoise, start.latents, draw), start=done + 1):
                if callback:
                    callback(step, planned, latents)
                if preview:
                    preview(step, planned, start.finish(denoiser.denoised))
            return start.finish(latents)

        with self._timed("encoding"):
            start = inpainting.start(self.vae, self.unet, plan, canvas, strength, draw)
        with self._timed("sampling"):
            latents = sample(plan, start, draw, contexts)
        if second:
            draw = self._noise(rng, seeds, second.canvas.size)
            with self._timed("encoding"):
                start = second.start(self.vae, self.unet, latents, draw)
            with self._timed("sampling"):
                latents = sample(second.plan, start, draw, second_contexts, done=len(plan))
        with self._timed("decoding"):
            images = [self.decode(one[None]) for one in latents]                # feature maps of one picture at a time
        images = [canvas.finish(image) for image in images]
        for image, seed in zip(images, seeds):
            image.info["seed"] = seed
        return images

    def load_lora_weights(self, path, adapter_name=None, adapter_weight=1.0):
        """Merge a LoRA (LoHa, LoKr, DoRA, ...) into the weights, beside those in force → its name (the file's)

        path: a safetensors file, or a folder as diffusers and PEFT write it
        adapter_weight: its strength, or {"unet": strength, "text_encoder": strength}
        UserError if it can't be read, is for another family, or does not fit; then nothing is changed.
        """
        return self.adapters.load(path, adapter_name, adapter_weight)

    def set_adapters(self, adapter_names, adapter_weights=1.0):
        """Have those loaded LoRAs in force that are named, and no others; each argument may be one or a list."""
        self.adapters.choose(adapter_names, adapter_weights)

    def unload_lora_weights(self):
        """Take all LoRAs out of the weights, which are then bit for bit the checkpoint's."""
        self.adapters.unload()

    def load_textual_inversion(self, path, token=None):
        """Learn a word that prompts may use, or those of all files in a folder; see adapters/textual_inversion.py

        token: what to call it, in place of the file's name, or of the name in the file
        Raises UserError for a file that can't be used.
        """
        self.words.add(path, token, self.text_encoder.config.hidden_size)

    def unload_textual_inversion(self, token=None):
        """Forget a learnt word, or all of them."""
        self.words.remove(token)

    def encode_prompt(self, prompt, clip_skip=None, prompt_syntax="a1111"):
        """Text → context (1, 77 n, X), float32, n chunks; of a prompt that changes with the steps, that of the first"""
        return self.contexts([prompt], 50, clip_skip=clip_skip, syntax=prompt_syntax).at(0)[0]

    def contexts(self, prompts, steps, sampler=None, clip_skip=None, syntax="a1111", earlier=None):
        """What the UNet attends to, call by call → prompts.contexts.Contexts of a prompt, or of it and the negative one

        steps and sampler say how many calls there are; earlier: the steps of a first pass, see prompts/editing.py
        """
        clip_skip = self._check_clip_skip(clip_skip)
        readings = [read(prompt, calls(sampler, steps), self.tokenizer, syntax, self.words,
                         None if earlier is None else calls(sampler, earlier)) for prompt in prompts]
        return Contexts(readings, self.tokenizer, lambda ids, vectors: finite(
            self.text_encoder, "text_encoder", ids, clip_skip, vectors))

    def decode(self, latents):
        """Latents of one picture (1, H/f, W/f, C) → PIL image"""
        return to_images(finite(self.vae, "vae", latents, method="decode"))[0]

    def predictor(self, context):
        """The UNet for these prompts (N, 77, X): predict(latents, t), like `unet`, but checked to be finite"""
        context = Context(context)
        return lambda latents, timestep: finite(self.unet, "unet", latents, timestep, context)

    def _noise(self, rng, seeds, size):
        """draw() → N(0, 1) for latents of that (width, height) in pixels, each picture from its own generator, afresh"""
        generators = [noise.generator(rng, seed) for seed in seeds]
        width, height = (side // self.vae.config.reduction for side in size)
        return lambda: noise.latent_noise(generators, height, width, self.vae.config.latent_channels)

    def _check_size(self, width, height, picture=None):
        """width and height; for None those of a picture, to the nearest multiple, or of the training. UserError"""
        f = self.vae.config.reduction
        size = self.size if picture is None else [max(round(side / f), 1) * f for side in picture]
        width, height = size[0] if width is None else width, size[1] if height is None else height
        for name, value in (("width", width), ("height", height)):
            if value % f or not f <= value <= LARGEST_SIDE:
                near = min(max(f, round(value / f) * f), LARGEST_SIDE)
                raise UserError(f"{name} is {value}: it must be a multiple of {f} up to {LARGEST_SIDE}, for example {near}")
        return width, height

    def _check_clip_skip(self, clip_skip):
        if not clip_skip:
            return 0
        layers = self.text_encoder.config.num_hidden_layers
        if isinstance(clip_skip, bool) or not isinstance(clip_skip, numbers.Integral) or not 0 < clip_skip < layers:
            raise UserError(f"clip_skip is {clip_skip!r}: of this text encoder's {layers} layers, 0 to {layers - 1} can "
                            "be left out")
        return int(clip_skip)

    @contextlib.contextmanager
    def _timed(self, stage):
        start = time.perf_counter()
        yield
        self.timings[stage] = self.timings.get(stage, 0) + time.perf_counter() - start


def _seeds(first, count):
    """One for each picture, counting on from the first; a random first one for None."""
    if count < 1:
        raise UserError(f"count is {count}: at least one picture must be asked for")
    if first is not None and not isinstance(first, numbers.Integral):
        raise UserError(f"seed is {first!r}: it must be a whole number")
    first = secrets.randbelow(2**32) if first is None else int(first)
    return range(first, first + count)
