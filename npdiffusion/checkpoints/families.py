"""Which model is it, if it isn't Stable Diffusion v1? Relatives and single parts are told by names, sizes or class."""
import re

from npdiffusion.errors import UserError

V1, V2, XL = "Stable Diffusion v1", "Stable Diffusion 2", "Stable Diffusion XL"
# By the width of the context, or of a text encoder's vectors: XL's context is its two encoders' beside each other,
# 768 + 1280 wide, and that of its refiner the second one's alone.
WIDTHS = {768: V1, 1024: V2, 1280: XL, 2048: XL}

# Of another family if any tensor's name begins so,
RELATIVES = [(re.compile(pattern), description) for pattern, description in (
    (r"lora_|.*\.(lora[_.]|hada_w|lokr_w)", "a LoRA, which changes a model and is none itself"),
    (r"emb_params$|string_to_param|clip_[gl]$", "a textual inversion, which is a word for a model and no model itself"),
    (r"conditioner\.embedders\.|text_encoder_2\.", XL),
    (r"model\.diffusion_model\.joint_blocks\.|joint_blocks\.", "Stable Diffusion 3"),
    (r"(model\.diffusion_model\.)?(double_blocks|single_transformer_blocks)\.", "Flux"),
    (r"cond_stage_model\.model\.", V2),
    (r"control_model\.|controlnet_", "a ControlNet, which steers a model and is none itself"))]
# and only one part of a model if all names begin so; original names and diffusers'.
SINGLE_PARTS = [(re.compile(pattern), description) for pattern, description in (
    (r"((encoder|decoder)\.(layers\.)?)?\d+\.(weight|bias|conv\.|skip\.)", "TAESD, a small VAE"),
    (r"(cond_stage_model\.transformer\.)?(text_model\.)?(encoder\.layers|embeddings|final_layer_norm)\.",
     "a text encoder alone"),
    (r"(first_stage_model\.)?(encoder|decoder|quant_conv|post_quant_conv|loss)\.", "a VAE alone"),
    (r"model\.diffusion_model\.|input_blocks\.|middle_block\.|output_blocks\.|time_embed\.|out\.|"
     r"down_blocks\.|mid_block\.|up_blocks\.|time_embedding\.|conv_(in|norm_out|out)\.", "a UNet alone"))]

BY_CLASS = (("StableDiffusionXL", XL), ("StableDiffusion3", "Stable Diffusion 3"), ("Flux", "Flux"))
SUPPORTED_CLASSES = ("StableDiffusionPipeline", "StableDiffusionImg2ImgPipeline", "StableDiffusionInpaintPipeline",
                     "StableDiffusionInpaintPipelineLegacy", "LatentConsistencyModelPipeline",
                     "LatentConsistencyModelImg2ImgPipeline")


def refuse(description, source):
    raise UserError(f"{source}: this is {description}; only complete models of {V1} can be loaded")


def check_names(names, source):
    """UserError if the tensors of a file belong to something else; names: of all its tensors"""
    other = other_names(names)
    if other:
        refuse(other, source)


def other_names(names):
    """What the tensors of a file are if they are no whole model of ours, as far as their names tell; or None"""
    for table, some_or_all in (RELATIVES, any), (SINGLE_PARTS, all):
        for pattern, description in table:
            if some_or_all(pattern.match(name) for name in names):
                return description
    return None


def check_class(name, source):
    """UserError if the pipeline class in model_index.json is another; None, for a folder that doesn't say, passes."""
    other = other_class(name)
    if other:
        refuse(other, source)


def other_class(name):
    """What a model of that pipeline class is if it is none of ours, or None"""
    if name in (None, *SUPPORTED_CLASSES):
        return None
    for prefix, description in BY_CLASS:
        if str(name).startswith(prefix):
            return description
    return f"made for {str(name)[:100]!a}"


def inputs(latent_channels):
    """Channels that a UNet may take: latents alone, or, for inpainting, latents, a mask, and latents of a masked picture."""
    return (latent_channels, 2 * latent_channels + 1) if isinstance(latent_channels, int) else (latent_channels,)


def check_sizes(context_width, linear_projection, in_channels, latent_channels, source):
    """UserError if the sizes are those of a relative. Untrusted values: nothing is assumed of their types."""
    if isinstance(context_width, int) and WIDTHS.get(context_width) == XL:
        refuse(f"{XL} (its context is {context_width} wide)", source)
    if linear_projection:
        refuse(f"{V2} (its context is {context_width!r} wide, its transformers project linearly)", source)
    if in_channels == 8 and latent_channels == 4:
        refuse("a model that edits pictures as it is told (its UNet takes 8 channels)", source)
    if in_channels not in inputs(latent_channels):
        raise UserError(f"{source}: the UNet takes {in_channels!r} channels, VAE latents have {latent_channels!r}")
