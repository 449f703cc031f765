"""Tensors that files hold beside a model: what training, merging and other programs leave behind belongs to no part.

A file is never refused for what it has too much, only for what it lacks. Well-known leftovers are passed over in
silence, others are named in one note for each file.
"""
import re
import warnings

from npdiffusion.models import parameters

# Whole names, behind whatever is before the names of a part.
LEFTOVERS = re.compile(r"""(.*[.])? (
    model_ema\..*                                                    # averages of the weights in training
    | position_ids                                                   # 0, 1, 2, …
    | loss\..*                                                       # what judged an autoencoder in training
    | logit_scale | text_projection(\.weight)?                       # CLIP's way into the space of pictures,
    | vision_model\..* | visual_projection\..* | visual\..*          # and its other half
    | embedding_manager\..*                                          # learnt words in training
    | global_step | epoch | global_epoch | scale_factor              # other things of training
    | denoiser\.\w+ | betas | alphas_cumprod(_prev)? | (sqrt|log|posterior)_\w+ | logvar | lvlb_weights   # the noise schedule
    )""", re.VERBOSE)


def note(source, names, count):
    """Warn of tensors of a file that belong to no part, unless they are well known; count: of all its tensors"""
    unknown = [name for name in names if not LEFTOVERS.fullmatch(name)]
    if unknown:
        warnings.warn(f"{source}: {len(unknown)} of its {count} tensors belong to no part of the model and are left out: "
                      f"{parameters.some(unknown)}", stacklevel=3)
