"""A UNet by itself, in place of a model's own: distilled ones are often shared so (SDXL-Lightning, LCM, DMD2).

    down_blocks.0.resnets.0.…                        diffusers     a folder with config.json, or a file
    input_blocks.1.0.…, also behind model.diffusion_model.        original names, a file

A file in diffusers' names without config.json beside it has the sizes of the model's own.
"""
import os
import pathlib
from dataclasses import replace

from npdiffusion.checkpoints import families, files, original_names, safetensors_file
from npdiffusion.checkpoints.part import Part
from npdiffusion.checkpoints.text_files import read_json
from npdiffusion.errors import UserError
from npdiffusion.models.configs import UNetConfig
from npdiffusion.models.unet import UNet2DConditionModel

ROW = families.FAMILIES[0].parts["unet"]


def open_unet(path, own, family):
    """A UNet to take the place of one of that configuration → checkpoints.part.Part; UserError if it is of another family"""
    path = pathlib.Path(os.path.expanduser(path))
    if not path.exists():
        raise UserError(f"{path}: no such file or folder (a UNet was expected)")
    path = path / "unet" if (path / "unet").is_dir() else path
    tensors, source = safetensors_file.read_folder(path, ROW.stem) if path.is_dir() else (files.read_tensors(path), path)
    beside = path / "config.json" if path.is_dir() else path.with_name("config.json")
    prefix = ROW.prefix if any(name.startswith(ROW.prefix) for name in tensors) else ""
    tensors = {name: tensor for name, tensor in tensors.items() if name.startswith(prefix)}
    shape = {name.removeprefix(prefix): tensor.shape for name, tensor in tensors.items()}
    spell = str
    if "conv_in.weight" in shape:
        told = shape.get("time_embedding.cond_proj.weight")
        config = replace(own, in_channels=shape["conv_in.weight"][1], time_cond_proj_dim=told and told[1])
        if beside.is_file() and (path.is_dir() or path.name.startswith(ROW.stem)):
            config = UNetConfig.from_dict(read_json(beside), beside, ROW.only)
    elif "input_blocks.0.0.weight" in shape:
        try:
            settings = original_names.unet_settings(shape) | {"sample_size": own.sample_size}
        except (KeyError, IndexError, ValueError) as error:
            raise UserError(f"{path}: its layers are not those of a UNet (at {error})") from None
        config = UNetConfig.from_dict(settings, path, ROW.only)
        spell = original_names.unet_name(config, prefix, tensors)
    else:
        raise UserError(f"{path}: not a UNet, it has neither conv_in nor input_blocks")
    width = next((found[1] for name, found in shape.items() if name.endswith("attn2.to_k.weight") and len(found) == 2), None)
    if width not in (None, own.cross_attention_dim):
        raise UserError(f"{path}: this UNet is of {families.WIDTHS.get(width, 'another model')} (its context is {width} wide), "
                        f"but the model is of another family, {family.name} ({own.cross_attention_dim})")
    if config.out_channels != own.out_channels or config.in_channels not in families.inputs(own.out_channels):
        raise UserError(f"{path}: this UNet takes {config.in_channels} channels, gives {config.out_channels}, but the model's "
                        f"latents have {own.out_channels}")
    return Part.match(UNet2DConditionModel(config), tensors, source, spell)
