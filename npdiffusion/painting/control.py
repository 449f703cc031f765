"""What ControlNets are shown of the pictures that lead them.

    picture → scaled and cut to the canvas, in [0, 1] → hint, once for all steps           models/controlnet.py has the rest
"""
import numpy as np

from npdiffusion.errors import UserError
from npdiffusion.models.controlnet import Control, Controls
from npdiffusion.models.diagnosis import finite
from npdiffusion.painting.refining import states
from npdiffusion.pictures import maps
from npdiffusion.pictures.images import rgb
from npdiffusion.settings import several
from npdiffusion.text.editing import calls

OF_EACH = "control_from", "control_scale", "control_start", "control_end"


def check(request, controlnets):
    """UserError unless each of so many ControlNets has its picture, and settings are one for all, or one for each."""
    pictures = len(request.control_image or ())
    if bool(pictures) != bool(controlnets):
        raise UserError("a ControlNet and the picture that leads it go together: name the one that is missing (in Python "
                        "load_controlnet, control_image; on the command line --control, --control-image)")
    if pictures != controlnets:
        raise UserError(f"control_image: there are {pictures} for {controlnets} ControlNets; name one for each, in their order")
    for name in OF_EACH:
        count = len(several(request, name))
        if count not in (1, controlnets):
            raise UserError(f"{name}: there are {count} for {controlnets} ControlNets; name one for all, or one for each")
    for start, end in zip(*(each(request, name, controlnets) for name in ("control_start", "control_end"))):
        if start >= end:
            raise UserError(f"control_end is {end:g}: it must be above control_start, {start:g}")


def each(request, name, count):
    """A setting's value for each of so many ControlNets"""
    found = several(request, name)
    return found if len(found) == count else found * count


def controls(controlnets, resolved, way):
    """What ControlNets add in a pass → models.controlnet.Controls, or None without any

    controlnets: their models      resolved: a request.Resolved      way: one of its passes
    """
    request = resolved.request
    asked = [each(request, name, len(controlnets)) for name in OF_EACH]
    found = []
    for model, image, made, *how in zip(controlnets, request.control_image or (), *asked):
        picture = np.asarray(maps.make(made, way.canvas.seen(rgb(image, "control_image"))), np.float32)[None] / 255
        hint = finite(model.controlnet_cond_embedding, "controlnet", picture)
        found.append(Control(model, hint, *how, request.guess_mode, calls(resolved.sampler, states(way))))
    return Controls(found) if found else None
