"""Models distilled to need few steps: how they are recognised, and what is asked of them where nothing is said.

    what                                        recognised by                                         steps   guidance
    guidance distilled into the model (LCM)     time_cond_proj_dim in unet/config.json                 4      8.5, embedded
    consistency models (LCM, TCD and LoRAs)     LCMScheduler, TCDScheduler, or sampler lcm, tcd        4      1: none
    adversarial distillation (SD-Turbo)         Euler with trailing spacing, predicting ε              4      1: none
    all others                                                                                        50      7.5, XL: 5

A checkpoint whose own model_index.json names a guidance scale is believed instead. Trailing spacing alone proves
nothing: models with zero terminal SNR have it too, and those predict v.
"""
from typing import NamedTuple

from npdiffusion.settings import STEPS

FEW = 4
CUSTOMARY_GUIDANCE = 7.5              # what users of SD v1 expect where the checkpoint says nothing
EMBEDDED_GUIDANCE = 8.5               # diffusers' for latent consistency models
CONSISTENCY = ("lcm", "tcd")
TURBO_CLASSES = ("EulerDiscreteScheduler", "EulerAncestralDiscreteScheduler")


class Defaults(NamedTuple):
    steps: int
    guidance_scale: float
    reason: str | None                # why they are not the customary ones


def defaults(schedule, embedded=False, sampler=None, advised=None, customary=CUSTOMARY_GUIDANCE):
    """What to ask of a model with this `NoiseSchedule`.

    embedded   whether its UNet takes the guidance scale
    sampler    a name, or None for the checkpoint's own
    advised    the guidance scale that its makers advise, or None
    customary  the scale of its family, for a model that is not made for few steps
    """
    own = schedule.class_name.removesuffix("Scheduler").lower()
    if sampler in CONSISTENCY and own not in CONSISTENCY and not embedded:           # a LoRA makes it one
        return Defaults(FEW, 1.0, f"{sampler} is for models that need few steps and no guidance")
    found = _recognised(schedule, embedded, own, customary)
    return found if advised is None else found._replace(guidance_scale=advised)


def _recognised(schedule, embedded, own, customary):
    if embedded:
        return Defaults(FEW, EMBEDDED_GUIDANCE, "a latent consistency model that takes the guidance scale itself")
    if own in CONSISTENCY:
        return Defaults(FEW, 1.0, f"a model distilled for {own}, which needs few steps and no guidance")
    turbo = (schedule.class_name in TURBO_CLASSES and schedule.timestep_spacing == "trailing"
             and schedule.prediction_type == "epsilon" and not schedule.rescale_betas_zero_snr)
    if turbo:
        return Defaults(FEW, 1.0, "a model with Euler steps of trailing spacing, as those distilled like SD-Turbo have")
    return Defaults(STEPS, customary, None)
