"""Whole pipelines: diffusers' and ours, tiny, random and equal (fixture `pair`), and their pictures."""
import json
import pathlib

import numpy as np
import torch
from diffusers import (
    DDIMScheduler,
    DDPMScheduler,
    DPMSolverMultistepScheduler,
    EulerAncestralDiscreteScheduler,
    EulerDiscreteScheduler,
    HeunDiscreteScheduler,
    PNDMScheduler,
    StableDiffusionPipeline,
)
from transformers import CLIPTokenizer as TorchCLIPTokenizer

from npdiffusion import weights
from npdiffusion.diffusion.schedules import NoiseSchedule
from npdiffusion.pipeline import StableDiffusionPipeline as OurPipeline
from npdiffusion.text.tokenizer import CLIPTokenizer
from tests import references
from tests.references import SCHEDULER

SCHEDULE = NoiseSchedule.from_config(SCHEDULER)
SAMPLERS = {"ddpm": DDPMScheduler, "ddim": DDIMScheduler, "pndm": PNDMScheduler, "euler": EulerDiscreteScheduler,
            "euler_a": EulerAncestralDiscreteScheduler, "heun": HeunDiscreteScheduler, "dpm++2m": DPMSolverMultistepScheduler}
PROMPT, NEGATIVE = "a red apple on a blue background", "a cat, green"
VOCABULARY = pathlib.Path(weights.__file__).parent / "tokenizer"                           # the embedded model's
IDS = len(json.loads((VOCABULARY / "vocab.json").read_text(encoding="utf-8")))
TEXT = references.TINY_TEXT | dict(vocab_size=IDS, bos_token_id=IDS - 2, eos_token_id=IDS - 1, pad_token_id=IDS - 1)


def make_theirs(kind=StableDiffusionPipeline, sampler="pndm", unet=None, text=None):
    """diffusers' pipeline; unet, text: sizes other than those of the tiny models"""
    theirs = kind(
        vae=references.torch_vae(**references.TINY_VAE), unet=references.torch_unet(**references.TINY_UNET | (unet or {})),
        text_encoder=references.torch_text_encoder(**TEXT | (text or {})),
        tokenizer=TorchCLIPTokenizer.from_pretrained(VOCABULARY), scheduler=SAMPLERS[sampler].from_config(SCHEDULER),
        safety_checker=None, feature_extractor=None, requires_safety_checker=False)
    theirs.set_progress_bar_config(disable=True)
    return theirs


def our_twin(theirs):
    """Our pipeline with the same weights."""
    parts = (references.twin(getattr(theirs, name)) for name in ("text_encoder", "unet", "vae"))
    return OurPipeline(CLIPTokenizer.from_folder(VOCABULARY), *parts, SCHEDULE, "tiny")


def make_pair(*arguments, **options):
    """(diffusers' pipeline, ours)"""
    theirs = make_theirs(*arguments, **options)
    return theirs, our_twin(theirs)


def levels(image):
    """(H, W, 3), integers"""
    return np.asarray(image).astype(int)


def their_picture(pipeline, seed=7, **options):
    """Levels of the picture for the usual prompts."""
    generator = torch.Generator().manual_seed(seed)
    return levels(pipeline(PROMPT, negative_prompt=NEGATIVE, generator=generator, **options).images[0])
