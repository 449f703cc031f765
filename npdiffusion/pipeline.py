"""From a prompt to a picture.

    tokens → context → noise → denoised latents → image          docs/notes/14-latent-diffusion.md

Rombach et al. 2021, arXiv:2112.10752. N pictures of W × H pixels; latents are (N, H/f, W/f, C), f the VAE's reduction.
"""
import contextlib
import os
import sys
import threading
import time
import weakref
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Literal, overload

import numpy as np
from PIL import Image

from npdiffusion.adapters import tags
from npdiffusion.adapters.image_prompts import ImagePrompts, image_prompts
from npdiffusion.adapters.merging import Adapters
from npdiffusion.adapters.picture_features import PictureFeatures, picture_features
from npdiffusion.adapters.textual_inversion import LearntWords, fitting
from npdiffusion.checkpoints import families
from npdiffusion.checkpoints.controlnets import open_controlnets
from npdiffusion.checkpoints.ip_adapters import open_ip_adapters
from npdiffusion.checkpoints.t2i_adapters import open_t2i_adapter
from npdiffusion.diffusion import defaults
from npdiffusion.diffusion.bar import steps_shown
from npdiffusion.diffusion.denoiser import Denoiser
from npdiffusion.diffusion.guidance import Prediction
from npdiffusion.diffusion.schedules import NoiseSchedule
from npdiffusion.errors import UserError
from npdiffusion.given import NOTHING, Given, asked, signature
from npdiffusion.memory import malloc
from npdiffusion.memory.budget import Budget
from npdiffusion.models.clip import CLIPTextModel
from npdiffusion.models.diagnosis import finite
from npdiffusion.models.taesd import AutoencoderTiny
from npdiffusion.models.unet import UNet2DConditionModel
from npdiffusion.models.vae import AutoencoderKL
from npdiffusion.painting import refining
from npdiffusion.painting.control import controls
from npdiffusion.pictures.images import to_images
from npdiffusion.pictures.made import with_settings
from npdiffusion.pictures.settings_text import model_name, parameters
from npdiffusion.pictures.sheets import Pictures
from npdiffusion.request import Resolved, check_clip_skip, resolve
from npdiffusion.settings import STEPS, Request
from npdiffusion.text import known_words
from npdiffusion.text.contexts import Contexts
from npdiffusion.text.editing import calls
from npdiffusion.text.encoders import Encoder, encoders_of
from npdiffusion.text.reading import read_prompt
from npdiffusion.text.tokenizer import CLIPTokenizer

Path = str | os.PathLike[str]
StepCallback = Callable[[int, int, np.ndarray], Any]              # (step, steps, latents or x0)


class StableDiffusionPipeline:
    """The parts of a model, each usable by itself, and `generate`, which plays them together.

    tokenizer.encode(text) → (77,) ids     text_encoder(ids (N, 77)) → (N, 77, X)     unet(latents, timesteps, context) → ε or v
    vae.encode(images) → mean, logvar      vae.decode(latents) → images in [−1, 1]    schedule: its betas and its sampler
    """
    def __init__(self, tokenizer: CLIPTokenizer, text_encoder: CLIPTextModel, unet: UNet2DConditionModel,
                 vae: AutoencoderKL | AutoencoderTiny, schedule: NoiseSchedule, source: str,
                 default_guidance: float | None = None, adapters: Adapters | None = None, budget: Budget | None = None,
                 family: families.Family = families.FAMILIES[0], others: dict[str, Any] | None = None,
                 tokenizers: dict[str, CLIPTokenizer] | None = None) -> None:
        self.tokenizer, self.text_encoder, self.unet, self.vae = tokenizer, text_encoder, unet, vae
        self.family = family          # its row in checkpoints/families.py
        first = family.text_encoders[0]
        self.models = {first: text_encoder, **(others or {}), "unet": unet, "vae": vae}      # all parts, by name
        self.tokenizers = {first: tokenizer, **(tokenizers or {})}                            # of text encoders, by name
        self.schedule = schedule      # a NoiseSchedule: betas, prediction type and sampler of the checkpoint
        self.source = source          # where the model came from, for people
        self.advised_guidance = default_guidance      # the guidance scale that its makers advise, or None
        self.adapters = adapters or Adapters()        # LoRAs and their like, merged into the weights
        self.controlnets: list[Any] = []      # which pictures lead
        self.ip_adapter: ImagePrompts | None = None              # pictures that stand in prompts,
        self.t2i_adapter: PictureFeatures | None = None          # and that lead by a small network
        self.refiner: StableDiffusionPipeline | None = None      # takes over the last steps
        self.words = LearntWords()    # textual inversions
        self.budget = budget          # what was chosen for max_memory, see budget.py; None if there was none
        self.embedded = False         # whether it is the model that comes with the library, whose words are known
        self.timings = {}             # seconds that each stage of the last `generate` took
        self._alone = threading.RLock()       # held while a picture is made or weights change
        self._making: Resolved | None = None       # the `Resolved` of the picture at work,
        self._disturbed = False       # and whether another one was made in its callback
        _pipelines.add(self)
        malloc.one_heap()             # before threads read the weights

    def __repr__(self):
        if self.unet is None:
            return f"<StableDiffusionPipeline: {self.source}, closed>"
        width, height = self.size
        return f"<StableDiffusionPipeline: {self.source}, {self.family.name}, pictures of {width}×{height} pixels>"

    def close(self) -> None:
        """Let go of the models and give their memory back to the system, which deleting the last reference does as well.

        No pictures can be made after that. Calling it again is harmless, and `with npdiffusion.load() as pipeline:` calls it.
        """
        if self._making is not None:
            raise UserError("this pipeline makes a picture, so it can't be closed now")
        with self._alone:
            self.text_encoder = self.unet = self.vae = self.refiner = None        # type: ignore[assignment]
            self.controlnets, self.ip_adapter, self.t2i_adapter = [], None, None
            self.models, self.adapters, self.words = {}, Adapters(), LearntWords()
        malloc.give_back()

    def __enter__(self) -> "StableDiffusionPipeline":
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def __del__(self, ending=sys.is_finalizing):             # when Python ends, `sys` may be gone before this object
        if not ending() and getattr(self, "unet", None) is not None:
            self.close()

    @property
    def size(self) -> tuple[int, int]:
        """(width, height) in pixels that the model was trained on."""
        return (self.unet.config.sample_size * self.vae.config.reduction,) * 2

    @property
    def default_sampler(self) -> str:
        """Name of the sampler that the checkpoint was saved with."""
        return self.schedule.default_sampler

    @property
    def default_guidance(self) -> float:
        """The guidance scale where none is asked for."""
        return self.defaults().guidance_scale

    def defaults(self, sampler: str | None = None) -> defaults.Defaults:
        """Steps and guidance scale where none are asked for, and why → defaults.Defaults"""
        embedded = self.unet.config.time_cond_proj_dim is not None
        return defaults.defaults(self.schedule, embedded, sampler, self.advised_guidance, self.family.guidance)

    @overload
    def generate(self, prompt: str | list[str] | None = None, negative_prompt: str = "", *,
                 output_type: Literal["pil"] = "pil", **settings: Any) -> list[Image.Image]: ...

    @overload
    def generate(self, prompt: str | list[str] | None = None, negative_prompt: str = "", *,
                 output_type: Literal["np", "latent"], **settings: Any) -> np.ndarray: ...

    def generate(self, prompt: str | list[str] | None = None, negative_prompt: str = "", *,
                 seed: int | Sequence[int] | None = None, generator: np.random.Generator | None = None,
                 latents: np.ndarray | None = None, prompt_embeds: np.ndarray | None = None,
                 negative_prompt_embeds: np.ndarray | None = None, pooled_prompt_embeds: np.ndarray | None = None,
                 negative_pooled_prompt_embeds: np.ndarray | None = None, output_type: str = "pil",
                 callback: StepCallback | None = None, preview: StepCallback | None = None, progress: bool = True,
                 **settings: Any) -> Any:
        """Pictures for a prompt: a list of `count` PIL images. Each has its seed in `image.info["seed"]`, and its settings as
        text in `image.info["parameters"]`, which `image.save` writes into PNG files (none where latents or states were given).

        prompt     or a list of prompts: their pictures one after the other, whose seeds count on if one is given
        seed       or a list of them, one for each picture
        generator  draws a seed for each picture
        latents    (N, H/f, W/f, C), float32: N(0, 1) to start from; the seed is then for what the sampler draws
        prompt_embeds, negative_prompt_embeds   (M, 77 n, X) and (M or 1, 77 n, X), float32: what `encode_prompt` gives, in
                   place of M prompts and of the negative one
        pooled_prompt_embeds, negative_pooled_prompt_embeds   (M, P) and (M or 1, P), float32: with XL beside them
        output_type   "pil"; "np": (N, H, W, 3), float32 in [0, 1], as decoded, with nothing pasted around a mask; "latent":
                   (N, H/f, W/f, C), float32, which `decode` takes one by one
        settings   fields of `settings.Request`, which says what they mean, by our names or diffusers'
        callback   called as callback(step, steps, latents) after each step, step from 1
        preview    called as preview(step, steps, x0) after each step, with the denoised estimate of the latents;
                   `pictures.preview.Previews` makes pictures of it
        progress   whether a bar on stderr shows the steps, where stderr is a terminal, and a line that kernels are compiled
        Raises UserError for a value out of range, before sampling begins, or for a result that is not finite.
        One picture is made after the other: a second thread that asks for one waits.
        """
        self._check_open()
        made = []
        embeds = (prompt_embeds, pooled_prompt_embeds), (negative_prompt_embeds, negative_pooled_prompt_embeds)
        for request, beside in asked(self, prompt, seed, generator, latents, embeds, output_type,
                                     negative_prompt=negative_prompt or "", **settings):
            resolved = self.resolve(request, given=beside)
            with steps_shown(resolved.planned, callback or ignored, progress) as step:
                pictures = self.make(resolved, step, preview)
            if output_type == "pil" and beside.settings_suffice:
                pictures = [with_settings(image, text) for image, text in zip(pictures, self.texts(resolved))]
            made.extend(pictures)
        return Pictures(made) if output_type == "pil" else np.stack(made)

    def texts(self, resolved: Resolved, model: str | None = None, vae: str | None = None) -> list[str]:
        """The text of its settings for each picture of a `request.Resolved` that was made last; model, vae: their names"""
        request, settings = resolved.request, resolved.settings()
        subseeds = resolved.subseeds or [None] * len(resolved.seeds)
        if resolved.passes[-1].refining and self.refiner:
            settings["refiner"] = model_name(self.refiner.source)
        return [parameters(request.prompt, request.negative_prompt, model=model or model_name(self.source), vae=vae,
                           **settings | {"seed": seed} | ({} if subseed is None else {"subseed": subseed}),
                           hashes=self.adapters.hashes()) for seed, subseed in zip(resolved.seeds, subseeds)]

    def resolve(self, request: Request, inputs: Any = None, given: Given = NOTHING) -> Resolved:
        """What a request comes to for this model, see request.py"""
        self._check_open()
        return resolve(request, self, inputs, given)

    def _check_open(self):
        if self.unet is None:
            raise UserError("this pipeline was closed: load the model anew")

    def make(self, resolved: Resolved, callback: StepCallback | None = None, preview: StepCallback | None = None) -> Any:
        """The pictures of a `request.Resolved`, a list or an array; all else is as for `generate`."""
        with self._alone, malloc.memory_reused():
            outer, self._making = self._making, resolved
            try:
                return self._make(resolved, callback or ignored, preview or ignored)
            finally:
                self._making, self._disturbed = outer, outer is not None

    def _make(self, resolved, callback, preview):
        """The story itself, of settings that go together."""
        self.timings = {}
        if self.budget and (self.adapters.loaded or tags.take_tags(resolved.request.prompt)[1]):
            self.budget.allow_merging()
        with self._timed("adapters"):
            prompt = self.adapters.follow(resolved.request.prompt, resolved.request.negative_prompt)
        with self._timed("text"):
            contexts = self._contexts_of_passes(resolved, prompt)
        self._give_back()
        latents, done = None, 0
        for way, context in zip(resolved.passes, contexts):
            noise = resolved.noise_for(way.canvas, self.vae)
            with self._timed("encoding"):
                start = way.start(self.vae, self.unet, latents, noise, resolved.tile)
                led = controls(self.controlnets, resolved, way), picture_features(self.t2i_adapter, resolved, way)
            state, called = start.latents, 0
            for predict, plan, known in self._legs(resolved, way, context, start, noise, led):
                denoise = Denoiser(predict, plan, known, called)
                with self._timed("sampling"):
                    for following in plan.sample(denoise, state, noise):
                        state, x0 = following
                        predict.check(state)
                        done += 1
                        timings = self.timings
                        callback(done, resolved.planned, state)
                        preview(done, resolved.planned, x0)
                        if self._disturbed:          # the weights are again as this picture needs them
                            self.adapters.follow(resolved.request.prompt, resolved.request.negative_prompt)
                            self.timings, self._disturbed = timings, False
                called = denoise.calls
            latents = start.finish(state)
        if resolved.given.output_type == "latent":
            return latents
        contexts = context = predict = denoise = led = None           # keys and values of the prompt, what leads, latest calls
        self._give_back()
        with self._timed("decoding"):
            return resolved.finish(finite(self.vae, "vae", one[None], resolved.tile, method="decode")
                                   for one in latents)           # one picture's maps at a time

    def _give_back(self):
        """Within max_memory: what a stage leaves behind goes back to the system, for pieces of it don't fit what comes next"""
        if self.budget:
            malloc.give_back()

    def _legs(self, resolved, way, contexts, start, noise, led):
        """The model's part of a pass, and the refiner's if it has one: Prediction, Plan, what is kept under a mask, of each

        contexts: of the model, and of the refiner      led: what a ControlNet and a T2I-Adapter add, or None
        """
        settings = resolved.guidance, resolved.request.value("guidance_rescale")
        yield Prediction(self.unet, contexts[0], *settings, start.channels, *led), way.plan, start.known
        if way.refining:
            known = refining.kept(start, way.canvas, self.vae, noise, resolved.tile)
            yield Prediction(self.refiner.unet, contexts[1], *settings), way.refining, known

    def load_controlnet(self, paths: Path | Sequence[Path] | None) -> None:
        """Have pictures led by ControlNets, a folder or a file each, in place of those that were there; None: by none

        Pictures then need a `control_image` for each. UserError if one can't be read, or is for another family.
        """
        with self._alone:
            parts = open_controlnets(paths, self.unet.config, self.family)
            self._fill("ControlNets", parts)
            self.controlnets = [part.model for part in parts]

    def load_ip_adapter(self, paths: Path | Sequence[Path] | None, image_encoder: Path | None = None) -> None:
        """Let an `ip_image` stand in prompts, by an IP-Adapter's file, in place of those that were there; None: no more

        paths: or several, each of which needs an `ip_image` of its own
        image_encoder: CLIP's, in place of image_encoder/ beside the adapter or in the model's folder. UserError as above.
        """
        with self._alone:
            folder = os.path.expanduser(self.source)
            parts = {} if paths is None else open_ip_adapters(paths, image_encoder, self.unet, self.family, folder)
            self._fill("IP-Adapters", parts.values())
            self.ip_adapter = ImagePrompts(parts, self.unet) if parts else None

    def load_t2i_adapter(self, path: Path | None) -> None:
        """Have a `t2i_image` lead pictures, by a T2I-Adapter, as `load_controlnet` has a ControlNet do it."""
        with self._alone:
            parts = [] if path is None else [open_t2i_adapter(path, self.unet.config, self.family)]
            self._fill("T2I-Adapter", parts)
            self.t2i_adapter = PictureFeatures(*parts) if parts else None

    def _fill(self, what, parts):
        """Read the weights of parts that are loaded beside the model, in place of others of that kind; UserError if there is
        no room for them within max_memory"""
        if self.budget:
            self.budget.count(what, parts)
        for part in parts:
            part.fill(self.adapters.dtype)

    def _contexts_of_passes(self, resolved, prompt):
        """For each pass contexts of the prompt, and of the negative one where it has influence, by the model, and the refiner
        where it takes part; see text/editing.py"""
        request, earlier, found = resolved.request, None, []
        texts = [(prompt, request.prompt_2), (request.negative_prompt, request.negative_prompt_2)][:1 + (resolved.guidance > 1)]
        pictures = image_prompts(self.ip_adapter, resolved)
        for way in resolved.passes:
            asked = texts, way.steps, resolved.sampler, request.clip_skip, request.prompt_syntax, earlier, request.count
            models = {self: resolved.timestep_cond} | ({self.refiner: None} if way.refining else {})
            found.append([model.contexts(*asked, distilled, resolved.sizes(way.canvas.size, model.family),
                                         resolved.given.embeds) for model, distilled in models.items()])
            found[-1][0].pictures = pictures
            earlier = way.steps
        return found

    def load_lora_weights(self, path: Path, adapter_name: str | None = None,
                          adapter_weight: float | dict[str, float] = 1.0) -> str:
        """Merge a LoRA (LoHa, LoKr, DoRA, ...) into the weights, beside those that are active → its name (the file's)

        path: a safetensors file, or a folder as diffusers and PEFT write it
        adapter_weight: its strength, or {"unet": strength, "text_encoder": strength}
        UserError if it can't be read, is for another family, or does not fit; then nothing is changed.
        """
        with self._alone:
            return self.adapters.load(path, adapter_name, adapter_weight)

    def set_adapters(self, adapter_names: str | list[str], adapter_weights: Any = 1.0) -> None:
        """Activate exactly these LoRAs among the loaded ones; each argument may be one or a list."""
        with self._alone:
            self.adapters.choose(adapter_names, adapter_weights)

    def unload_lora_weights(self) -> None:
        """Take all LoRAs out of the weights, which are then bit for bit the checkpoint's."""
        with self._alone:
            self.adapters.unload()

    def load_textual_inversion(self, path: Path, token: str | None = None) -> None:
        """Learn a word that prompts may use, or those of all files in a folder; see adapters/textual_inversion.py

        token: what to call it, in place of the file's name, or of the name in the file
        Raises UserError for a file that can't be used.
        """
        self.words.add(path, token, fitting(self.family, self.models))

    def unload_textual_inversion(self, token: str | None = None) -> None:
        """Forget a learnt word, or all of them."""
        self.words.remove(token)

    def check_prompts(self, prompts: Iterable[tuple[str, str]]) -> None:
        """UserError for an adapter or a learnt word that can't be used; prompts: pairs (prompt, negative prompt)

        Weights aren't looked at: a model may still be without.
        """
        names, texts = set(), set()
        for prompt, negative_prompt in prompts:
            text, adapters = tags.take_tags(prompt)
            names |= {name for name, _ in adapters}
            texts |= {text, negative_prompt}
        for name in sorted(names):
            self.adapters.named(name)
        for text in sorted(texts):
            list(self.words.split(text))

    def encode_prompt(self, prompt: str, clip_skip: int | None = None, prompt_syntax: str = "a1111") -> np.ndarray:
        """Text → context (1, 77 n, X), float32, n chunks; of a prompt that changes with the steps, that of the first"""
        request = Request(prompt, clip_skip=clip_skip, prompt_syntax=prompt_syntax)
        check_clip_skip(request.clip_skip, self.text_encoder.config.num_hidden_layers)
        return self.contexts([(prompt, None)], STEPS, clip_skip=request.clip_skip, syntax=prompt_syntax).at(0)[0].states

    def contexts(self, prompts: Sequence[tuple[str, str | None]], steps: int, sampler: str | None = None,
                 clip_skip: int | None = None, syntax: str = "a1111", earlier: int | None = None, count: int = 1,
                 timestep_cond: np.ndarray | None = None, sizes: list[np.ndarray] | None = None,
                 given: Sequence[Any] = (None, None)) -> Contexts:
        """What the UNet attends to, call by call → text.contexts.Contexts

        prompts: of the prompt, or of it and the negative one: what the first text encoder reads, and the second, if that is
        another text, else None
        steps and sampler say how many calls there are; earlier: the steps of a first pass, see text/editing.py
        count, timestep_cond, sizes, given: see `Contexts`
        """
        words, encoders = self.words.beside(self.adapters.words), self.encoders
        readings = [[read_prompt(other if number and other else prompt, calls(sampler, steps), encoder.tokenizer, syntax, words,
                                 None if earlier is None else calls(sampler, earlier))
                     for number, encoder in enumerate(encoders)] for prompt, other in prompts]
        if self.embedded and not self.adapters.used:             # a LoRA may have taught it more
            known_words.check_words(readings[0][0], self.tokenizer)
        zeros = self.family.zeros and len(prompts) > 1 and not any(prompts[1])
        return Contexts(readings, encoders, clip_skip or 0, count, timestep_cond, sizes, zeros, given)

    @property
    def encoders(self) -> list[Encoder]:
        """The text encoders with their tokenizers → [text.encoders.Encoder]"""
        return encoders_of(self.family, self.models, self.tokenizers)

    def decode(self, latents: np.ndarray, tile: int | None = None) -> Image.Image:
        """Latents of one picture (1, H/f, W/f, C) → PIL image; tile: side of the tiles in pixels, None for all at once"""
        return to_images(finite(self.vae, "vae", latents, tile, method="decode"))[0]

    @contextlib.contextmanager
    def _timed(self, stage):
        start = time.perf_counter()
        yield
        self.timings[stage] = self.timings.get(stage, 0) + time.perf_counter() - start


_pipelines: "weakref.WeakSet[StableDiffusionPipeline]" = weakref.WeakSet()        # all that there are


def _after_fork():
    """In a child process: the threads that held locks, and the pictures that they made, do not exist here."""
    for pipeline in _pipelines:
        pipeline._alone, pipeline._making = threading.RLock(), None


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)


def ignored(*arguments: Any) -> None:
    """Nobody listens."""


StableDiffusionPipeline.generate.__signature__ = signature(StableDiffusionPipeline.generate)
