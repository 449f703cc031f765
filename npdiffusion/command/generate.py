"""Pictures from a prompt and options: npdiffusion "a red apple" --steps 20 --seed 1 -o apple.png

    options → a list of entries, one for each picture → jobs/render.py → files

Whatever can be found wrong is found before the model is loaded.
"""
import math
import os
import time

import npdiffusion
from npdiffusion.command.inside import Inside, find_inside
from npdiffusion.command.options import parse_options, without_effect
from npdiffusion.command.prepare import compile_kernels, nothing_collected, precision, set_up
from npdiffusion.command.previews import find_previews, start_previews
from npdiffusion.command.talk import Progress, print_line, say
from npdiffusion.errors import UserError
from npdiffusion.jobs.listener import Listener
from npdiffusion.settings import ON_COMMAND_LINE, Request

LARGE = 4                                 # times the pixels of the training, from which on a step may take minutes

parse = parse_options                     # a command has `parse` and `run`, see cli.py


def run(options):
    """Make the pictures that are asked for and report on it, or print what --info asks for."""
    if options.info:
        return show_info(options)
    start = time.perf_counter()
    backend, threads = set_up(options)
    from npdiffusion.jobs.destinations import write_grid
    from npdiffusion.jobs.render import render
    reporter, entries = Reporter(options), options.entries
    with destination(options, reporter) as place:
        left = place.left(entries)
        fill_wildcards(entries, options.wildcards)
        check_files(left, options)
        if options.prompts is not None:
            there, plural = len(entries) - len(left), "s" * (len(entries) > 1)
            say(f"{options.prompts}: {len(entries)} picture{plural}, {there} {'is' if there == 1 else 'are'} there already")
        tiny, failed = find_previews(options, place.folder), 0
        find_inside(options)
        if left and options.cluster is not None:
            from npdiffusion.command import cluster
            failed = cluster.make(options, left, place, reporter)
        elif left:
            pipeline, seconds = load(options, backend, threads, left, tiny)
            suit_model(pipeline, left, options)
            previews = reporter.previews = start_previews(options, tiny, pipeline)
            inside = reporter.inside = None if options.inside is None else Inside(pipeline, options)
            spent, steps = render(pipeline, left, len(entries), place, reporter, options.model, options.vae,
                                  not options.no_metadata, previews, inside and inside.make)
        if options.grid and not failed:
            first = entries[0].path
            name = "grid" if options.prompts is not None else f"{first.stem}-grid"
            write_grid(entries, first.parent, name + first.suffix, left, reporter)
    if left and options.cluster is None:
        tell_times(seconds | spent | {"total": time.perf_counter() - start}, steps)
    return 1 if failed else 0


def destination(options, listener):
    """Where pictures go: each to its file, also to a manifest, or all to one sheet"""
    from npdiffusion.jobs.destinations import Files, Numbered, OneSheet, find_output
    from npdiffusion.jobs.manifest import Manifest
    folder, name = find_output(options.output)
    if options.compare_samplers is not None:
        return OneSheet(folder, name, len(options.compare_samplers), listener)
    if options.prompts is None:
        return Files(folder, name, listener)
    if name is not None and not isinstance(name, Numbered):
        raise UserError(f"--output: with --prompts it is a folder (to have {options.output} created, end it in /), or its "
                        "name has a place for the number: %03d")
    return Manifest(folder, listener, name)


def fill_wildcards(entries, folder):
    """Choose the words that __name__ stands for, by each picture's seed."""
    from npdiffusion.jobs.wildcards import Wildcards, note_unfilled
    if folder is None:
        return note_unfilled(text for entry in entries for text in (entry.request.prompt, entry.request.negative_prompt))
    wildcards = Wildcards(folder)
    for entry in entries:
        request = entry.request
        prompt, negative_prompt = wildcards.expand(request.seed, request.prompt, request.negative_prompt)
        entry.request = request.changed(prompt=prompt, negative_prompt=negative_prompt)


def check_files(entries, options):
    """UserError for what pictures need and can't be used: adapters and learnt words in prompts, pictures to start from."""
    from npdiffusion.adapters import folder, tags
    from npdiffusion.adapters.textual_inversion import LearntWords
    from npdiffusion.memory import budget
    from npdiffusion.painting.canvas import open_inputs
    from npdiffusion.pictures.images import rgb
    from npdiffusion.settings.kinds import Memory
    if options.liked is not None:
        for entry in entries:
            entry.request = without_missing(entry, options)
    requests = [entry.request for entry in entries]
    if options.lora_dir is not None and not os.path.isdir(os.path.expanduser(options.lora_dir)):
        raise UserError(f"--lora-dir: there is no folder {options.lora_dir}")
    for name in sorted({name for request in requests for name, _ in tags.take_tags(request.prompt)[1]}):
        folder.find_adapter(options.lora_dir, name)
    words = LearntWords()
    if options.embedding_dir is not None:
        if not os.path.exists(os.path.expanduser(options.embedding_dir)):      # a file is taken too
            raise UserError(f"--embedding-dir: there is no folder {options.embedding_dir}")
        words.add(options.embedding_dir)
    for request in requests:
        for prompt in request.prompt, request.negative_prompt:
            list(words.split(prompt))
    if options.max_memory is not None:
        budget.require_reading(Memory.bytes(options.max_memory), requests)
    for request in {(request.init_image, request.mask_image): request for request in requests}.values():
        open_inputs(request)
    for image in {image for request in requests for image in request.control_image or ()}:
        rgb(image, "control_image")


def without_missing(entry, options):
    """The request without tags in a prompt from another picture, by --like, whose adapters aren't here; a note on each"""
    from npdiffusion.adapters import folder, tags
    request = entry.request
    for name in {name for name, _ in tags.take_tags(request.prompt)[1]} if "prompt" not in entry.named else ():
        try:
            folder.find_adapter(options.lora_dir, name)
        except UserError as error:
            request = request.changed(prompt=tags.without(request.prompt, name))
            options.liked.say(f"the prompt is followed without <lora:{name}> ({error})")
    return request


def without_adapters(entries, options, error):
    """Take the tags out of prompts from another picture, by --like → whether there were any; a note says why"""
    from npdiffusion.adapters import tags
    tagged = [entry for entry in entries if options.liked is not None and "prompt" not in entry.named
              and tags.take_tags(entry.request.prompt)[1]]
    for entry in tagged:
        entry.request = entry.request.changed(prompt=tags.take_tags(entry.request.prompt)[0])
        options.liked.say(f"the prompt is followed without its adapters ({error})")
    return bool(tagged)


def suit_model(pipeline, entries, options):
    """Take out of the requests what comes from another picture, by --like, and can't be had of this model; a note on each."""
    if options.liked is None:
        return
    differing, suited = ("prompt", "negative_prompt", "seed", "subseed"), {}
    for entry in entries:
        settings = entry.request.given()
        key = str([(name, value) for name, value in settings.items() if name not in differing])
        if key not in suited:
            compared = ("sampler", "steps") if options.compare_samplers is not None else ()
            names = options.liked.found.keys() - entry.named - {*compared}
            left = options.liked.suited(settings, names, lambda settings: pipeline.resolve(Request(**settings)))
            suited[key] = settings.keys() - left.keys()
        if suited[key]:
            entry.request = Request(**{name: value for name, value in settings.items() if name not in suited[key]})


def load(options, backend, threads, entries, tiny=None):
    """The pipeline, kernels compiled → pipeline, {stage: seconds}; tiny: TAESD for previews, as `find_previews` has it"""
    weights = f"within {options.max_memory}" if options.max_memory else precision(options.dtype or "float32")
    say(f"loading {options.model or 'the embedded model'}, {backend} backend, {weights}, "
        f"{threads} thread{'s' * (threads > 1)}")
    start = time.perf_counter()

    def loaded_for(entries):
        return npdiffusion.load(find_model(options), dtype=options.dtype, threads=threads, tokenizer=options.tokenizer,
                                lora_dir=options.lora_dir, vae=options.vae, embedding_dir=options.embedding_dir,
                                max_memory=options.max_memory, requests=[entry.request for entry in entries],
                                preview_vae=tiny and tiny.model, control=options.control,
                                unet=options.unet, refiner=options.refiner, ip_adapter=options.ip_adapter,
                                image_encoder=options.ip_encoder, t2i_adapter=options.t2i_adapter)

    def read():
        nonlocal pipeline, loaded
        with nothing_collected():
            try:
                pipeline = loaded_for(entries)
            except UserError as error:    # of an adapter for another model, perhaps: then nothing has been read yet
                if not without_adapters(entries, options, error):
                    raise
                pipeline = loaded_for(entries)
        loaded = time.perf_counter()

    pipeline, loaded, compiled, dtype = None, None, False, options.dtype or "float32"
    if backend == "numba" and not options.max_memory:
        compiled = compile_kernels(dtype, meanwhile=read)
    else:
        read()
    budget = pipeline.budget
    if backend == "numba" and budget:                      # which may have chosen another dtype
        compiled = compile_kernels(budget.dtype) or compiled
    seconds = {"loading": loaded - start}
    if compiled:
        seconds["compiling"] = time.perf_counter() - loaded
    if budget:
        budget.measure([pipeline.unet, *pipeline.controlnets], pipeline.vae.config.reduction)
        say(budget)
    elif backend == "numba":
        foretell(pipeline, entries)
    return pipeline, seconds


def foretell(pipeline, entries):
    """Say beforehand how long a step takes if pictures are so large that it takes minutes."""
    from npdiffusion.memory.budget import Budget
    from npdiffusion.request import largest_size
    reduction = pipeline.vae.config.reduction
    trained = (pipeline.unet.config.sample_size * reduction,) * 2
    width, height = max((largest_size(entry.request, trained, reduction) for entry in entries), key=math.prod,
                        default=trained)             # of a server or a worker, which learns what is asked for later
    if width * height < LARGE * math.prod(trained):
        return                                             # measuring would take longer than it is worth
    measured = Budget(None, "float32", width, height)
    measured.measure([pipeline.unet, *pipeline.controlnets], reduction)
    if measured.seconds >= 60:
        say(f"{width}×{height} pixels: a step takes about {measured.seconds / 60:.2g} minutes")


def find_model(options):
    """What --model names: None, a path or an id"""
    from npdiffusion.checkpoints import library
    return library.resolve(options.model, options.model_dir)


class Reporter(Listener):
    """Writes what happens: lines and a bar on stderr, the names of files on stdout."""
    def __init__(self, options):
        self.options, self.previews, self.inside, self.bar = options, None, None, None
        self.inputs, self.defaults, self.noted = None, None, set()        # what has been said of them

    def begins(self, number, total, entry, resolved, inputs):
        if self.inputs != inputs_of(entry.request):
            self.inputs = inputs_of(entry.request)
            tell_scaling(entry.request, resolved, inputs)
        self.defaults = tell_defaults(resolved, self.defaults)
        for line in without_effect(self.options, entry, resolved):
            if line not in self.noted:
                self.noted.add(line)
                say(line)
        size = "{}x{} pixels".format(*resolved.size)
        if resolved.request.hires:
            size += f", again at {resolved.request.hires:g} times that size"
        which = f"picture {number} of {total}: " if total > 1 else ""
        steps = resolved.planned
        say(f"{which}seed {entry.request.seed}, {size}, {steps} step{'s' * (steps > 1)} of {resolved.sampler}")
        self.bar = Progress("step", steps)
        self.bar.__enter__()

    def step(self, done, total, latents):
        self.bar(done, total)

    def ends(self, entry):
        self.bar.__exit__()
        if self.previews and self.previews.saved_strip:
            say(f"all steps are in {self.previews.saved_strip}")

    def saved(self, path):
        print_line(path)
        if self.inside:
            self.inside.write()

    def note(self, text):
        say(text)


def inputs_of(request):
    """What `tell_scaling` depends on."""
    names = "init_image", "mask_image", "apply_overlay", "outpaint", "padding_mask_crop", "width", "height"
    return tuple(getattr(request, name) for name in names)


def tell_scaling(request, resolved, inputs):
    """Say what is done with the size of the picture that is painted on."""
    if inputs.picture is None:
        return
    from npdiffusion.request import extended_size
    size, wanted = extended_size(request, inputs.picture.size), "{}x{}".format(*resolved.size)
    if request.padding_mask_crop is not None:
        say(f"{request.init_image}: what is masked, and {request.padding_mask_crop} pixels around it, is painted at {wanted}")
    elif size != resolved.size:
        before = "{}x{}".format(*inputs.picture.size)
        extended = ", extended to {}x{},".format(*size) if request.outpaint else ""
        say(f"{request.init_image}: its {before} pixels{extended} are scaled and cut to {wanted}")


def tell_defaults(resolved, said=None):
    """Say what a model for few steps is asked for where the options leave it open → the line, or the one `said` last"""
    request = resolved.request
    what = [f"{resolved.steps} steps"] * (request.steps is None)
    what += [f"guidance scale {resolved.guidance_scale:g}"] * (request.guidance_scale is None)
    if not resolved.reason or not what:
        return said
    line = (f"{resolved.reason}: {' and '.join(what)} ({ON_COMMAND_LINE.steps} and {ON_COMMAND_LINE.guidance_scale} "
            "choose others)")
    if line != said:
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
