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

from npdiffusion import few_steps, memory, noise, tiling
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
CUSTOMARY_STRENGTH = 0.75    # of image to image


class StableDiffusionPipeline:
    """The parts of a model, each usable by itself, and `generate`, which plays them together.

    tokenizer.encode(text) → (77,) ids      text_encoder(ids (N, 77)) → (N, 77, X)      unet(latents, timesteps, context) → ε or v
    vae.encode(images) → mean, logvar       vae.decode(latents) → images in [−1, 1]     schedule: betas and sampler of the checkpoint
    """
    def __init__(self, tokenizer, text_encoder, unet, vae, schedule, source, default_guidance=None,
                 adapters=None):
        self.tokenizer, self.text_encoder, self.unet, self.vae = tokenizer, text_encoder, unet, vae
        self.schedule = schedule      # a NoiseSchedule: betas, prediction type and sampler of the checkpoint
        self.source = source          # where the model came from, for people
        self.advised_guidance = default_guidance      # the guidance scale that its makers advise, or None
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

    @property
    def default_guidance(self):
        """The guidance scale where none is asked for."""
        return self.defaults().guidance_scale

    def defaults(self, sampler=None):
        """Steps and guidance scale where none are asked for, and why → few_steps.Defaults"""
        embedded = self.unet.config.time_cond_proj_dim is not None
        return few_steps.defaults(self.schedule, embedded, sampler, self.advised_guidance)

    @memory_reused()
    def generate(self, prompt, negative_prompt="", steps=None, guidance_scale=None, sampler=None, schedule=None, seed=None,
                 width=None, height=None, init_image=None, strength=None, count=1, callback=None, rng="torch",
                 mask_image=None, mask_blur=None, invert_mask=False, padding_mask_crop=None, apply_overlay=True, outpaint=None,
                 hires=None, hires_strength=hires_fix.STRENGTH, hires_steps=None, hires_upscaler="latent",
                 vae_tiling="auto", preview=None, clip_skip=None, prompt_syntax="a1111",
                 eta=0.0, guidance_rescale=0.0, subseed=None, subseed_strength=0.0, timestep_spacing=None,
                 prediction_type=None, rescale_betas_zero_snr=None):
        """Pictures for a prompt: a list of `count` PIL images; each has its seed in `image.info["seed"]`.

        sampler, schedule   names in `samplers.SAMPLERS` and `schedules.KINDS`; None is the checkpoint's own
        steps               None is 50, or 4 for models that are made for few (see few_steps.py)
        guidance_scale      s of ε_u + s (ε_c − ε_u), arXiv:2207.12598; up to 1 the negative prompt has no influence;
                            None is the checkpoint's own: 7.5 unless its model_index.json says otherwise
        guidance_rescale    φ of arXiv:2305.08891, from 0 to 1: takes back the contrast that a high guidance scale adds
        eta                 of ddim and tcd: 0 is deterministic, 1 as random as ddpm and lcm
        timestep_spacing, prediction_type, rescale_betas_zero_snr
                            as in diffusers' schedulers, in place of the checkpoint's own; see `NoiseSchedule`
        seed                of the first picture, the others count on from it; None is a random one
        subseed             noise that the seed's is mixed with, on an arc, by subseed_strength from 0 to 1; while that is
                            above 0 the sub-seeds count on instead of the seeds, as in AUTOMATIC1111's web interface
        width, height       pixels, multiples of the VAE's reduction; None is the size the model was trained on, or, when
                            outpainting, that of the extended picture
        init_image          PIL image or path to start from; `strength` in (0, 1] is how far the picture may leave it;
                            None is 0.75, or 1 where a mask says what may be left
        callback            called as callback(step, steps, latents) after each step, step from 1
        rng                 whose noise a seed stands for: "torch" on the CPU, "a1111" (the web interface's), "numpy"
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
        asked = self.defaults(sampler)
        steps = asked.steps if steps is None else steps
        guidance_scale = _number("guidance_scale", asked.guidance_scale if guidance_scale is None else guidance_scale)
        _number("guidance_rescale", guidance_rescale, 0, 1)
        model, guidance = self._told(guidance_scale)
        if strength is None:
            strength = CUSTOMARY_STRENGTH if mask is None else 1.0
        settings = self.schedule.changed(timestep_spacing=timestep_spacing, prediction_type=prediction_type,
                                         rescale_betas_zero_snr=rescale_betas_zero_snr)
        make_plan = functools.partial(settings.plan, sampler, kind=schedule, eta=eta)
        plan = make_plan(steps, strength=None if picture is None else strength)
        second = None if hires is None else hires_fix.SecondPass(
            canvas, make_plan, f, hires, hires_strength, hires_steps or steps, hires_upscaler)
        planned = len(plan) + (len(second.plan) if second else 0)
        seeds, subseeds = _seeds(seed, count, subseed, _number("subseed_strength", subseed_strength, 0, 1))
        draw_for = functools.partial(self._noise, rng, seeds, subseeds, subseed_strength)
        draw = draw_for(canvas.size)
        width, height = second.canvas.size if second else canvas.size
        self.vae.tile = tiling.choose(self.vae.config, width, height, vae_tiling)
        memory.require(memory.picture(self.vae.config, width, height, self.vae.tile), f"{width}×{height} pixels")

        self.timings = {}
        with self._timed("adapters"):
            prompt = self.adapters.follow(prompt, negative_prompt)
        with self._timed("text"):
            texts = [prompt] if guidance <= 1 else [prompt, negative_prompt]
            understood = functools.partial(self.contexts, texts, sampler=sampler or self.default_sampler,
                                           clip_skip=clip_skip, syntax=prompt_syntax)
            contexts = understood(steps)
            if second:
                second_contexts = understood(hires_steps or steps, earlier=steps)

        def sample(plan, start, draw, contexts, done=0):
            predict = contexts.by_call(lambda context, negative=None: guided(
                start.predictor(model), context, negative, guidance, guidance_rescale), count)
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
            draw = draw_for(second.canvas.size)
            with self._timed("encoding"):
                start = second.start(self.vae, self.unet, latents, draw)
            with self._timed("sampling"):
                latents = sample(second.plan, start, draw, second_contexts, done=len(plan))
        with self._timed("decoding"):
            images = [self.decode(one[None]) for one in latents]                # feature maps of one picture at a time
        images = [canvas.finish(image) for image in images]
        for image, seed, subseed in zip(images, seeds, subseeds or [None] * count):
            image.info |= {"seed": seed} if subseed is None else {"seed": seed, "subseed": subseed}
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

    def predictor(self, context, timestep_cond=None):
        """The UNet for these prompts (N, 77, X): predict(latents, t), like `unet`, but checked to be finite"""
        context = Context(context)
        extra = () if timestep_cond is None else (timestep_cond,)
        return lambda latents, timestep: finite(self.unet, "unet", latents, timestep, context, *extra)

    def _told(self, guidance_scale):
        """`predictor` and the guidance scale; a model that guidance is distilled into is told the scale, and needs none"""
        size = self.unet.config.time_cond_proj_dim
        if size is None:
            return self.predictor, guidance_scale
        return functools.partial(self.predictor, timestep_cond=few_steps.guidance_embedding(guidance_scale, size)), 1

    def _noise(self, rng, seeds, subseeds, strength, size):
        """`noise.LatentNoise` for latents of that (width, height) in pixels, each picture from its own generator, afresh"""
        width, height = (side // self.vae.config.reduction for side in size)
        return noise.latent_noise(rng, seeds, height, width, self.vae.config.latent_channels, subseeds, strength)

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


def _number(name, value, low=-math.inf, high=math.inf):
    """value, if it is a finite number from low to high; else UserError"""
    if not isinstance(value, numbers.Real) or not math.isfinite(value) or not low <= value <= high:
        wanted = f"from {low} to {high}" if math.isfinite(low) else "for example 7.5"
        raise UserError(f"{name} is {value}: it must be a finite number, {wanted}")
    return value


def _seeds(seed, count, subseed, strength):
    """A seed for each picture, counting on from the first, and sub-seeds, or None; random first ones for None.

    With a variation strength the sub-seeds count on, and the seed is the same for all.
    """
    if count < 1:
        raise UserError(f"count is {count}: at least one picture must be asked for")
    for name, given in (("seed", seed), ("subseed", subseed)):
        if given is not None and not isinstance(given, numbers.Integral):
            raise UserError(f"{name} is {given!r}: it must be a whole number")
    first, other = (secrets.randbelow(2**32) if given is None else int(given) for given in (seed, subseed))
    if strength == 0:
        return range(first, first + count), None
    return [first] * count, range(other, other + count)
