"""Families of models: one row for each that can be loaded, and how all others are recognised.

A row says which parts a model has, what each is called in folders, in single files and in LoRAs, and what a file leaves
open. Whoever needs to know that, loading, the hub, the list of models, --info, adapters, reads it here.
"""
import re
from collections.abc import Callable
from dataclasses import dataclass, field

from npdiffusion.checkpoints import original_names
from npdiffusion.checkpoints.leftovers import LEFTOVERS
from npdiffusion.errors import UserError
from npdiffusion.kernels.arrays import as_float32
from npdiffusion.models.clip import CLIPTextModel, CLIPTextModelWithProjection
from npdiffusion.models.configs import UNET_ONLY, VAE_ONLY, XL_FACTOR, CLIPTextConfig, UNetConfig, VAEConfig
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
    join       from {such a name: (tensor, shape)} to what is written into such a file: `arrange` the other way round
    variants   the same part as other programs spell it: rows that differ in prefix, sizes, name or arrange
    lora       what adapters call it; None if none change it
    only       {setting in config.json: its one value that is supported}; None: that of Stable Diffusion v1
    padding    of a text encoder with a tokenizer of its own: the piece that fills up its ids
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
    join: Callable = dict
    variants: tuple["PartRow", ...] = ()
    padding: str | None = None

    def spelled(self, names):
        """This row or the variant of it whose prefix the tensors of a single file have, or None"""
        return next((row for row in (self, *self.variants) if any(name.startswith(row.prefix) for name in names)), None)


@dataclass(frozen=True)
class Family:
    """A kind of models.

    classes     of pipelines, in model_index.json; a folder without one is of the first family whose parts it has
    scheduler   scheduler_config.json of a single file, which has none      marks: empty tensors that change it
    padding     the piece that fills up its tokenizer's ids
    is_told_by  whether a UNet of these settings, as in config.json, is of the family
    decide      from {name: tensor} of a single file to what shapes don't tell: {"scheduler" or part: settings}
    penultimate whether the text encoders' last layer and final norm are left out of the context
    added       sizes that the UNet reads beside a pooled vector of the last text encoder, in their order
    zeros       whether an empty negative prompt is zeros, not what the text encoders make of it
    guidance    the scale where nothing else is said      factor: of the VAE's latents, likewise
    """
    name: str
    parts: dict[str, PartRow]
    classes: tuple
    scheduler: dict
    padding: str
    marks: dict = field(default_factory=dict)
    is_told_by: Callable = lambda unet: not unet.get("use_linear_projection") and not unet.get("addition_embed_type")
    decide: Callable = lambda tensors: {}
    penultimate: bool = False
    added: tuple = ()
    zeros: bool = False
    guidance: float = 7.5
    factor: float = VAEConfig.scaling_factor

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
REFINER = "the refiner of Stable Diffusion XL"
# By the width of the context, or of a text encoder's vectors: XL's context is its two encoders' beside each other,
# 768 + 1280 wide, and that of its refiner the second one's alone.
WIDTHS = {768: V1, 1024: V2, 1280: XL, 2048: XL}


def text_row(prefix):
    """CLIP ViT-L/14 as transformers names it: v1's text encoder, and XL's first"""
    return PartRow(
        CLIPTextConfig, CLIPTextModel, "model", prefix, original_names.text_settings,
        lambda config, names, prefix: original_names.text_name(names, prefix),
        LoRANames(("lora_te_text_model_", "lora_te1_text_model_"),
                  ("text_encoder.text_model.", "text_encoder.", "text_model.", ""), old_text_layer))


def open_clip_row(prefix, model=CLIPTextModel, leave=0, **row):
    """OpenCLIP's: SD 2's text encoder, and XL's second; leave: how many of the file's layers the model doesn't use"""
    return PartRow(
        CLIPTextConfig, model, "model", prefix, original_names.open_clip_settings, original_names.open_clip_name,
        arrange=lambda tensors: original_names.open_clip(tensors, leave), join=original_names.joined_open_clip, **row)


def unet_row(**settings):
    """settings: what shapes in a single file don't tell, besides what is as in v1"""
    return PartRow(
        UNetConfig, UNet2DConditionModel, "diffusion_pytorch_model", "model.diffusion_model.",
        lambda shape: original_names.unet_settings(shape) | settings,
        lambda config, names, prefix: original_names.unet_name(config, prefix, names),
        LoRANames(("lora_unet_",), ("unet.", ""), old_unet_layer, original=("diffusion_model.",)), only=UNET_ONLY)


def vae_row(**settings):
    return PartRow(
        VAEConfig, AutoencoderKL, "diffusion_pytorch_model", "first_stage_model.",
        lambda shape: original_names.vae_settings(shape) | settings,
        lambda config, names, prefix: original_names.vae_name(config, prefix, names), only=VAE_ONLY)


def predicts_v(tensors):
    """What a single file of SD 2 is: 768-v, which predicts v and knows pictures of 768 pixels, or base, which predicts ε

    Nothing in it says so. The rule is ComfyUI's: one bias is spread more widely in models that predict v.
    """
    spread = tensors.get("model.diffusion_model.output_blocks.11.1.transformer_blocks.0.norm1.bias")
    channels = tensors["model.diffusion_model.input_blocks.0.0.weight"].shape[1]
    if spread is None or channels != 4 or as_float32(spread()).std() <= SPREAD_OF_V:
        return {}
    return {"scheduler": {"_class_name": "DDIMScheduler", "prediction_type": "v_prediction"}, "unet": {"sample_size": 96}}


SPREAD_OF_V = 0.09
BETAS = {"num_train_timesteps": 1000, "beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012}
PNDM = {"_class_name": "PNDMScheduler", **BETAS, "skip_prk_steps": True, "set_alpha_to_one": False, "steps_offset": 1,
        "clip_sample": False}           # and nothing about timestep_spacing
EULER = {"_class_name": "EulerDiscreteScheduler", **BETAS, "timestep_spacing": "leading", "steps_offset": 1}
MARKS = {"v_pred": {"prediction_type": "v_prediction"},
         "ztsnr": {"rescale_betas_zero_snr": True, "timestep_spacing": "trailing"}}
CLASSES = ("StableDiffusionPipeline", "StableDiffusionImg2ImgPipeline", "StableDiffusionInpaintPipeline",
           "StableDiffusionInpaintPipelineLegacy", "LatentConsistencyModelPipeline", "LatentConsistencyModelImg2ImgPipeline")
XL_SECOND = LoRANames(("lora_te2_text_model_", "lora_te2_"), ("text_encoder_2.text_model.", "text_encoder_2."), old_text_layer)
XL_CLASSES = ("StableDiffusionXLPipeline", "StableDiffusionXLImg2ImgPipeline", "StableDiffusionXLInpaintPipeline")

# Of another family if any tensor's name begins so,
RELATIVES = [(re.compile(pattern), description) for pattern, description in (
    (r"lora_|.*\.(lora[_.]|hada_w|lokr_w)", "a LoRA, which changes a model and is none itself"),
    (r"emb_params$|string_to_param|clip_[gl]$", "a textual inversion, which is a word for a model and no model itself"),
    (r"model\.diffusion_model\.joint_blocks\.|joint_blocks\.", "Stable Diffusion 3"),
    (r"(model\.diffusion_model\.)?(double_blocks|single_transformer_blocks)\.", "Flux"),
    (r"control_model\.|controlnet_|input_hint_block\.", "a ControlNet, which steers a model and is none itself"),
    (r"ip_adapter\.\d+\.|image_proj\.", "an IP-Adapter, which lets pictures stand in a model's prompts"),
    (r"(adapter\.)?body\.\d+\.(resnets|body|block1|in_conv)\.", "a T2I-Adapter, which steers a model and is none itself"),
    (r"edm_(mean|std|vpred\.\w+)$", "a model with the noise of EDM (CosXL, Playground 2.5)"))]
# and only one part of a model if all names begin so; original names and diffusers'.
SINGLE_PARTS = [(re.compile(pattern), description) for pattern, description in (
    (r"((encoder|decoder)\.(layers\.)?)?\d+\.(weight|bias|conv\.|skip\.)", "TAESD, a small VAE"),
    (r"(cond_stage_model\.transformer\.)?(text_model\.)?(encoder\.layers|embeddings|final_layer_norm)\.",
     "a text encoder alone"),
    (r"(vision_model|visual_projection)\.", "CLIP's image encoder, which IP-Adapters read"),
    (r"(first_stage_model\.)?(encoder|decoder|quant_conv|post_quant_conv|loss)\.", "a VAE alone"),
    (r"model\.diffusion_model\.|input_blocks\.|middle_block\.|output_blocks\.|time_embed\.|out\.|"
     r"label_emb\.|add_embedding\.|down_blocks\.|mid_block\.|up_blocks\.|time_embedding\.|conv_(in|norm_out|out)\.",
     "a UNet alone, which takes the place of a model's own (--unet)"))]

TOLD = "model.diffusion_model.label_emb."
BY_CLASS = (("StableDiffusion3", "Stable Diffusion 3"), ("Flux", "Flux"))

FAMILIES = [
    Family(
        V1,
        parts={"text_encoder": text_row("cond_stage_model.transformer."), "unet": unet_row(), "vae": vae_row()},
        classes=CLASSES, scheduler=PNDM, padding="<|endoftext|>", marks=MARKS),
    Family(
        V2,
        parts={"text_encoder": open_clip_row(                                            # up to the penultimate of 24 layers
            "cond_stage_model.model.", leave=1, lora=text_row("").lora,
            variants=(open_clip_row("conditioner.embedders.0.model.", leave=1),)), "unet": unet_row(), "vae": vae_row()},
        classes=CLASSES, scheduler=PNDM, padding="!", marks=MARKS, decide=predicts_v,
        is_told_by=lambda unet: bool(unet.get("use_linear_projection")) and not unet.get("addition_embed_type")),
    Family(
        XL,
        parts={"text_encoder": text_row("conditioner.embedders.0.transformer."),
               "text_encoder_2": open_clip_row("conditioner.embedders.1.model.", CLIPTextModelWithProjection, padding="!",
                                               lora=XL_SECOND), "unet": unet_row(sample_size=128),
               "vae": vae_row(scaling_factor=XL_FACTOR, sample_size=1024)},
        classes=XL_CLASSES, scheduler=EULER, padding="<|endoftext|>", marks=MARKS,
        is_told_by=lambda unet: bool(unet.get("addition_embed_type")), penultimate=True,
        added=("original_size", "crops_coords_top_left", "target_size"), zeros=True, guidance=5.0, factor=XL_FACTOR),
    Family(
        REFINER,
        parts={"text_encoder_2": open_clip_row("conditioner.embedders.0.model.", CLIPTextModelWithProjection, padding="!",
                                               lora=XL_SECOND), "unet": unet_row(sample_size=128),
               "vae": vae_row(scaling_factor=XL_FACTOR, sample_size=1024)},
        classes=XL_CLASSES, scheduler=EULER, padding="!", marks=MARKS,
        is_told_by=lambda unet: bool(unet.get("addition_embed_type")), penultimate=True,
        added=("original_size", "crops_coords_top_left", "aesthetic_score"), guidance=5.0, factor=XL_FACTOR),
]


def folder_name(names):
    """From a parameter's name to that in a folder's file; names: of its tensors. Text encoders were saved within a
    `text_model` at first, and those with a projection beside it still are."""
    if not any(name.startswith("text_model.") for name in names):
        return str
    return lambda name: name if name.startswith("text_projection.") else f"text_model.{name}"


def tokenizer_of(text_encoder):
    """The folder of its tokenizer: tokenizer, tokenizer_2"""
    return text_encoder.replace("text_encoder", "tokenizer")


# ---- which family it is

def of_class(name, unet=None, there=None):
    """The family of a folder by the pipeline class in model_index.json, None if it says none; None if there is none

    unet: config.json of its UNet, if that may be looked at      there: names of the parts that it has, or None for all
    """
    found = [family for family in FAMILIES if name is None or name in family.classes]
    told = [family for family in found if unet is None or family.is_told_by(unet)]
    whole = [family for family in told if there is None or {*family.parts} <= {*there}]
    return next(iter(whole or told or found), None)


def of_names(names, source, given=()):
    """The family of a single file, by its tensors' names; UserError if it is none of them; given: parts that it may lack"""
    check_names(names, source)
    found = [(family, [part for part, row in family.parts.items() if part not in given and row.spelled(names) is None])
             for family in FAMILIES]
    told = any(name.startswith(TOLD) for name in names)
    # the one with most parts, if all are there; SD 2 may be laid out like the refiner, whose UNet is told sizes
    family, missing = min(found, key=lambda each: (len(each[1]), bool(each[0].added) != told, -len(each[0].parts)))
    if missing:
        row = family.parts[missing[0]]
        hint = "; name one to go with it: --vae" if missing == ["vae"] else ""
        raise UserError(f"{source}: not a Stable Diffusion checkpoint, it has no {row.prefix}… (the {missing[0]}){hint}")
    return family


def refuse(description, source):
    *others, last = (family.name for family in FAMILIES)
    raise UserError(f"{source}: this is {description}; complete models of {', '.join(others)} and {last} can be loaded")


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


def of_folder(name, source, unet=None, there=None):
    """The family of a folder, as by `of_class`; UserError for a class of others"""
    other = other_class(name)
    if other:
        refuse(other, source)
    return of_class(name, unet, there)


def other_class(name):
    """What a model of that pipeline class is if it is none of ours, or None"""
    if of_class(name):
        return None
    for prefix, description in BY_CLASS:
        if str(name).startswith(prefix):
            return description
    return f"made for {str(name)[:100]!a}"


OTHER_INPUTS = {5: "a model that also reads a depth map", 7: "a model that enlarges pictures",
                8: "a model that edits pictures as it is told"}


def inputs(latent_channels):
    """Channels that a UNet may take: latents alone, or, for inpainting, latents, a mask, and latents of a masked picture."""
    return (latent_channels, 2 * latent_channels + 1) if isinstance(latent_channels, int) else (latent_channels,)


def check_sizes(family, unet, latent_channels, source):
    """UserError if a UNet is of a kind that isn't here, by its settings as in config.json, whose values are untrusted."""
    channels = unet.get("in_channels", UNetConfig.in_channels)
    if not family.is_told_by(unet):
        told = next((other.name for other in FAMILIES if other.is_told_by(unet)), "another family")
        raise UserError(f"{source}: its UNet is of {told}, but its other parts are of {family.name}")
    if isinstance(channels, int) and channels in OTHER_INPUTS and latent_channels == 4:
        refuse(f"{OTHER_INPUTS[channels]} (its UNet takes {channels} channels)", source)
    if channels not in inputs(latent_channels):
        raise UserError(f"{source}: the UNet takes {channels!r} channels, VAE latents have {latent_channels!r}")
