"""From a prompt to a picture.

    tokens → context → noise → denoised latents → image          (Rombach et al. 2021, arXiv:2112.10752)

N pictures of W × H pixels; latents are (N, H/f, W/f, C), f the reduction of the VAE, C its latent channels.
"""
import contextlib
import functools
import numbers
import threading
import time

from npdiffusion.adapters import tags
from npdiffusion.adapters.merging import Adapters
from npdiffusion.adapters.textual_inversion import LearntWords
from npdiffusion.diffusion import defaults
from npdiffusion.diffusion.denoiser import Denoiser, guided
from npdiffusion.errors import UserError
from npdiffusion.memory.malloc import memory_reused
from npdiffusion.models.conditioning import Conditioning
from npdiffusion.models.diagnosis import finite
from npdiffusion.pictures.images import to_images
from npdiffusion.request import Job, Request
from npdiffusion.text.contexts import Contexts
from npdiffusion.text.editing import calls
from npdiffusion.text.reading import read


class StableDiffusionPipeline:
    """The parts of a model, each usable by itself, and `generate`, which plays them together.

    tokenizer.encode(text) → (77,) ids      text_encoder(ids (N, 77)) → (N, 77, X)      unet(latents, timesteps, context) → ε or v
    vae.encode(images) → mean, logvar       vae.decode(latents) → images in [−1, 1]     schedule: betas and sampler of the checkpoint
    """
    def __init__(self, tokenizer, text_encoder, unet, vae, schedule, source, default_guidance=None,
                 adapters=None, budget=None):
        self.tokenizer, self.text_encoder, self.unet, self.vae = tokenizer, text_encoder, unet, vae
        self.schedule = schedule      # a NoiseSchedule: betas, prediction type and sampler of the checkpoint
        self.source = source          # where the model came from, for people
        self.advised_guidance = default_guidance      # the guidance scale that its makers advise, or None
        self.adapters = adapters or Adapters()        # LoRAs and their like, merged into the weights
        self.words = LearntWords()    # textual inversions
        self.budget = budget          # what was chosen for max_memory, see budget.py; None if there was none
        self.timings = {}             # seconds that each stage of the last `generate` took
        self._alone = threading.RLock()       # held while a picture is made or weights change

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
        """Steps and guidance scale where none are asked for, and why → defaults.Defaults"""
        embedded = self.unet.config.time_cond_proj_dim is not None
        return defaults.defaults(self.schedule, embedded, sampler, self.advised_guidance)

    @memory_reused()
    def generate(self, prompt, negative_prompt="", steps=None, guidance_scale=None, sampler=None, schedule=None, seed=None,
                 width=None, height=None, init_image=None, strength=None, count=1, callback=None, **more):
        """Pictures for a prompt: a list of `count` PIL images; each has its seed in `image.info["seed"]`.

        more: any other field of `request.Request`, which says what all of them mean
        Raises UserError for a value out of range, before sampling begins, or for a result that is not finite.
        One picture is made after the other: a second thread that asks for one waits.
        """
        request = Request.of(dict(
            prompt=prompt, negative_prompt=negative_prompt or "", steps=steps, guidance_scale=guidance_scale, sampler=sampler,
            schedule=schedule, seed=seed, width=width, height=height, init_image=init_image, strength=strength, count=count,
            callback=callback), more)
        with self._alone:
            return self._generate(Job(request, self))

    def _generate(self, job):
        """The story itself, of settings that go together."""
        request, self.timings = job.request, {}
        with self._timed("adapters"):
            prompt = self.adapters.follow(request.prompt, request.negative_prompt)
        with self._timed("text"):
            contexts = list(self._contexts_of_passes(job, prompt))
        latents, done = None, 0
        for way, context in zip(job.passes, contexts):
            draw = job.draw(way.canvas)
            with self._timed("encoding"):
                start = way.start(latents, draw)
            with self._timed("sampling"):
                for latents, x0 in self._sample(job, way.plan, start, context, draw):
                    done += 1
                    if request.callback:
                        request.callback(done, job.planned, latents)
                    if request.preview:
                        request.preview(done, job.planned, x0)
            latents = start.finish(latents)
        with self._timed("decoding"):
            return job.finish([self.decode(one[None], job.tile) for one in latents])      # feature maps of one picture at a time

    def _sample(self, job, plan, start, contexts, draw):
        """Walk a plan: yields each state, and the denoised estimate that led there; both (N, H, W, C)"""
        model = functools.partial(self.predictor, timestep_cond=job.timestep_cond)
        predict = contexts.by_call(lambda context, negative=None: guided(
            start.predictor(model), context, negative, job.guidance, job.request.guidance_rescale), job.request.count)
        denoiser = Denoiser(predict, plan)
        for latents in plan.sample(start.denoiser(denoiser), start.latents, draw):
            yield latents, start.finish(denoiser.denoised)

    def _contexts_of_passes(self, job, prompt):
        """Contexts of the prompt, and of the negative one where it has influence, for each pass; see text/editing.py"""
        request, earlier = job.request, None
        texts = [prompt] if job.guidance <= 1 else [prompt, request.negative_prompt]
        for way in job.passes:
            yield self.contexts(texts, way.steps, request.sampler or self.default_sampler, request.clip_skip,
                                request.prompt_syntax, earlier)
            earlier = way.steps

    def load_lora_weights(self, path, adapter_name=None, adapter_weight=1.0):
        """Merge a LoRA (LoHa, LoKr, DoRA, ...) into the weights, beside those in force → its name (the file's)

        path: a safetensors file, or a folder as diffusers and PEFT write it
        adapter_weight: its strength, or {"unet": strength, "text_encoder": strength}
        UserError if it can't be read, is for another family, or does not fit; then nothing is changed.
        """
        with self._alone:
            return self.adapters.load(path, adapter_name, adapter_weight)

    def set_adapters(self, adapter_names, adapter_weights=1.0):
        """Have those loaded LoRAs in force that are named, and no others; each argument may be one or a list."""
        with self._alone:
            self.adapters.choose(adapter_names, adapter_weights)

    def unload_lora_weights(self):
        """Take all LoRAs out of the weights, which are then bit for bit the checkpoint's."""
        with self._alone:
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

    def check_prompts(self, prompts):
        """UserError for an adapter or a learnt word that can't be used; prompts: pairs (prompt, negative prompt)

        Weights aren't looked at: a model may still be without.
        """
        names, texts = set(), set()
        for prompt, negative_prompt in prompts:
            text, adapters = tags.take(prompt)
            names |= {name for name, _ in adapters}
            texts |= {text, negative_prompt}
        for name in sorted(names):
            self.adapters.named(name)
        for text in sorted(texts):
            list(self.words.split(text))

    def encode_prompt(self, prompt, clip_skip=None, prompt_syntax="a1111"):
        """Text → context (1, 77 n, X), float32, n chunks; of a prompt that changes with the steps, that of the first"""
        return self.contexts([prompt], 50, clip_skip=clip_skip, syntax=prompt_syntax).at(0)[0]

    def contexts(self, prompts, steps, sampler=None, clip_skip=None, syntax="a1111", earlier=None):
        """What the UNet attends to, call by call → prompts.contexts.Contexts of a prompt, or of it and the negative one

        steps and sampler say how many calls there are; earlier: the steps of a first pass, see text/editing.py
        """
        clip_skip = self.check_clip_skip(clip_skip)
        readings = [read(prompt, calls(sampler, steps), self.tokenizer, syntax, self.words,
                         None if earlier is None else calls(sampler, earlier)) for prompt in prompts]
        return Contexts(readings, self.tokenizer, lambda ids, vectors: finite(
            self.text_encoder, "text_encoder", ids, clip_skip, vectors))

    def decode(self, latents, tile=None):
        """Latents of one picture (1, H/f, W/f, C) → PIL image; tile: see `AutoencoderKL`"""
        return to_images(finite(self.vae, "vae", latents, tile, method="decode"))[0]

    def predictor(self, context, timestep_cond=None):
        """The UNet for these prompts (N, 77, X): predict(latents, t), like `unet`, but checked to be finite"""
        conditioning = Conditioning(context, timestep_cond)
        return lambda latents, timestep: finite(self.unet, "unet", latents, timestep, conditioning)

    def check_clip_skip(self, clip_skip):
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
