"""A model that was trained here, as a folder in diffusers' layout: what `-m` and diffusers load.

    model_index.json    unet/  vae/  text_encoder/    config.json and weights, float32
    tokenizer/          scheduler/scheduler_config.json

Files are written beside and then moved, model_index.json last: a folder that has it is whole.
"""
import os
import pathlib
import shutil

import numpy as np

from npdiffusion.checkpoints.config_json import config
from npdiffusion.checkpoints.conversion import write_json, write_tokenizer
from npdiffusion.errors import UserError
from npdiffusion.training import initial

INDEX = "model_index.json"
CLASSES = {"unet": ("diffusers", "UNet2DConditionModel"), "vae": ("diffusers", "AutoencoderKL"),
           "text_encoder": ("transformers", "CLIPTextModel"), "tokenizer": ("transformers", "CLIPTokenizer"),
           "scheduler": ("diffusers", "DDIMScheduler")}
STEMS = {"unet": "diffusion_pytorch_model", "vae": "diffusion_pytorch_model", "text_encoder": "model"}


def write(folder, unet, vae, text_encoder, tokenizer, schedule, guidance):
    """Write the parts; guidance: the scale where none is asked for. UserError if they can't be written."""
    folder = pathlib.Path(folder)
    beside = folder / f".npdiffusion-{os.getpid()}-{os.urandom(4).hex()}.part"
    try:
        for name, model in (("unet", unet), ("vae", vae), ("text_encoder", text_encoder)):
            write_part(beside / name, name, model)
        write_tokenizer(beside / "tokenizer", tokenizer)
        write_json(beside / "scheduler" / "scheduler_config.json", scheduler(schedule))
        nothing = dict.fromkeys(("safety_checker", "feature_extractor", "image_encoder"), (None, None))
        write_json(beside / INDEX, {"_class_name": "StableDiffusionPipeline", "requires_safety_checker": False,
                                    "guidance_scale": guidance, **CLASSES, **nothing})
        for path in sorted(beside.rglob("*"), key=lambda path: path.name == INDEX):
            if path.is_file():
                target = folder / path.relative_to(beside)
                target.parent.mkdir(exist_ok=True)
                os.replace(path, target)
    except OSError as error:
        raise UserError(f"{folder}: the model can't be written ({error.strerror or error})") from None
    finally:
        shutil.rmtree(beside, ignore_errors=True)


def write_part(folder, name, model):
    """config.json and the weights of a part"""
    from safetensors.numpy import save_file
    write_json(folder / "config.json", config(model.config))
    before = "text_model." if name == "text_encoder" else ""
    tensors = {before + path: np.ascontiguousarray(value) for path, value in initial.of(model).items()}
    save_file(tensors, folder / f"{STEMS[name]}.safetensors", {"format": "pt"})


def scheduler(schedule):
    """scheduler_config.json of a NoiseSchedule, for DDIM"""
    same = ("num_train_timesteps", "beta_start", "beta_end", "beta_schedule", "prediction_type", "steps_offset")
    return {"_class_name": "DDIMScheduler", **{name: getattr(schedule, name) for name in same},
            "clip_sample": False, "set_alpha_to_one": False, "timestep_spacing": "leading"}
