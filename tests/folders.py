"""Tiny models with random weights in diffusers layout, written by diffusers and transformers themselves."""
import json
import pathlib

import numpy as np
import torch

from npdiffusion.text.tokenizer import byte_alphabet
from tests import references

# As in v1: 8 heads, 32 groups, heads of width 64 in the text encoder; so the shapes alone tell the rest.
UNET = dict(sample_size=8, block_out_channels=(32, 64), layers_per_block=1, cross_attention_dim=128,
            attention_head_dim=8, down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
            up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"))
VAE = dict(sample_size=16, block_out_channels=(32, 64), layers_per_block=1,
           down_block_types=("DownEncoderBlock2D",) * 2, up_block_types=("UpDecoderBlock2D",) * 2)
TEXT = dict(vocab_size=520, hidden_size=128, intermediate_size=96, num_hidden_layers=1, num_attention_heads=2,
            hidden_act="quick_gelu", bos_token_id=518, eos_token_id=519, pad_token_id=519)
SCHEDULER = {"_class_name": "PNDMScheduler", **references.SCHEDULER}


def torch_models():
    """{part: torch model}"""
    return {"text_encoder": references.torch_text_encoder(**TEXT), "unet": references.torch_unet(**UNET),
            "vae": references.torch_vae(**VAE)}


def write_tokenizer(folder, merges=("a b", "a p", "ap p", "r e", "re d</w>", "l e</w>")):
    """vocab.json with all bytes, bytes that end a word, and what the merges make; merges.txt"""
    alphabet = byte_alphabet()
    made = [merge.replace(" ", "") for merge in merges]
    pieces = [*alphabet, *(c + "</w>" for c in alphabet), *made, "<|startoftext|>", "<|endoftext|>"]
    folder = pathlib.Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "vocab.json").write_text(json.dumps({piece: i for i, piece in enumerate(pieces)}))
    (folder / "merges.txt").write_text("\n".join(["#version: 0.2", *merges]) + "\n")
    (folder / "tokenizer_config.json").write_text(json.dumps({"model_max_length": 77}))


def write_model(folder, models, variant=None):
    """A complete model in diffusers layout; returns the folder."""
    folder = pathlib.Path(folder)
    for name, model in models.items():
        model.save_pretrained(folder / name, variant=variant)
    write_tokenizer(folder / "tokenizer")
    (folder / "scheduler").mkdir(exist_ok=True)
    (folder / "scheduler" / "scheduler_config.json").write_text(json.dumps(SCHEDULER))
    (folder / "model_index.json").write_text(json.dumps({"_class_name": "StableDiffusionPipeline"}))
    return folder


@torch.no_grad()
def torch_results(models):
    """What each torch model gives for fixed random input: {name: array}, channels last"""
    x, context, image, ids = inputs()
    first = references.channels_first
    vae = models["vae"]
    return {
        "text_encoder": models["text_encoder"](torch.from_numpy(ids)).last_hidden_state.numpy(),
        "unet": references.channels_last(models["unet"](first(x), 500, torch.from_numpy(context)).sample),
        "encode": references.channels_last(vae.encode(first(image)).latent_dist.mean),
        "decode": references.channels_last(vae.decode(first(x) / vae.config.scaling_factor).sample)}


def our_results(parts):
    """The same for loaded parts."""
    x, context, image, ids = inputs()
    return {"text_encoder": parts["text_encoder"](ids), "unet": parts["unet"](x, 500, context),
            "encode": parts["vae"].encode(image)[0], "decode": parts["vae"].decode(x)}


def inputs():
    """latents (1, 8, 8, 4), context (1, 77, 128), image (1, 16, 16, 3), ids (1, 77)"""
    random = np.random.default_rng(0)
    shapes = (1, 8, 8, 4), (1, 77, 128), (1, 16, 16, 3)
    return *(random.standard_normal(shape, dtype=np.float32) for shape in shapes), random.integers(0, 520, (1, 77))
