"""Pictures from a prompt and options: npdiffusion "a red apple" --steps 20 --seed 1 -o apple.png

    options → one set of options for each picture → image and settings → file

Whatever can be found wrong is found before the model is loaded. Each picture is in its file before the next one is
begun, so that an error or Ctrl-C loses only the one at work.
"""
import os
import time

import npdiffusion
from npdiffusion.command.inputs import INPUTS, final_size, open_inputs, painting_settings, tell_about_inputs, working_size
from npdiffusion.command.options import parse, without_effect  # noqa: F401 (a command has `parse` and `run`, see cli.py)
from npdiffusion.command.prepare import compile_kernels, precision, set_up
from npdiffusion.command.previews import find_previews, start_previews
from npdiffusion.command.talk import Progress, print_line, say
from npdiffusion.errors import UserError
from npdiffusion.jobs.destinations import Files, OneSheet, find_output, model_name, write_grid
from npdiffusion.jobs.manifest import Manifest

SAMPLING = ("eta", "guidance_rescale", "subseed", "subseed_strength", "timestep_spacing", "prediction_type",
            "rescale_betas_zero_snr")                # arguments of `generate` that are left out unless they are given


def run(options):
    """Make the pictures that are asked for and tell about it, or print what --info asks for."""
    if options.info:
        return show_info(options)
    start = time.perf_counter()
    backend, threads = set_up(options)
    with destination(options) as place:
        left = place.left(options.pictures)
        fill_wildcards(options.pictures, options.wildcards)
        check_adapters(left, options.lora_dir)
        check_words(left, options.embedding_dir)
        for picture in {inputs_of(picture): picture for picture in left}.values():
            open_inputs(picture)
        if options.prompts is not None:
            done = len(options.pictures) - len(left)
            say(f"{options.prompts}: {len(options.pictures)} pictures, {done} are there already")
        tiny = find_previews(options, place.folder)
        if left:
            pipeline, seconds = load(options, backend, threads, left, tiny)
            previews = start_previews(options, tiny, pipeline)
            steps = make_all(pipeline, left, len(options.pictures), place, seconds, previews)
        if options.grid:
            first = options.pictures[0].path
            name = "grid.png" if options.prompts is not None else f"{first.stem}-grid.png"
            write_grid(options.pictures, first.parent, name, left)
    if left:
        tell_times(seconds | {"total": time.perf_counter() - start}, steps)
    return 0


def destination(options):
    """Where pictures go: each to its file, also to a manifest, or all to one sheet"""
    folder, name = find_output(options.output)
    if options.compare_samplers is not None:
        return OneSheet(folder, name, len(options.compare_samplers))
    if options.prompts is None:
        return Files(folder, name)
    if name is not None:
        raise UserError(f"--output: with --prompts it is a folder (to have {options.output} created, end it in /)")
    return Manifest(folder)


def make_all(pipeline, pictures, total, place, seconds, previews=None):
    """Make pictures, the last ones of `total`, and save each; their times are added to `seconds` → number of steps"""
    steps, previous, told, noted = 0, None, None, set()
    for number, picture in enumerate(pictures, start=total - len(pictures) + 1):
        start = time.perf_counter()
        others = inputs_of(picture) != previous
        if others:
            inputs, previous = open_inputs(picture), inputs_of(picture)
        settings = choose_settings(picture, pipeline, inputs)
        if others:
            tell_about_inputs(picture, inputs, settings)
        told = tell_about_defaults(picture, pipeline, told)
        for line in without_effect(picture, settings):
            if line not in noted:
                noted.add(line)
                say(line)
        which = f"picture {number} of {total}: " if total > 1 else ""
        image, text, done = make(pipeline, picture, settings, inputs, which, previews)
        steps += done
        for stage, duration in pipeline.timings.items():
            if stage != "encoding" or picture.init_image is not None:
                seconds[stage] = seconds.get(stage, 0) + duration
        place.save(image, text, picture, {
            "seed": picture.seed, "prompt": picture.prompt, "negative_prompt": picture.negative_prompt,
            "model": model_name(picture.model),
            "settings": {name: value for name, value in settings.items() if value is not None},
            "seconds": round(time.perf_counter() - start, 3)})
    return steps


def fill_wildcards(pictures, folder):
    """Choose the words that __name__ stands for, by each picture's seed."""
    if folder is not None:
        from npdiffusion.jobs.wildcards import Wildcards
        wildcards = Wildcards(folder)
        for picture in pictures:
            texts = picture.prompt, picture.negative_prompt
            picture.prompt, picture.negative_prompt = wildcards.expand(picture.seed, *texts)


def inputs_of(options):
    """What `open_inputs` and `tell_about_inputs` depend on."""
    return tuple(getattr(options, name) for name in INPUTS)


def check_adapters(pictures, lora_dir):
    """UserError for a folder that isn't there, and for an adapter that no file can be found for."""
    from npdiffusion.adapters import folder, tags
    if lora_dir is not None and not os.path.isdir(os.path.expanduser(lora_dir)):
        raise UserError(f"--lora-dir: there is no folder {lora_dir}")
    for name in sorted({name for picture in pictures for name, _ in tags.take(picture.prompt)[1]}):
        folder.find(lora_dir, name)


def check_words(pictures, embedding_dir):
    """UserError for a learnt word in a prompt whose file can't be used."""
    from npdiffusion.adapters.textual_inversion import LearntWords
    words = LearntWords()
    if embedding_dir is not None:
        if not os.path.exists(os.path.expanduser(embedding_dir)):      # a file is taken too
            raise UserError(f"--embedding-dir: there is no folder {embedding_dir}")
        words.add(embedding_dir)
    for picture in pictures:
        for prompt in picture.prompt, picture.negative_prompt:
            list(words.split(prompt))


def load(options, backend, threads, pictures, tiny=None):
    """The pipeline, kernels compiled → pipeline, {stage: seconds}; tiny: TAESD for previews, as `find_previews` has it"""
    weights = f"within {options.max_memory}" if options.max_memory else precision(options.dtype or "float32")
    say(f"loading {options.model or 'the embedded model'}, {backend} backend, {weights}, "
        f"{threads} thread{'s' * (threads > 1)}")
    start = time.perf_counter()
    pipeline = npdiffusion.load(find_model(options), dtype=options.dtype, threads=threads, tokenizer=options.tokenizer,
                                lora_dir=options.lora_dir, vae=options.vae, embedding_dir=options.embedding_dir,
                                prompts=[(picture.prompt, picture.negative_prompt) for picture in pictures],
                                **budget_settings(options, pictures, tiny))
    loaded = time.perf_counter()
    seconds = {"loading": loaded - start}
    budget = pipeline.budget if options.max_memory else None
    if backend == "numba" and compile_kernels(budget.dtype if budget else options.dtype or "float32"):
        seconds["compiling"] = time.perf_counter() - loaded
    if budget:
        budget.measure(pipeline.unet, pipeline.vae.config.reduction)
        say(budget)
    return pipeline, seconds


def budget_settings(options, pictures, tiny=None):
    """The arguments of `load` that --max-memory leads to: the picture that needs most matters, of those to be made."""
    if options.max_memory is None:
        return {}
    kinds = {(inputs_of(picture), picture.hires): picture for picture in pictures}.values()
    guided = any(picture.guidance_scale is None or picture.guidance_scale > 1 for picture in pictures)
    return {"max_memory": options.max_memory, "vae_tiling": options.vae_tiling, "images": 2 if guided else 1,
            "size": lambda customary, reduction: [final_size(picture, customary, reduction) for picture in kinds],
            "preview_vae": tiny and tiny.model}


def find_model(options):
    """What --model names: None, a path or an id"""
    from npdiffusion.checkpoints import library
    return library.resolve(options.model, options.model_dir)


def choose_settings(options, pipeline, inputs):
    """The arguments of `generate` that the picture's text names too, those that the model decides included."""
    width, height = working_size(options, inputs, pipeline.size, pipeline.vae.config.reduction)
    sampler = options.sampler or pipeline.default_sampler
    asked = pipeline.defaults(options.sampler)
    guidance = asked.guidance_scale if options.guidance_scale is None else options.guidance_scale
    given = {name: getattr(options, name) for name in SAMPLING if getattr(options, name) not in (None, False)}
    return dict(steps=options.steps or asked.steps, sampler=sampler, guidance_scale=guidance, seed=options.seed,
                rng=options.rng, schedule=options.schedule or pipeline.schedule.default_kind(sampler), **given,
                width=width, height=height, clip_skip=options.clip_skip,
                strength=None if options.init_image is None else options.strength,
                prompt_syntax=options.prompt_syntax, **painting_settings(options))


def make(pipeline, options, settings, inputs, which="", previews=None):
    """One picture → PIL image, text of its settings or None, number of steps; `which` begins the line that tells it"""
    from npdiffusion.pictures.settings_text import parameters
    steps = settings["steps"]
    planned = steps if options.init_image is None else int(steps * options.strength)
    size = f"{settings['width']}x{settings['height']} pixels"
    if options.hires:
        planned += options.hires_steps or steps
        size += f", again at {options.hires:g} times that size"
    say(f"{which}seed {options.seed}, {size}, {planned} step{'s' * (planned > 1)} of {settings['sampler']}")
    with Progress("step", planned) as progress:
        image, = pipeline.generate(options.prompt, options.negative_prompt, callback=progress, **settings, **inputs,
                                   vae_tiling=options.vae_tiling, preview=previews)
    if previews and previews.saved_strip:
        say(f"all steps are in {previews.saved_strip}")
    models = {"model": model_name(options.model), "vae": None if options.vae is None else model_name(options.vae)}
    text = None if options.no_metadata else parameters(options.prompt, options.negative_prompt, **models, **settings,
                                                       hashes=pipeline.adapters.hashes())
    return image, text, progress.done


def tell_about_defaults(options, pipeline, told=None):
    """Say what a model for few steps is asked for, where the options leave it open → what is said, or was `told` last"""
    asked = pipeline.defaults(options.sampler)
    what = [f"{asked.steps} steps"] * (options.steps is None)
    what += [f"guidance scale {asked.guidance_scale:g}"] * (options.guidance_scale is None)
    line = f"{asked.reason}: {' and '.join(what)} (--steps and --cfg-scale choose others)" if asked.reason and what else told
    if line != told:
        say(line)
    return line


def tell_times(seconds, steps):
    """Say what took how long; seconds: {stage: duration}"""
    notes = {"sampling": f" ({seconds['sampling'] / max(steps, 1):.3f} s/step)"}
    say(", ".join(f"{stage} {duration:.2f} s{notes.get(stage, '')}" for stage, duration in seconds.items()
                  if stage != "adapters" or duration >= 0.01))


def show_info(options):
    """Print what --info asks for."""
    _, threads = set_up(options)
    from npdiffusion.command import info
    for line in info.report(find_model(options), threads):
        print_line(line)
    return 0
