"""Pictures from a prompt and options: npdiffusion "a red apple" --steps 20 --seed 1 -o apple.png

    options → one set of options for each picture → image and settings → file

Whatever can be found wrong is found before the model is loaded. Each picture is in its file before the next one is
begun, so that an error or Ctrl-C loses only the one at work.
"""
import copy
import time

import npdiffusion
from npdiffusion.command.inputs import open_inputs, painting_settings, tell_about_inputs, working_size
from npdiffusion.command.output import default_name, find_output, model_name, save
from npdiffusion.command.prepare import compile_kernels, precision, set_up
from npdiffusion.command.talk import Progress, print_line, say
from npdiffusion.options import parse


def run(options):
    """Make the pictures that are asked for and tell about it, or print what --info asks for."""
    if options.info:
        return show_info(options)
    start = time.perf_counter()
    backend, threads = set_up(options)
    folder, name = find_output(options.output)
    pictures = one_by_one(options)
    check_adapters(pictures, options.lora_dir)
    inputs = open_inputs(options)
    pipeline, seconds = load(options, backend, threads)
    tell_about_inputs(options, inputs, choose_settings(options, pipeline, inputs))

    saved, steps = [], 0
    try:
        for number, picture in enumerate(pictures, start=1):
            which = f"picture {number} of {len(pictures)}: " if len(pictures) > 1 else ""
            image, text, done = make(pipeline, picture, inputs, which)
            saved.append(save(image, text, folder / (name or default_name(picture.prompt, picture.seed)), saved))
            steps += done
            for stage, duration in pipeline.timings.items():
                seconds[stage] = seconds.get(stage, 0) + duration
    finally:
        if 0 < len(saved) < len(pictures):
            say(f"{len(saved)} of {len(pictures)} pictures are saved")
    if options.init_image is None:
        seconds.pop("encoding", None)
    tell_times(seconds | {"total": time.perf_counter() - start}, steps)
    return 0


def one_by_one(options):
    """The options of each picture: the same, but for the seed, which counts on."""
    pictures = [copy.copy(options) for _ in range(options.batch_count)]
    for number, picture in enumerate(pictures):
        picture.seed += number
    return pictures


def check_adapters(pictures, lora_dir):
    """UserError for an adapter that no file can be found for."""
    from npdiffusion.adapters import folder, tags
    for name in sorted({name for picture in pictures for name, _ in tags.take(picture.prompt)[1]}):
        folder.find(lora_dir, name)


def load(options, backend, threads):
    """The pipeline, kernels compiled → pipeline, {stage: seconds}"""
    say(f"loading {options.model or 'the embedded model'}, {backend} backend, {precision(options.dtype)}, "
        f"{threads} thread{'s' * (threads > 1)}")
    start = time.perf_counter()
    pipeline = npdiffusion.load(find_model(options), dtype=options.dtype, threads=threads, tokenizer=options.tokenizer,
                                lora_dir=options.lora_dir)
    loaded = time.perf_counter()
    seconds = {"loading": loaded - start}
    if backend == "numba" and compile_kernels(options.dtype):
        seconds["compiling"] = time.perf_counter() - loaded
    return pipeline, seconds


def find_model(options):
    """What --model names: None, a path or an id"""
    from npdiffusion import catalogue
    return catalogue.resolve(options.model, options.model_dir)


def choose_settings(options, pipeline, inputs):
    """The arguments of `generate` that the picture's text names too, those that the model decides included."""
    size = working_size(options, inputs, pipeline.size)
    sampler = options.sampler or pipeline.default_sampler
    guidance = pipeline.default_guidance if options.guidance_scale is None else options.guidance_scale
    return dict(steps=options.steps, sampler=sampler, guidance_scale=guidance, seed=options.seed, rng=options.rng,
                schedule=options.schedule or pipeline.schedule.default_kind(sampler),
                width=options.width or size[0], height=options.height or size[1],
                strength=None if options.init_image is None else options.strength, **painting_settings(options))


def make(pipeline, options, inputs, which=""):
    """One picture → PIL image, text of its settings or None, number of steps; `which` begins the line that tells of it"""
    from npdiffusion.metadata import parameters
    settings = choose_settings(options, pipeline, inputs)
    planned = options.steps if options.init_image is None else int(options.steps * options.strength)
    size = f"{settings['width']}x{settings['height']} pixels"
    if options.hires:
        planned += options.hires_steps or options.steps
        size += f", again at {options.hires:g} times that size"
    say(f"{which}seed {options.seed}, {size}, {planned} step{'s' * (planned > 1)} of {settings['sampler']}")
    with Progress("step", planned) as progress:
        image, = pipeline.generate(options.prompt, options.negative_prompt, callback=progress, **settings, **inputs)
    text = None if options.no_metadata else parameters(options.prompt, options.negative_prompt,
                                                       model=model_name(options.model), **settings)
    return image, text, progress.done


def tell_times(seconds, steps):
    """Say what took how long; seconds: {stage: duration}"""
    notes = {"sampling": f" ({seconds['sampling'] / max(steps, 1):.3f} s/step)"}
    say(", ".join(f"{stage} {duration:.2f} s{notes.get(stage, '')}" for stage, duration in seconds.items()
                  if stage != "adapters" or duration >= 0.01))


def show_info(options):
    """Print what --info asks for."""
    _, threads = set_up(options)
    from npdiffusion import info
    for line in info.report(find_model(options), threads):
        print_line(line)
    return 0
