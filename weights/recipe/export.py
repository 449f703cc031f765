"""Write what was trained into weights/, in diffusers' layout and in float16.

    python -m weights.recipe.export [--to FOLDER]       networks that have a state in runs/; the others' shapes alone
"""

import argparse
import json
import shutil
from pathlib import Path

from diffusers import DDIMScheduler
from safetensors.torch import save_file

from . import settings
from .models import new_text_encoder, new_unet, new_vae
from .training import averaged_into, state

INDEX = {
    "_class_name": "StableDiffusionPipeline", "_diffusers_version": "0.42.1", "requires_safety_checker": False,
    "feature_extractor": [None, None], "image_encoder": [None, None], "safety_checker": [None, None],
    "scheduler": ["diffusers", "DDIMScheduler"], "text_encoder": ["transformers", "CLIPTextModel"],
    "tokenizer": ["transformers", "CLIPTokenizer"], "unet": ["diffusers", "UNet2DConditionModel"],
    "vae": ["diffusers", "AutoencoderKL"],
    "guidance_scale": settings.GUIDANCE,                    # read by npdiffusion, ignored by diffusers
}


def write(model, folder, filename, trained):
    save_config = getattr(model, "save_config", None) or model.config.save_pretrained        # diffusers, transformers
    save_config(folder)
    if trained:
        tensors = {key: value.half().contiguous() for key, value in model.state_dict().items()}
        save_file(tensors, folder / filename, metadata={"format": "pt"})
        (folder / filename).chmod(0o644)                    # the library leaves it readable to its owner alone


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--to", type=Path, default=settings.WEIGHTS)
    folder = parser.parse_args().to
    vae_state, unet_state, latents = state("vae"), state("unet"), state("latents")
    vae = new_vae(latents["scaling_factor"] if latents else 1.0)
    unet, text_encoder = new_unet(), new_text_encoder()
    if vae_state:
        averaged_into([vae], vae_state["averaged"])
    if unet_state:
        averaged_into([text_encoder, unet], unet_state["averaged"])
    write(vae, folder / "vae", "diffusion_pytorch_model.safetensors", vae_state)
    write(unet, folder / "unet", "diffusion_pytorch_model.safetensors", unet_state)
    write(text_encoder, folder / "text_encoder", "model.safetensors", unet_state)
    if folder != settings.WEIGHTS:
        shutil.copytree(settings.WEIGHTS / "tokenizer", folder / "tokenizer", dirs_exist_ok=True)
    DDIMScheduler(**settings.SCHEDULER).save_config(folder / "scheduler")
    (folder / "model_index.json").write_text(json.dumps(INDEX, indent=2) + "\n")
    for model in (vae, unet, text_encoder):
        print(type(model).__name__, sum(p.numel() for p in model.parameters()))


if __name__ == "__main__":
    main()
