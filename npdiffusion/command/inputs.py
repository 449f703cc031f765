"""Pictures that others start from, masks, and how the options of painting become arguments of `generate`.

Pillow is imported where it is used: --help answers at once.
"""
from npdiffusion.command.parser import LARGEST_SIDE
from npdiffusion.command.talk import say

# Options that `open_inputs` and `tell_about_inputs` look at.
INPUTS = "init_image", "mask_image", "apply_overlay", "outpaint", "padding_mask_crop", "width", "height"


def open_inputs(options):
    """The files that pictures start from, read: arguments of `generate`"""
    from npdiffusion.painting import masks
    from npdiffusion.pictures.images import open_image
    inputs = {"init_image": None if options.init_image is None else open_image(options.init_image)}
    if options.mask_image is not None:
        inputs["mask_image"] = masks.read(options.mask_image, inputs["init_image"].size)
    return inputs if options.apply_overlay else inputs | {"apply_overlay": False}


def painting_settings(options):
    """Those of inpainting and of hires fix, as far as they are asked for."""
    from npdiffusion.painting import hires, outpainting
    names = "mask_blur", "invert_mask", "padding_mask_crop", "outpaint", "hires", "hires_steps"
    settings = {name: getattr(options, name) for name in names if getattr(options, name) not in (None, False)}
    if options.outpaint:
        settings.setdefault("mask_blur", outpainting.CUSTOMARY_BLUR)
    if options.hires:
        settings |= {"hires_strength": options.hires_strength or hires.STRENGTH,
                     "hires_upscaler": options.hires_upscaler or hires.UPSCALERS[0]}
    return settings


def extended_size(options, inputs):
    """(width, height) of the picture that is painted on, extended if that is asked for; None without one"""
    from npdiffusion.painting import outpainting
    image = inputs["init_image"]
    if image is None or not options.outpaint:
        return image and image.size
    return outpainting.extended(image.size, **outpainting.read(options.outpaint, 8, LARGEST_SIDE))


def working_size(options, inputs, customary, reduction):
    """(width, height) of the first pass over a picture; customary: of the model, reduction: of its autoencoder"""
    from npdiffusion.painting import outpainting
    return outpainting.working_size(options, extended_size(options, inputs), customary, reduction)


def final_size(options, customary, reduction):
    """(width, height) of the largest pass over a picture"""
    from npdiffusion.painting import hires
    inputs = open_inputs(options) if options.outpaint else {"init_image": None}
    size = working_size(options, inputs, customary, reduction)
    return hires.enlarged(size, options.hires, reduction) if options.hires else size


def tell_about_inputs(options, inputs, settings):
    """Say what will be scaled; settings: the arguments of `generate`"""
    image, size = inputs["init_image"], extended_size(options, inputs)
    if image is None:
        return
    wanted = settings["width"], settings["height"]
    extended = f", extended to {size[0]}x{size[1]}," if options.outpaint else ""
    if options.padding_mask_crop is not None:
        say(f"{options.init_image}: what is masked, and {options.padding_mask_crop} pixels around it, is painted at "
            f"{wanted[0]}x{wanted[1]}")
    elif size != wanted:
        say(f"{options.init_image}: its {image.width}x{image.height} pixels{extended} are scaled and cut to "
            f"{wanted[0]}x{wanted[1]}")
