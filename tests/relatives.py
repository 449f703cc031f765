"""Whole pipelines of SD 2, XL and its refiner: diffusers', tiny and random, their folders and single files.

Sizes are such that shapes alone tell them, as in a single file: heads of width 64, 32 groups, sizes of 256 numbers in XL.
Both text encoders of XL have different widths, and the second one's projection another.
"""
import torch
from diffusers import (
    AutoencoderKL,
    EulerDiscreteScheduler,
    PNDMScheduler,
    StableDiffusionPipeline,
    StableDiffusionXLImg2ImgPipeline,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
)
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection
from transformers import CLIPTokenizer as TorchCLIPTokenizer

from npdiffusion.checkpoints import families
from tests import references, sizes
from tests.pairs import IDS, VOCABULARY

FAMILIES = {family.name: family for family in families.FAMILIES}
V2, XL, REFINER = families.V2, families.XL, families.REFINER
VAE = dict(sample_size=32, block_out_channels=(32, 64, 64), layers_per_block=1, down_block_types=("DownEncoderBlock2D",) * 3,
           up_block_types=("UpDecoderBlock2D",) * 3)
UNET = dict(sample_size=8, block_out_channels=(64, 128), layers_per_block=2, attention_head_dim=(1, 2),
            use_linear_projection=True, **sizes.blocks((sizes.C, sizes.D)))
UNETS = {
    V2: UNET | dict(cross_attention_dim=128),
    XL: UNET | dict(cross_attention_dim=192, transformer_layers_per_block=(1, 2), addition_embed_type="text_time",
                    addition_time_embed_dim=256, projection_class_embeddings_input_dim=48 + 6 * 256,
                    **sizes.blocks((sizes.D, sizes.C))),
    REFINER: UNET | dict(cross_attention_dim=128, transformer_layers_per_block=(1, 2), addition_embed_type="text_time",
                         addition_time_embed_dim=256, projection_class_embeddings_input_dim=48 + 5 * 256,
                         **sizes.blocks((sizes.D, sizes.C)))}
TEXT = dict(vocab_size=IDS, hidden_size=64, intermediate_size=96, num_hidden_layers=3, num_attention_heads=1,
            bos_token_id=IDS - 2, eos_token_id=IDS - 1, pad_token_id=IDS - 1)
OPEN_CLIP = TEXT | dict(hidden_size=128, num_attention_heads=2, num_hidden_layers=4, hidden_act="gelu", projection_dim=48,
                        bos_token_id=0, eos_token_id=2, pad_token_id=1)
SCHEDULER = {key: value for key, value in references.SCHEDULER.items() if key != "clip_sample"}
BETAS = {key: value for key, value in SCHEDULER.items() if key in ("beta_start", "beta_end", "beta_schedule", "steps_offset")}


def text_encoder(kind, settings, seed):
    torch.manual_seed(seed)
    return references.make_demanding(kind(CLIPTextConfig(**settings)), seed)


def tokenizer(padding=None):
    return TorchCLIPTokenizer.from_pretrained(VOCABULARY, **({"pad_token": padding} if padding else {}))


def theirs(name, **unet):
    """diffusers' pipeline of a family, by the family's name; unet: further settings of its UNet"""
    parts = {"unet": references.torch_unet(**UNETS[name] | unet),
             "vae": references.torch_vae(**VAE | dict(scaling_factor=0.18215 if name == V2 else 0.13025))}
    if parts["unet"].config.addition_embed_type is not None:         # other UNets have no add_embedding
        with torch.no_grad():
            parts["unet"].add_embedding.linear_2.weight *= 8         # so that what it is told shows in a picture
    if name == V2:
        made = StableDiffusionPipeline(
            **parts, text_encoder=text_encoder(CLIPTextModel, OPEN_CLIP, 1), tokenizer=tokenizer("!"),
            scheduler=PNDMScheduler(**SCHEDULER), safety_checker=None, feature_extractor=None,
            requires_safety_checker=False)
    else:
        base = name == XL
        made = (StableDiffusionXLPipeline if base else StableDiffusionXLImg2ImgPipeline)(
            **parts, text_encoder=text_encoder(CLIPTextModel, TEXT, 1) if base else None,
            tokenizer=tokenizer() if base else None,
            text_encoder_2=text_encoder(CLIPTextModelWithProjection, OPEN_CLIP, 2), tokenizer_2=tokenizer("!"),
            scheduler=EulerDiscreteScheduler(**BETAS, timestep_spacing="leading"),
            **({} if base else {"requires_aesthetics_score": True}), force_zeros_for_empty_prompt=base, add_watermarker=False)
    made.set_progress_bar_config(disable=True)
    return made


def single_file(pipeline, name):
    """{name: tensor} of a pipeline's weights in one file, as the family's original code names them"""
    tensors = {}
    for part, row in FAMILIES[name].parts.items():
        model = getattr(pipeline, part)
        settings = dict(model.config) if isinstance(model, (UNet2DConditionModel, AutoencoderKL)) else model.config.to_dict()
        found = {key.removeprefix("text_model."): tensor for key, tensor in model.state_dict().items()
                 if not key.endswith("position_ids")}
        if row.config is FAMILIES[name].parts["vae"].config or "open_clip" not in row.sizes.__name__:
            spell = row.name(row.config.from_dict(settings), [f"{row.prefix}text_model."], row.prefix)
            tensors |= {spell(key): tensor for key, tensor in found.items()}
        else:
            tensors |= {row.prefix + key: tensor for key, tensor in open_clip(found, extra=name == V2).items()}
    return {key: tensor.detach().clone().contiguous() for key, tensor in tensors.items()}


def open_clip(found, extra):
    """A text encoder in OpenCLIP's names: q, k and v as one; extra: a last layer and a projection that aren't used"""
    tensors = {"token_embedding.weight": found["embeddings.token_embedding.weight"],
               "positional_embedding": found["embeddings.position_embedding.weight"],
               "ln_final.weight": found["final_layer_norm.weight"], "ln_final.bias": found["final_layer_norm.bias"],
               "logit_scale": torch.tensor(4.6)}
    layers = 1 + max(int(key.split(".")[2]) for key in found if key.startswith("encoder.layers."))
    for i in range(layers + extra):
        here, there = f"encoder.layers.{min(i, layers - 1)}.", f"transformer.resblocks.{i}."
        for kind in "weight", "bias":
            tensors[f"{there}attn.in_proj_{kind}"] = torch.cat([found[f"{here}self_attn.{q}_proj.{kind}"] for q in "qkv"])
            for ours, original in (("self_attn.out_proj", "attn.out_proj"), ("layer_norm1", "ln_1"), ("layer_norm2", "ln_2"),
                                   ("mlp.fc1", "mlp.c_fc"), ("mlp.fc2", "mlp.c_proj")):
                tensors[f"{there}{original}.{kind}"] = found[f"{here}{ours}.{kind}"]
    width = found["final_layer_norm.weight"].shape[0]
    projection = found.get("text_projection.weight", torch.ones(8, width))
    tensors["text_projection"] = projection.T
    return tensors
