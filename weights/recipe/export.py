"""Write what was trained in diffusers' layout and in float16: averaged parameters of the runs.

    python -m weights.recipe.export                     into runs/model/, to be judged
    python -m weights.recipe.export --to weights        ships it
    python -m weights.recipe.export --share 0.65        goes only so far from the shipped weights to the learnt ones

    θ = θ₀ + share (θ₁ − θ₀)        θ₀ shipped, θ₁ learnt since

When a leg taught something new, weights between both ends keep more of what was known than the last do (Wortsman et al. 2022,
arXiv:2109.01903). What is shipped is θ₀ of the next time: the same share taken twice is another model.

The ControlNet goes to controlnet/, the LoRA to lora/lcm.safetensors in PEFT's names, as diffusers has them, once they have
been trained.
"""

import argparse
import json
import shutil
from pathlib import Path

import numpy as np
from safetensors.numpy import save_file

from npdiffusion.checkpoints.config_json import config
from npdiffusion.training import initial, lora_layers
from npdiffusion.training.runs import written

from . import settings
from .encode import scaling_factor
from .models import new_text_encoder, new_unet, new_vae
from .train_control import PART as CONTROLNET
from .train_control import new_controlnet, newest
from .train_few_steps import FILE as LORA_FILE
from .train_few_steps import PART as FEW_STEPS
from .train_few_steps import attach, spelled
from .training import fill, named, steps_behind

INDEX = {
    "_class_name": "StableDiffusionPipeline", "_diffusers_version": "0.42.1", "requires_safety_checker": False,
    "feature_extractor": [None, None], "image_encoder": [None, None], "safety_checker": [None, None],
    "scheduler": ["diffusers", "DDIMScheduler"], "text_encoder": ["transformers", "CLIPTextModel"],
    "tokenizer": ["transformers", "CLIPTokenizer"], "unet": ["diffusers", "UNet2DConditionModel"],
    "vae": ["diffusers", "AutoencoderKL"],
    "guidance_scale": settings.GUIDANCE,                    # read by npdiffusion, ignored by diffusers
}


def write_json(content, path):
    path.parent.mkdir(parents=True, exist_ok=True)
    written(path, lambda beside: beside.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8"))


def write(folder, filename, model, sizes):
    """A part of the model: its config.json and its weights."""
    write_json(sizes, folder / "config.json")
    write_tensors(initial.of(model), folder / filename)


def write_tensors(values, path):
    """{name: array} in float16"""
    path.parent.mkdir(parents=True, exist_ok=True)
    tensors = {name: np.ascontiguousarray(value, np.float16) for name, value in values.items()}
    written(path, lambda beside: save_file(tensors, beside, metadata={"format": "pt"}))
    path.chmod(0o644)                                       # the library leaves it readable to its owner alone


def control_sizes(controlnet):
    """config.json of a ControlNet, as diffusers writes it"""
    upwards = ("sample_size", "out_channels", "up_block_types")
    sizes = {name: value for name, value in (config(controlnet.config) | settings.UNET).items() if name not in upwards}
    return sizes | {"_class_name": "ControlNetModel", "conditioning_embedding_out_channels": settings.HINT,
                    "controlnet_conditioning_channel_order": "rgb"}


def between(models, share):
    """Give {folder: model} the weights that are such a share of the way from the shipped to the newest ones, in place."""
    newest = {name: value.copy() for name, value in named(fill(models)).items()}
    for name, value in named(fill(models, from_runs=False)).items():
        value[...] = np.float32(1 - share) * value + np.float32(share) * newest[name]


def main(arguments=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=Path, default=settings.RUNS, help="folder of states, logs and caches")
    parser.add_argument("--to", type=Path, default=None, metavar="FOLDER", help="default: model/ in that folder")
    parser.add_argument("--share", type=float, default=1.0, help="of the way from the shipped UNet and text encoder, 0 … 1")
    args = parser.parse_args(arguments)
    settings.RUNS = args.runs
    folder = (args.to or settings.RUNS / "model").resolve()
    vae, unet, text_encoder = new_vae(scaling_factor()), new_unet(), new_text_encoder()
    fill(dict(vae=vae))
    between(dict(unet=unet, text_encoder=text_encoder), args.share)
    weights = "diffusion_pytorch_model.safetensors"
    for name, file, model, sizes in (("vae", weights, vae, settings.VAE), ("unet", weights, unet, settings.UNET),
                                     ("text_encoder", "model.safetensors", text_encoder, settings.TEXT)):
        write(folder / name, file, model, config(model.config) | sizes)
    progress = {part: steps_behind(part) for part in ("unet", CONTROLNET, FEW_STEPS)}
    if progress[CONTROLNET]:
        controlnet = new_controlnet()
        newest(controlnet, unet)
        write(folder / CONTROLNET, weights, controlnet, control_sizes(controlnet))
    if progress[FEW_STEPS]:
        write_tensors(spelled(attach(unet)), folder / LORA_FILE)
        lora_layers.detach(unet)
    if folder == settings.MODEL:
        write_json(dict(vae=max(map(steps_behind, ("vae", "decoder")))) | progress, settings.PROGRESS)
    else:
        shutil.copytree(settings.MODEL / "tokenizer", folder / "tokenizer", dirs_exist_ok=True)
    write_json({"_class_name": "DDIMScheduler", "_diffusers_version": "0.42.1", **settings.SCHEDULER},
               folder / "scheduler" / "scheduler_config.json")
    write_json(INDEX, folder / "model_index.json")
    for model in (vae, unet, text_encoder):
        print(type(model).__name__, sum(value.size for value in initial.of(model).values()))


if __name__ == "__main__":
    main()
