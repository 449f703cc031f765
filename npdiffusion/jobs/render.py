"""Making the pictures of a list, one after the other, for whoever asks: the command, a server, a worker.

    entry → resolved for the model → picture → its place, with its settings inside

Nothing is printed here; a `listener.Listener` hears what happens. Each picture is in its place before the next one is begun, so
that an error or Ctrl-C loses only the one at work.
"""
import time

from npdiffusion import kernels
from npdiffusion.painting.canvas import open_inputs
from npdiffusion.pictures.settings_text import model_name


def render(pipeline, entries, total, place, listener, model=None, vae=None, metadata=True, previews=None,
           make=None):
    """Make the pictures of `entries`, the last ones of `total` → {stage: seconds}, number of steps

    place: where they go, see destinations.py and manifest.py      model, vae: how they are called in the text inside
    metadata: whether there is such a text      previews: see pictures/preview.py, or None
    make: in place of the pipeline's own, with the same arguments
    Raises UserError for what this model can't make.
    """
    seconds, steps, inputs, opened = {}, 0, None, None
    names = {"model": model_name(model), "vae": None if vae is None else model_name(vae)}
    for number, entry in enumerate(entries, start=total - len(entries) + 1):
        start, request = time.perf_counter(), entry.request
        if opened != (request.init_image, request.mask_image):
            inputs, opened = open_inputs(request), (request.init_image, request.mask_image)
        resolved = pipeline.resolve(request, inputs)
        listener.begins(number, total, entry, resolved, inputs)
        try:
            image, = (make or pipeline.make)(resolved, listener.step, previews)
        finally:
            listener.ends(entry)
        steps += resolved.planned
        for stage, duration in pipeline.timings.items():
            if stage != "encoding" or request.init_image is not None or request.control_image is not None:
                seconds[stage] = seconds.get(stage, 0) + duration
        text = pipeline.texts(resolved, **names)[0] if metadata else None
        place.save(image, text, entry, {
            "seed": request.seed, "prompt": request.prompt, "negative_prompt": request.negative_prompt,
            "model": names["model"], "settings": resolved.settings(), "seconds": round(time.perf_counter() - start, 3)})
    return seconds, steps


def ended_by(check, make):
    """A pipeline's `make` that calls check() before each operation of decoding, which has no steps that a callback would hear
    of; what it raises ends the picture. (Before the last step it is for `listener.step`: a LoRA may be half merged there.)"""
    def making(resolved, callback, preview):
        decoding = False

        def step(done, total, latents):
            nonlocal decoding
            callback(done, total, latents)
            decoding = done == total

        def record(name, operation):
            if decoding:
                check()
            return operation
        with kernels.recorded(record):
            return make(resolved, step, preview)
    return making
