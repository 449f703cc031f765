"""Write what was trained in diffusers' layout and in float16: averaged parameters of the runs.

    python -m weights.recipe.export                     into runs/model/, to be judged
    python -m weights.recipe.export --to weights        ships it
"""

import argparse
import json
import shutil
from pathlib import Path

import numpy as np
from safetensors.numpy import save_file

from npdiffusion.checkpoints.config_json import config
from npdiffusion.training import initial
from npdiffusion.training.runs import written

from . import settings
from .encode import scaling_factor
from .models import new_text_encoder, new_unet, new_vae
from .training import fill, steps_behind

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
    write_json(config(model.config) | sizes, folder / "config.json")
    tensors = {name: value.astype(np.float16) for name, value in initial.of(model).items()}
    written(folder / filename, lambda beside: save_file(tensors, beside, metadata={"format": "pt"}))
    (folder / filename).chmod(0o644)                        # the library leaves it readable to its owner alone


def main(arguments=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=Path, default=settings.RUNS, help="folder of states, logs and caches")
    parser.add_argument("--to", type=Path, default=None, metavar="FOLDER", help="default: model/ in that folder")
    args = parser.parse_args(arguments)
    settings.RUNS = args.runs
    folder = (args.to or settings.RUNS / "model").resolve()
    vae, unet, text_encoder = new_vae(scaling_factor()), new_unet(), new_text_encoder()
    fill(dict(vae=vae, unet=unet, text_encoder=text_encoder))
    write(folder / "vae", "diffusion_pytorch_model.safetensors", vae, settings.VAE)
    write(folder / "unet", "diffusion_pytorch_model.safetensors", unet, settings.UNET)
    write(folder / "text_encoder", "model.safetensors", text_encoder, settings.TEXT)
    if folder == settings.MODEL:
        write_json(dict(vae=max(map(steps_behind, ("vae", "decoder"))), unet=steps_behind("unet")), settings.PROGRESS)
    else:
        shutil.copytree(settings.MODEL / "tokenizer", folder / "tokenizer", dirs_exist_ok=True)
    write_json({"_class_name": "DDIMScheduler", "_diffusers_version": "0.42.1", **settings.SCHEDULER},
               folder / "scheduler" / "scheduler_config.json")
    write_json(INDEX, folder / "model_index.json")
    for model in (vae, unet, text_encoder):
        print(type(model).__name__, sum(value.size for value in initial.of(model).values()))


if __name__ == "__main__":
    main()
