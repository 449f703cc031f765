"""Pictures that others start from, masks, and how the options of painting become arguments of `generate`.

Pillow is imported where it is used: --help answers at once.
"""
from npdiffusion.command.parser import LARGEST_SIDE
from npdiffusion.command.talk import say

# Options that `open_inputs` and `tell_about_inputs` look at.
INPUTS = "init_image", "mask_image", "apply_overlay", "outpaint", "padding_mask_crop", "width", "height"

def open_inputs(options):
    """The files that pictures start from, read: arguments of `generate`"""
    from npdiffusion.images import open_image
    from npdiffusion.painting import masks
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


def working_size(options, inputs, customary):
    """(width, height) if none is asked for: the model's, or, if a picture is extended, what it then has."""
    from npdiffusion.painting import outpainting
    if not options.outpaint or options.padding_mask_crop is not None:
        return customary
    return outpainting.extended(inputs["init_image"].size, **outpainting.read(options.outpaint, 8, LARGEST_SIDE), step=8)


def final_size(options, customary, reduction):
    """(width, height) of the largest pass over a picture; customary: of the model, reduction: of its autoencoder"""
    from npdiffusion.painting import hires
    size = working_size(options, open_inputs(options) if options.outpaint else {}, customary)
    size = options.width or size[0], options.height or size[1]
    return hires.enlarged(size, options.hires, reduction) if options.hires else size


def tell_about_inputs(options, inputs, settings):
    """Say what will be scaled; settings: the arguments of `generate`"""
    from npdiffusion.painting import outpainting
    image = inputs["init_image"]
    if image is None:
        return
    size, wanted, extended = image.size, (settings["width"], settings["height"]), ""
    if options.outpaint:
        size = outpainting.extended(size, **outpainting.read(options.outpaint, 8, LARGEST_SIDE))
        extended = f", extended to {size[0]}x{size[1]},"
    if options.padding_mask_crop is not None:
        say(f"{options.init_image}: what is masked, and {options.padding_mask_crop} pixels around it, is painted at "
            f"{wanted[0]}x{wanted[1]}")
    elif size != wanted:
        say(f"{options.init_image}: its {image.width}x{image.height} pixels{extended} are scaled and cut to "
            f"{wanted[0]}x{wanted[1]}")
