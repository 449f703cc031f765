"""Families of models: one row for each that can be loaded, and how all others are recognised.

A row says which parts a model has, what each is called in folders, in single files and in LoRAs, and what a file leaves
open. Whoever needs to know that, loading, the hub, the list of models, --info, adapters, reads it here.
"""
import re
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np

from npdiffusion.checkpoints import original_names
from npdiffusion.checkpoints.leftovers import LEFTOVERS
from npdiffusion.errors import UserError
from npdiffusion.models.clip import CLIPTextModel
from npdiffusion.models.configs import UNET_ONLY, VAE_ONLY, CLIPTextConfig, UNetConfig, VAEConfig
from npdiffusion.models.unet import UNet2DConditionModel
from npdiffusion.models.vae import AutoencoderKL


@dataclass(frozen=True)
class LoRANames:
    """How adapters call the layers of a part. flat: what precedes a layer's name with _ for each point, as kohya writes it;
    dotted: what precedes it as it is; older: its name in diffusers' first LoRAs, which have the same in front
    original: whether flat names also come with the original names of layers, and what precedes those as they are
    """
    flat: tuple
    dotted: tuple
    older: Callable
    original: tuple = ()


@dataclass(frozen=True)
class PartRow:
    """One model of a family: what it is built from, and what it is called.

    stem       name of its files in a folder, which is called as the part is
    prefix     of its tensors in a single file
    sizes      from {name without the prefix: shape} in such a file to settings as in a config.json
    name       from (config, names of the file's tensors, prefix) to a function from our names of parameters to the file's
    arrange    from {name in such a file: tensor} to the tensors that `sizes` and `name` know: renamed, cut, joined, left
               out; the prefix stays before them
    variants   the same part as other programs spell it: rows that differ in prefix, sizes, name or arrange
    lora       what adapters call it; None if none change it
    only       {setting in config.json: its one value that is supported}; None: that of Stable Diffusion v1
    """
    config: type
    model: type
    stem: str
    prefix: str
    sizes: Callable
    name: Callable
    lora: LoRANames | None = None
    only: dict | None = None
    arrange: Callable = dict
    variants: tuple["PartRow", ...] = ()

    def spelled(self, names):
        """This row or the variant of it whose prefix the tensors of a single file have, or None"""
        return next((row for row in (self, *self.variants) if any(name.startswith(row.prefix) for name in names)), None)


@dataclass(frozen=True)
class Family:
    """A kind of models.

    classes     of pipelines, in model_index.json; a folder without one is of the first family whose parts it has
    scheduler   scheduler_config.json of a single file, which has none      marks: empty tensors that change it
    padding     the piece that fills up its tokenizer's ids
    context     from the hidden states of each text encoder (N, T, X_i) to what the UNet attends to (N, T, X)
    """
    name: str
    parts: dict[str, PartRow]
    classes: tuple
    scheduler: dict
    padding: str
    marks: dict = field(default_factory=dict)
    context: Callable = lambda states: states[0] if len(states) == 1 else np.concatenate(states, axis=-1)

    @property
    def text_encoders(self):
        """Names of the parts that encode the prompt, in the order of their states in the context."""
        return tuple(name for name, row in self.parts.items() if row.config is CLIPTextConfig)

    @property
    def adapted(self):
        """Names of the parts that adapters change, the UNet first."""
        names = [name for name, row in self.parts.items() if row.lora]
        return tuple(sorted(names, key=lambda name: name != "unet"))


OLD_TEXT_ATTENTION = {"q_proj": "to_q", "k_proj": "to_k", "v_proj": "to_v", "out_proj": "to_out"}


def old_unet_layer(layer):
    """diffusers' first LoRAs belonged to attention processors, which have no list at their end."""
    return layer.removesuffix(".0") if layer.endswith(".to_out.0") else layer


def old_text_layer(layer):
    """Those of the text encoder were called like the UNet's."""
    path, _, name = layer.rpartition(".")
    return f"{path}.{OLD_TEXT_ATTENTION.get(name, name)}"


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
    (r"control_model\.|controlnet_", "a ControlNet, which steers a model and is none itself"),
    (r"edm_(mean|std|vpred\.\w+)$", "a model with the noise of EDM (CosXL, Playground 2.5)"))]
# and only one part of a model if all names begin so; original names and diffusers'.
SINGLE_PARTS = [(re.compile(pattern), description) for pattern, description in (
    (r"((encoder|decoder)\.(layers\.)?)?\d+\.(weight|bias|conv\.|skip\.)", "TAESD, a small VAE"),
    (r"(cond_stage_model\.transformer\.)?(text_model\.)?(encoder\.layers|embeddings|final_layer_norm)\.",
     "a text encoder alone"),
    (r"(first_stage_model\.)?(encoder|decoder|quant_conv|post_quant_conv|loss)\.", "a VAE alone"),
    (r"model\.diffusion_model\.|input_blocks\.|middle_block\.|output_blocks\.|time_embed\.|out\.|"
     r"down_blocks\.|mid_block\.|up_blocks\.|time_embedding\.|conv_(in|norm_out|out)\.", "a UNet alone"))]

BY_CLASS = (("StableDiffusionXL", XL), ("StableDiffusion3", "Stable Diffusion 3"), ("Flux", "Flux"))

FAMILIES = [
    Family(
        V1,
        parts={
            "text_encoder": PartRow(
                CLIPTextConfig, CLIPTextModel, "model", "cond_stage_model.transformer.", original_names.text_settings,
                lambda config, names, prefix: original_names.text_name(names, prefix),
                LoRANames(("lora_te_text_model_", "lora_te1_text_model_"),
                          ("text_encoder.text_model.", "text_encoder.", "text_model.", ""), old_text_layer)),
            "unet": PartRow(
                UNetConfig, UNet2DConditionModel, "diffusion_pytorch_model", "model.diffusion_model.",
                original_names.unet_settings, lambda config, names, prefix: original_names.unet_name(config, prefix),
                LoRANames(("lora_unet_",), ("unet.", ""), old_unet_layer, original=("diffusion_model.",)), only=UNET_ONLY),
            "vae": PartRow(
                VAEConfig, AutoencoderKL, "diffusion_pytorch_model", "first_stage_model.", original_names.vae_settings,
                lambda config, names, prefix: original_names.vae_name(config, prefix, names), only=VAE_ONLY)},
        classes=("StableDiffusionPipeline", "StableDiffusionImg2ImgPipeline", "StableDiffusionInpaintPipeline",
                 "StableDiffusionInpaintPipelineLegacy", "LatentConsistencyModelPipeline",
                 "LatentConsistencyModelImg2ImgPipeline"),
        scheduler={"_class_name": "PNDMScheduler", "num_train_timesteps": 1000, "beta_schedule": "scaled_linear",
                   "beta_start": 0.00085, "beta_end": 0.012, "skip_prk_steps": True, "set_alpha_to_one": False,
                   "steps_offset": 1, "clip_sample": False},           # and nothing about timestep_spacing
        padding="<|endoftext|>",
        marks={"v_pred": {"prediction_type": "v_prediction"},
               "ztsnr": {"rescale_betas_zero_snr": True, "timestep_spacing": "trailing"}}),
]


# ---- which family it is

def of_class(name):
    """The family of a pipeline class, or None; that of a folder without one, None, is the first"""
    return next((family for family in FAMILIES if name is None or name in family.classes), None)


def of_names(names, source, given=()):
    """The family of a single file, by its tensors' names; UserError if it is none of them; given: parts that it may lack"""
    check_names(names, source)
    found = [(family, [part for part, row in family.parts.items() if part not in given and row.spelled(names) is None])
             for family in FAMILIES]
    # the one with most parts, if all are there
    family, missing = min(found, key=lambda each: (len(each[1]), -len(each[0].parts)))
    if missing:
        row = family.parts[missing[0]]
        hint = "; name one to go with it: --vae" if missing == ["vae"] else ""
        raise UserError(f"{source}: not a Stable Diffusion checkpoint, it has no {row.prefix}… (the {missing[0]}){hint}")
    return family


def refuse(description, source):
    raise UserError(f"{source}: this is {description}; only complete models of {V1} can be loaded")


def check_names(names, source):
    """UserError if the tensors of a file belong to something else; names: of all its tensors"""
    other = other_names(names)
    if other:
        refuse(other, source)


def other_names(names):
    """What the tensors of a file are if they are no whole model of ours, as far as their names tell; or None"""
    names = [name for name in names if not LEFTOVERS.fullmatch(name)] or names
    for table, some_or_all in (RELATIVES, any), (SINGLE_PARTS, all):
        for pattern, description in table:
            if some_or_all(pattern.match(name) for name in names):
                return description
    return None


def of_folder(name, source):
    """The family of a folder, by the pipeline class in model_index.json, None if it doesn't say; UserError for others"""
    other = other_class(name)
    if other:
        refuse(other, source)
    return of_class(name)


def other_class(name):
    """What a model of that pipeline class is if it is none of ours, or None"""
    if of_class(name):
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
