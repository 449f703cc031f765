"""What `generate` takes beside the settings of a picture, from Python alone: arrays, and seeds one by one.

    latents                   noise that pictures start from, in place of that of their seeds      (N, H/f, W/f, C)
    prompt_embeds             states that the UNet attends to, in place of a prompt's              (M, 77 n, X)
    negative_prompt_embeds    likewise, in place of the negative prompt's                          (M or 1, 77 n, X)
    pooled_prompt_embeds, negative_pooled_prompt_embeds    for XL, which reads a vector of the whole beside them    (M or 1, P)

As in diffusers: N(0, 1) latents are multiplied by the σ that the sampler starts from, and each row of the embeddings
stands for one of M prompts. No text inside a picture and no list of jobs can hold them, so they are no `settings.Request`.

M prompts of `count` pictures each, N in all, W × H pixels, C latent channels, f the VAE's reduction, n chunks of a prompt,
X the width of the text encoder, or of both, P that of the pooled vector; float32.
"""
import dataclasses
import inspect
from typing import Any, NamedTuple

import numpy as np

from npdiffusion.errors import UserError, nearest
from npdiffusion.settings import Request
from npdiffusion.text.contexts import Context

OUTPUT_TYPES = ("pil", "np", "latent")


class Given(NamedTuple):
    """What is given for one prompt; None where the request says it.

    seeds     of each picture
    embeds    `text.contexts.Context` of the prompt and of the negative one, each or None
    """
    latents: np.ndarray | None = None
    embeds: tuple[Context | None, Context | None] = (None, None)
    seeds: tuple[int, ...] | None = None
    output_type: str = "pil"

    @property
    def settings_suffice(self):
        """Whether the request alone makes the same picture."""
        return self.latents is None and all(each is None for each in self.embeds)


NOTHING = Given()


def asked(model, prompt, seed, generator, latents, embeds, output_type, **settings):
    """The arguments of `generate` → [(Request, Given)], one for each prompt

    model: a pipeline, of which configurations and family are looked at      embeds: (states, pooled vectors) of prompts, and
    of the negative one, each or None      UserError for what can't be used.
    """
    if not isinstance(output_type, str) or output_type not in OUTPUT_TYPES:
        raise UserError(f"output_type is {output_type!r:.60}: {nearest(output_type, OUTPUT_TYPES)}known are "
                        f"{', '.join(OUTPUT_TYPES)}")
    (prompt_embeds, _), (negative_prompt_embeds, _) = embeds
    for name, values, words in zip(("prompt_embeds", "negative_prompt_embeds"), embeds, (prompt, settings["negative_prompt"])):
        check_embeds(model, name, *values)
        if values[0] is not None and words:
            raise UserError(f"{name} stand in place of the {name.removesuffix('_embeds').replace('_', ' ')}: give one of them")
    prompts = [prompt] if prompt is None or isinstance(prompt, str) else list(prompt)
    prompts = prompts if prompt_embeds is None else [""] * len(prompt_embeds)
    if negative_prompt_embeds is not None and len(negative_prompt_embeds) not in (1, len(prompts)):
        raise UserError(f"negative_prompt_embeds: {len(negative_prompt_embeds)} given, there must be 1, or one for each "
                        f"prompt, {len(prompts)}")
    if latents is not None:                                        # they say the size, if nothing else does
        f, channels = model.vae.config.reduction, model.vae.config.latent_channels
        check_array("latents", latents, f"(N, H/{f}, W/{f}, {channels})", (None, None, None, channels))
        settings = {"width": latents.shape[2] * f, "height": latents.shape[1] * f} | settings

    seeds = list_of_seeds(seed) if isinstance(seed, (list, tuple, range, np.ndarray)) else None
    for each in seeds, latents:                                    # and how many pictures
        if each is not None and prompts and not {"count", "num_images_per_prompt"} & {*settings}:
            settings["count"] = max(len(each) // len(prompts), 1)
    requests = [Request.of(prompt=each, seed=None if seeds else seed, **settings) for each in prompts]
    total = sum(request.count for request in requests)
    if generator is not None:
        seeds = drawn(generator, seed, total)
    for name, each in (("seed", seeds), ("latents", latents)):
        if each is not None and len(each) != total:
            raise UserError(f"{name}: {len(each)} given, there must be one for each picture, {total}")
    if latents is not None:
        for name in "init_image", "subseed_strength":
            if any(getattr(request, name) for request in requests):
                raise UserError(f"latents: pictures start from them alone, so not with {name}")
    return [one_of(number, request, seeds, latents, embeds, output_type)
            for number, request in enumerate(requests)]


def one_of(number, request, seeds, latents, embeds, output_type):
    """What belongs to one of the requests → (Request, Given), its seed the first one's that it has"""
    own = slice(number * request.count, (number + 1) * request.count)
    if seeds is not None:
        request = request.changed(seed=seeds[own.start])
    elif request.seed is not None:
        request = request.changed(seed=request.seed + own.start)
    positive, negative = (None if pair[0] is None else Context(*(
        each if each is None else each[min(number, len(each) - 1)][None] for each in pair)) for pair in embeds)
    return request, Given(None if latents is None else latents[own], (positive, negative),
                          None if seeds is None else tuple(seeds[own]), output_type)


def list_of_seeds(seeds):
    """A list of whole numbers → list, each checked as a seed"""
    if np.ndim(seeds) != 1 or len(seeds) == 0:
        raise UserError(f"seed is {seeds!r:.60}: it must be a whole number, or a list of them, one for each picture")
    return [Request(prompt="", seed=each).seed for each in seeds]


def drawn(generator, seed, count):
    """So many seeds from a numpy.random.Generator, so that pictures can be made again one by one."""
    if not isinstance(generator, np.random.Generator):
        kind = type(generator[0] if isinstance(generator, (list, tuple)) and generator else generator)
        raise UserError(f"generator is a {kind.__name__} of {kind.__module__.partition('.')[0]}: say seed=S, which gives the "
                        "numbers of torch.Generator().manual_seed(S), or seed=[S, ...]; a numpy.random.Generator is taken")
    if seed is not None:
        raise UserError("generator draws the seeds: give it or seed")
    return [int(each) for each in generator.integers(2**32, size=count)]


def check_embeds(model, name, value, pooled):
    """UserError unless states of prompts can be attended to by this model, with pooled vectors if it reads them."""
    other = name.replace("prompt_embeds", "pooled_prompt_embeds")
    if pooled is not None and (value is None or not model.family.added):
        raise UserError(f"{other}: they go with {name}, and with XL alone")
    if value is None:
        return
    if model.family.added and pooled is None:
        raise UserError(f"{name}: {model.family.name} reads a pooled vector beside them: give {other}, too")
    if pooled is not None:
        wanted = model.models[model.family.text_encoders[-1]].config.projection_dim
        check_array(other, pooled, f"({len(value)}, {wanted})", (len(value), wanted))
    width, length = model.unet.config.cross_attention_dim, model.tokenizer.length
    check_array(name, value, f"(N, {length} n, {width})", (None, None, width))
    if value.shape[1] % length:
        raise UserError(f"{name} has {value.shape[1]} states a row: it must be a multiple of {length}")


def check_array(name, value, shape, sides):
    """UserError unless value is a float32 array whose sides are at least 1 and as given, None for any, and finite."""
    if not isinstance(value, np.ndarray):
        raise UserError(f"{name} is a {type(value).__name__}: it must be a NumPy array {shape} of float32")
    right = value.ndim == len(sides) and value.size and all(
        wanted in (None, side) for wanted, side in zip(sides, value.shape))
    if value.dtype != np.float32 or not right:
        raise UserError(f"{name} is an array {value.shape} of {value.dtype}: it must be {shape} of float32")
    if not np.isfinite(value).all():
        raise UserError(f"{name} has values that are not finite")


def signature(generate: Any) -> inspect.Signature:
    """What help and completion show of `generate`: each setting with its type and default."""
    own = inspect.signature(generate)
    first, last = list(own.parameters.values())[:3], list(own.parameters.values())[3:-1]
    settings = [inspect.Parameter(field.name, inspect.Parameter.KEYWORD_ONLY, default=field.default, annotation=field.type)
                for field in dataclasses.fields(Request) if field.name not in own.parameters]
    return own.replace(parameters=[*first, *settings, *last])
