"""A ControlNet by itself: a folder with config.json, or a file, in diffusers' names or in the original ones.

    controlnet_cond_embedding.…, controlnet_down_blocks.…, down_blocks.…           diffusers
    input_hint_block.…, zero_convs.…, input_blocks.…, also behind control_model.    lllyasviel's original

A file without config.json beside it has the sizes of the model that it is for. One comes with the embedded model, by name.
"""
import os
import pathlib
from dataclasses import replace

from npdiffusion.checkpoints import bundled, families, files, original_names, safetensors_file
from npdiffusion.checkpoints.part import Part
from npdiffusion.checkpoints.text_files import read_json
from npdiffusion.errors import UserError
from npdiffusion.models.configs import UNetConfig
from npdiffusion.models.controlnet import ControlNetModel

PREFIX = "control_model."
UNKNOWN = ("task_embedding", "lora_controlnet", "control_add_embedding")         # others that are called ControlNets
ONLY = {"global_pool_conditions": False, "controlnet_conditioning_channel_order": "rgb"}


def open_controlnets(paths, unet, family):
    """One path, several or None → [Part], as by `open_controlnet`"""
    paths = [paths] if isinstance(paths, (str, os.PathLike)) else paths or ()
    return [open_controlnet(path, unet, family) for path in paths]


def open_controlnet(path, unet, family):
    """A ControlNet for a UNet of that configuration → checkpoints.part.Part; UserError if it is none, or for another family"""
    path = located(path)
    if not path.exists():
        raise UserError(f"{path}: no such file or folder (a ControlNet was expected; the embedded model has "
                        f"{', '.join(bundled.CONTROLNETS)})")
    bundled.check(path, unet)
    beside = (path if path.is_dir() else path.parent) / "config.json"
    tensors, source = (safetensors_file.read_folder(path, families.FAMILIES[0].parts["unet"].stem) if path.is_dir() else
                       (files.read_tensors(path), path))
    names = {name.removeprefix(PREFIX) for name in tensors}
    if any(name.startswith(UNKNOWN) for name in names):
        raise UserError(f"{path}: a ControlNet of a kind that isn't here (union, or a LoRA)")
    diffusers = "controlnet_cond_embedding.conv_in.weight" in names
    if not diffusers and "input_hint_block.0.weight" not in names:
        raise UserError(f"{path}: not a ControlNet: it has neither controlnet_cond_embedding nor input_hint_block")
    check_context(path, tensors, unet, family)
    config = replace(unet, in_channels=unet.out_channels)
    if diffusers and beside.is_file():
        config = UNetConfig.from_dict(read_json(beside), beside, families.UNET_ONLY | ONLY)
    if unet.mid_depth is None:
        raise UserError(f"{path}: the model's UNet has no middle block, so no ControlNet goes with it")
    for setting in "block_out_channels", "layers_per_block":
        if getattr(config, setting) != getattr(unet, setting):
            raise UserError(f"{path}: this ControlNet is for another UNet: its {setting} is {getattr(config, setting)}, the "
                            f"model's {getattr(unet, setting)}")
    widths = hint_widths({name.removeprefix(PREFIX): tensor.shape for name, tensor in tensors.items()}, diffusers)
    prefix = PREFIX if any(name.startswith(PREFIX) for name in tensors) else ""
    spell = str if diffusers else original_names.control_name(config, prefix, len(widths))
    return Part.match(ControlNetModel(config, widths), tensors, source, spell)


def located(path):
    """The file or folder that is meant, of which there may be none, by a path or the name of one that is bundled"""
    expanded = pathlib.Path(os.path.expanduser(path))
    return expanded if expanded.exists() else bundled.CONTROLNETS.get(str(path), expanded)


def check_context(path, tensors, unet, family):
    """UserError unless its cross-attention reads contexts as wide as the model's"""
    width = next((tensor.shape[1] for name, tensor in tensors.items()
                  if name.endswith("attn2.to_k.weight") and len(tensor.shape) == 2), unet.cross_attention_dim)
    if width != unet.cross_attention_dim:
        theirs = families.WIDTHS.get(width, "another model")
        raise UserError(f"{path}: this ControlNet is for {theirs} (its context is {width} wide), but the model is of "
                        f"another family, {family.name} ({unet.cross_attention_dim})")


def hint_widths(shape, diffusers):
    """Widths of the convolutions that read the picture, from {name: shape}"""
    first = "controlnet_cond_embedding.conv_in.weight" if diffusers else "input_hint_block.0.weight"
    block = "controlnet_cond_embedding.blocks.{}.weight" if diffusers else "input_hint_block.{}.weight"
    widths, i = [shape[first][0]], 1
    while (name := block.format(i if diffusers else 2 * (i + 1))) in shape and shape[name][0] != shape[first][0] and i < 64:
        if not diffusers and block.format(2 * (i + 2)) not in shape:
            break                                          # the last one leads to the UNet's channels
        widths.append(shape[name][0])
        i += 2
    return tuple(widths)
