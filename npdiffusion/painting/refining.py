"""A refiner: a second model that takes the last steps over, where little noise is left and details are decided.

    the model      t ≥ c      c = T − round(a T), a the share of the way down at which the refiner takes over
    the refiner    t < c      from the state that the model left, without new noise

                                        Podell et al. 2023, arXiv:2307.01952, section 2.5; Balaji et al. 2022, arXiv:2211.01324

Time steps are those of one run, so both together make as many steps as one would. They are divided as by diffusers'
denoising_end and denoising_start: samplers that remember earlier steps begin anew at the refiner.
"""
from npdiffusion.painting import masks
from npdiffusion.painting.inpainting import Known


def plans(schedule, refiner, share, *arguments, **asked):
    """The plan of a run → that of the model, that of the refiner, or None for a run that has no steps for it

    schedule, refiner: NoiseSchedules      arguments, asked: of `NoiseSchedule.plan`
    """
    T = schedule.num_train_timesteps
    cut = T - round(share * T)
    late = schedule.changed(prediction_type=refiner.prediction_type).plan(*arguments, **asked, below=cut)
    return schedule.plan(*arguments, **asked, above=cut), late if len(late) else None


def states(way):
    """How many steps a pass has, the refiner's included"""
    return len(way.plan) + len(way.refining or ())


def kept(start, canvas, vae, noise, tile=None):
    """What a refiner keeps of the picture under a mask → inpainting.Known, or None without one

    start: of the model, an inpainting.Start; one that was trained for inpainting has the mask among its channels, a refiner not
    """
    if start.known or canvas.mask is None:
        return start.known
    return Known(masks.in_latents(canvas.mask, vae.config.reduction), vae.latents(canvas.image, noise.posterior, tile), noise())
