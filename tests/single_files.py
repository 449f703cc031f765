"""Checkpoints in a single file with the original names, made of torch models."""
import torch
from diffusers import AutoencoderKL, UNet2DConditionModel

from npdiffusion.checkpoints.families import FAMILIES
from npdiffusion.models.configs import CLIPTextConfig, UNetConfig, VAEConfig
from tests import references

CONFIGS = {"text_encoder": CLIPTextConfig, "unet": UNetConfig, "vae": VAEConfig}


def original(models, text_model="text_model."):
    """The tensors of torch models under their original names, VAE attention as 1×1 convolutions."""
    tensors = {}
    for part, model in models.items():
        settings = model.config.to_dict() if part == "text_encoder" else dict(model.config)
        config = CONFIGS[part].from_dict(settings)
        row = FAMILIES[0].parts[part]
        spell = row.name(config, [f"cond_stage_model.transformer.{text_model}"], row.prefix)
        for name, tensor in model.state_dict().items():
            tensor = tensor.contiguous().clone()
            convolution = part == "vae" and ".attentions." in name and tensor.ndim == 2
            tensors[spell(name)] = tensor[:, :, None, None] if convolution else tensor
    return tensors


def on_meta(make, settings):
    with torch.device("meta"):
        return make(settings)


def full_models():
    """Stable Diffusion v1's own sizes, without memory for the numbers."""
    return {"unet": on_meta(lambda s: UNet2DConditionModel(**s), references.FULL_UNET),
            "vae": on_meta(lambda s: AutoencoderKL(**s), references.FULL_VAE),
            "text_encoder": on_meta(lambda s: references.CLIPTextModel(references.TorchCLIPTextConfig(**s)),
                                    references.FULL_TEXT)}
