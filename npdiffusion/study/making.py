"""Making a picture as `generate` does, while operations are watched and steps counted."""
import contextlib

from npdiffusion import kernels
from npdiffusion.errors import UserError
from npdiffusion.pictures.made import with_settings
from npdiffusion.settings import Request


class Stopped(Exception):
    """Raised by a watch that has seen enough."""


def resolved_for(pipeline, prompt, negative_prompt="", **settings):
    """What `generate` with these arguments would make → request.Resolved; UserError for several prompts, or two models"""
    if not isinstance(prompt, str):
        raise UserError("one prompt is looked into at a time")
    resolved = pipeline.resolve(Request.of(prompt=prompt, negative_prompt=negative_prompt or "", **settings))
    if any(way.refining for way in resolved.passes):
        raise UserError("one model is looked into at a time: load it without its refiner")
    return resolved


def make(pipeline, resolved, watches, step=None, preview=None):
    """The pictures of a `Resolved`; an empty list if a watch raises `Stopped`

    watches: functions for `kernels.watched`, called in their order; step, preview: as for `pipeline.make`
    """
    with contextlib.ExitStack() as stack:
        for watch in watches:
            stack.enter_context(kernels.watched(watch))
        try:
            return pipeline.make(resolved, step, preview)
        except Stopped:
            return []


def finished(pipeline, resolved, images):
    """Pictures with their settings inside, as `generate` returns them"""
    return [with_settings(image, text) for image, text in zip(images, pipeline.texts(resolved))]
