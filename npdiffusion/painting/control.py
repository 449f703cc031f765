"""What a ControlNet is shown of the picture that leads it.

    picture → scaled and cut to the canvas, in [0, 1] → hint, once for all steps           models/controlnet.py has the rest
"""
import numpy as np

from npdiffusion.models.controlnet import Control
from npdiffusion.models.diagnosis import finite
from npdiffusion.pictures.images import fit, rgb
from npdiffusion.text.editing import calls


def control(model, resolved, way):
    """What a ControlNet adds in a pass → models.controlnet.Control, or None without a picture

    resolved: a request.Resolved      way: one of its passes
    """
    request = resolved.request
    if request.control_image is None:
        return None
    picture = np.asarray(fit(rgb(request.control_image, "control_image"), *way.canvas.size), np.float32)[None] / 255
    hint = finite(model.controlnet_cond_embedding, "controlnet", picture)
    steps = len(way.plan) + len(way.refining or ())
    return Control(model, hint, *(request.value(name) for name in ("control_scale", "control_start", "control_end")),
                   request.guess_mode, calls(resolved.sampler, steps))
