"""A checkpoint's scheduler_config.json: the sampler it was saved with, and what diffusers makes of its settings.

Every setting that changes a picture is either followed or, when the checkpoint's own sampler is used, refused by name.
A setting that diffusers' class does not have is ignored, as it is there.

diffusers' Stable Diffusion pipelines correct outdated files, and so does `read_scheduler`: whatever the file says,
`steps_offset` is 1 and `clip_sample` false, and for inpainting `skip_prk_steps` is true.
"""
import math

from npdiffusion.diffusion.samplers import CLASSES

# What diffusers takes where a file is silent: most classes, and some.
FILE_DEFAULTS = {"beta_start": 0.0001, "beta_end": 0.02, "beta_schedule": "linear"}
SD_DEFAULTS = FILE_DEFAULTS | {"beta_start": 0.00085, "beta_end": 0.012}
CLASS_DEFAULTS = {
    "LCMScheduler": SD_DEFAULTS | {"beta_schedule": "scaled_linear"}, "HeunDiscreteScheduler": SD_DEFAULTS,
    "TCDScheduler": SD_DEFAULTS | {"beta_schedule": "scaled_linear"}, "KDPM2DiscreteScheduler": SD_DEFAULTS,
    "KDPM2AncestralDiscreteScheduler": SD_DEFAULTS, "DPMSolverSDEScheduler": SD_DEFAULTS,
    "PNDMScheduler": FILE_DEFAULTS | {"skip_prk_steps": False},
}
MULTISTEP = "dpm++2m", "unipc", "deis"
# (setting, samplers whose classes have it, the values that are offered here) of what changes a picture and is no field
# of NoiseSchedule; a setting that is missing or null is offered. Some values are synonyms in diffusers.
OFFERED = (
    ("thresholding", ("ddpm", "ddim", *MULTISTEP, "lcm", "tcd"), (False,)),
    ("variance_type", ("ddpm", "dpm++2m"), ("fixed_small", "fixed_small_log")),
    ("skip_prk_steps", ("pndm",), (True,)),
    ("algorithm_type", ("dpm++2m",), ("dpmsolver++", "sde-dpmsolver++")),
    ("algorithm_type", ("deis",), ("deis", "dpmsolver", "dpmsolver++")),
    ("solver_order", MULTISTEP, (2,)),
    ("solver_type", ("dpm++2m",), ("midpoint", "logrho", "bh1", "bh2")),
    ("solver_type", ("unipc",), ("bh2", "midpoint", "heun", "logrho")),
    ("solver_type", ("deis",), ("logrho", "midpoint", "heun", "bh1", "bh2")),
    ("lower_order_final", ("unipc", "deis"), (True,)),
    ("predict_x0", ("unipc",), (True,)),
    ("disable_corrector", ("unipc",), ([],)),
    ("solver_p", ("unipc",), ()),
    ("lambda_min_clipped", ("dpm++2m",), (-math.inf,)),
    ("use_lu_lambdas", ("dpm++2m",), (False,)),
    ("use_flow_sigmas", MULTISTEP, (False,)),
    ("use_dynamic_shifting", ("unipc",), (False,)),
    ("shift_terminal", ("unipc",), ()),
    ("final_sigmas_type", ("euler", "dpm++2m", "unipc"), ("zero",)),
    ("interpolation_type", ("euler",), ("linear",)),
    ("timestep_type", ("euler",), ("discrete",)),
    ("sigma_min", ("euler", "unipc"), ()),
    ("sigma_max", ("euler", "unipc"), ()),
    ("noise_sampler_seed", ("dpm++sde",), ()),
)
# Samplers whose classes lack a setting that ours would follow.
LACKING = {
    "rescale_betas_zero_snr": ("pndm", "lms", "heun", "dpm2", "dpm2_a", "dpm++sde", "deis"),
    **dict.fromkeys(("use_karras_sigmas", "use_exponential_sigmas", "use_beta_sigmas"),
                    ("ddpm", "ddim", "pndm", "euler_a", "lcm", "tcd")),
}


def read_scheduler(config, pipeline=None):
    """The settings of a file, completed by diffusers' defaults and by four entries about the sampler → dict

    config         the file's dictionary; values of any type
    pipeline       the class in model_index.json that the file belongs to, or None
    class_name     diffusers' class
    own_sampler    our name for it, or None
    variant        " with …" if a setting makes it a sampler that isn't offered, else ""
    ignored        names of settings that its class lacks
    """
    name = str(config.get("_class_name") or "")
    given = {setting: value for setting, value in config.items() if value is not None}
    given = CLASS_DEFAULTS.get(name, FILE_DEFAULTS) | given | {"steps_offset": 1}
    if str(pipeline).startswith("StableDiffusionInpaintPipeline"):
        given["skip_prk_steps"] = True
    name = name or "PNDMScheduler"
    own = CLASSES.get(name)
    variant = next((f" with {setting} {given[setting]}" for setting, having, offered in OFFERED
                    if own in having and setting in given and given[setting] not in offered), "")
    ignored = tuple(setting for setting, lacking in LACKING.items() if own in lacking and setting in given)
    if own == "dpm++2m" and given.get("algorithm_type") == "sde-dpmsolver++":
        own = "dpm++2m_sde"
    return given | {"class_name": name, "own_sampler": own, "variant": variant, "ignored": ignored}
