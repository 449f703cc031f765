"""The T2I-Adapter of a pipeline: a picture that leads others, see models/t2i_adapter.py."""
from typing import Any

import numpy as np

from npdiffusion.models.diagnosis import explain
from npdiffusion.models.t2i_adapter import Features
from npdiffusion.pictures.images import fit, rgb
from npdiffusion.text.editing import calls


class PictureFeatures:
    """A T2I-Adapter      part: as by `checkpoints.t2i_adapters.open_t2i_adapter`"""
    def __init__(self, part: Any) -> None:
        self.adapter: Any = part.model


def picture_features(adapter: PictureFeatures | None, resolved: Any, way: Any) -> Features | None:
    """What a T2I-Adapter adds in a pass → Features, or None      adapter: `PictureFeatures` or None

    resolved: a request.Resolved      way: one of its passes
    """
    if adapter is None:
        return None
    request, model, (width, height) = resolved.request, adapter.adapter, way.canvas.size
    image = fit(rgb(request.t2i_image, "t2i_image"), width, height)
    image = image.convert("L") if model.adapter.colours == 1 else image
    pixels = np.asarray(image, np.float32).reshape(1, height, width, -1) / 255
    found = model(pixels)
    if not all(np.isfinite(each).all() for each in found):
        explain(model, "t2i_adapter", [(pixels,)])
    steps = calls(resolved.sampler, len(way.plan) + len(way.refining or ()))
    return Features([request.value("t2i_scale") * each for each in found], request.value("t2i_end"), steps)
