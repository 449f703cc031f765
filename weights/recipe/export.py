"""Write what was trained in diffusers' layout and in float16: averaged parameters of the states in runs/.

    python -m weights.recipe.export                     into runs/model/, to be judged
    python -m weights.recipe.export --to weights        ships it
"""

import argparse
import json
import shutil
from pathlib import Path

from diffusers import DDIMScheduler
from safetensors.torch import save_file

from . import settings
from .encode import Bank
from .models import new_text_encoder, new_unet, new_vae
from .training import PROGRESS, averaged_into, begun, state

INDEX = {
    "_class_name": "StableDiffusionPipeline", "_diffusers_version": "0.42.1", "requires_safety_checker": False,
    "feature_extractor": [None, None], "image_encoder": [None, None], "safety_checker": [None, None],
    "scheduler": ["diffusers", "DDIMScheduler"], "text_encoder": ["transformers", "CLIPTextModel"],
    "tokenizer": ["transformers", "CLIPTokenizer"], "unet": ["diffusers", "UNet2DConditionModel"],
    "vae": ["diffusers", "AutoencoderKL"],
    "guidance_scale": settings.GUIDANCE,                    # read by npdiffusion, ignored by diffusers
}


def write(folder, filename, model):
    save_config = getattr(model, "save_config", None) or model.config.save_pretrained        # diffusers, transformers
    save_config(folder)
    tensors = {key: value.half().contiguous() for key, value in model.state_dict().items()}
    save_file(tensors, folder / filename, metadata={"format": "pt"})
    (folder / filename).chmod(0o644)                        # the library leaves it readable to its owner alone


def main(arguments=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--to", type=Path, default=settings.RUNS / "model")
    folder = parser.parse_args(arguments).to.resolve()
    piece, config = state("latents/000"), settings.MODEL / "vae" / "config.json"
    vae = new_vae(
        Bank.scaling_factor_of(piece["latents"]) if piece else json.loads(config.read_text())["scaling_factor"])
    unet, text_encoder = new_unet(), new_text_encoder()
    learnt_vae, learnt = begun("vae", dict(vae=vae)), begun("unet", dict(text_encoder=text_encoder, unet=unet))
    averaged_into([vae], learnt_vae["averaged"])
    averaged_into([text_encoder, unet], learnt["averaged"])
    write(folder / "vae", "diffusion_pytorch_model.safetensors", vae)
    write(folder / "unet", "diffusion_pytorch_model.safetensors", unet)
    write(folder / "text_encoder", "model.safetensors", text_encoder)
    if folder == settings.MODEL:
        PROGRESS.write_text(json.dumps(dict(vae=learnt_vae["step"], unet=learnt["step"])) + "\n")
    else:
        shutil.copytree(settings.MODEL / "tokenizer", folder / "tokenizer", dirs_exist_ok=True)
    DDIMScheduler(**settings.SCHEDULER).save_config(folder / "scheduler")
    (folder / "model_index.json").write_text(json.dumps(INDEX, indent=2) + "\n")
    for model in (vae, unet, text_encoder):
        print(type(model).__name__, sum(p.numel() for p in model.parameters()))


if __name__ == "__main__":
    main()
