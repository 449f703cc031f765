"""A T2I-Adapter by itself: a folder with config.json, or a file, in diffusers' names or in the original ones.

    adapter.body.{level}.resnets.{j}.block1.…, .in_conv.…        diffusers
    body.{blocks · level + j}.block1.…, .in_conv.…               TencentARC's original
    body.{level}.body.{j}.block1.…, .in_conv.…, .out_conv.…      its light ones

What it is follows from its tensors' shapes; by how much it folds pixels, from config.json or from the family.
"""
import functools
import os
import pathlib
import re
from collections.abc import Callable
from typing import Any

from npdiffusion.checkpoints import families, files, original_names, safetensors_file
from npdiffusion.checkpoints.part import Part
from npdiffusion.checkpoints.text_files import read_json
from npdiffusion.errors import UserError
from npdiffusion.models.configs import LARGEST, Reader, UNetConfig
from npdiffusion.models.t2i_adapter import T2IAdapter

STEM = "diffusion_pytorch_model"
LARGEST_FOLD = 64
BLOCK = re.compile(r"body\.(\d+)\.resnets\.(\d+)\.(.*)")


def open_t2i_adapter(path: Any, unet: UNetConfig, family: families.Family) -> Part:
    """A T2I-Adapter for a UNet of that configuration → checkpoints.part.Part; UserError if it is none, or for other levels"""
    path = pathlib.Path(os.path.expanduser(path))
    if not path.exists():
        raise UserError(f"{path}: no such file or folder (a T2I-Adapter was expected)")
    tensors, source = safetensors_file.read_folder(path, STEM) if path.is_dir() else (files.read_tensors(path), path)
    shape = {name: tensor.shape for name, tensor in tensors.items()}
    levels = [*unet.block_out_channels, *unet.block_out_channels[-1:] * bool(family.added)]      # XL's last one is the middle's
    blocks = original_names.count(shape, "adapter.body.0.resnets.{}.block1.weight")
    spell: Callable[[str], str] = unchanged
    light = "adapter.body.0.out_conv.weight" in shape or "body.0.out_conv.weight" in shape
    if not blocks:
        blocks = (original_names.count(shape, "body.0.body.{}.block1.weight") if light else
                  original_names.count(shape, "body.{}.block1.weight") // len(levels))
        spell = functools.partial(original_name, None if light else blocks)
    if not blocks:
        raise UserError(f"{path}: not a T2I-Adapter: it has neither adapter.body.0.resnets.0.block1 nor body.0.block1")
    try:
        last = "adapter.body.{}.out_conv.weight" if light else "adapter.body.{}.resnets.0.block1.weight"
        channels = [shape[spell(last.format(level))][0] for level in range(len(levels))]
        inner = [shape[spell(f"adapter.body.{level}.resnets.0.block1.weight")][0] for level in range(len(levels))]
        folded = shape[spell("adapter.body.0.in_conv.weight" if light else "adapter.conv_in.weight")][1]
    except (KeyError, IndexError):
        raise UserError(f"{path}: this T2I-Adapter is for a UNet of fewer levels than {family.name}'s, {len(levels)}") from None
    if blocks > LARGEST["layers"] or max(inner) > LARGEST["channels"] or min(inner) < 1:
        raise UserError(f"{path}: no T2I-Adapter has {blocks} blocks of {max(inner)} channels")
    if channels != levels:
        raise UserError(f"{path}: this T2I-Adapter is for another family than {family.name}: its levels have "
                        f"{', '.join(map(str, channels))} channels, the model's {', '.join(map(str, levels))}")
    beside = (path if path.is_dir() else path.parent) / "config.json"
    fold = 16 if family.added else 8
    if spell is unchanged and beside.is_file():
        fold = Reader(read_json(beside), beside).integer("downscale_factor", fold, LARGEST_FOLD)
    colours = folded // fold ** 2
    if colours * fold ** 2 != folded or colours not in (1, 3):
        raise UserError(f"{path}: this T2I-Adapter reads {folded} channels, but {family.name}'s read pixels of 1 or 3 colours "
                        f"folded by {fold}")
    halved = [level == 2 if family.added else level > 0 for level in range(len(levels))]
    return Part.match(T2IAdapter(fold, colours, channels, inner, blocks, halved), tensors, source, spell)


def unchanged(name: str) -> str:
    return name


def original_name(blocks: int | None, name: str) -> str:
    """From diffusers' name to the original one; blocks: of a level, None for light adapters"""
    name = name.removeprefix("adapter.")
    if blocks is None:
        return name.replace(".resnets.", ".body.")
    if found := BLOCK.fullmatch(name):
        level, block, rest = found.groups()
        return f"body.{blocks * int(level) + int(block)}.{rest}"
    level, _, rest = name.removeprefix("body.").partition(".")
    return f"body.{blocks * int(level)}.{rest}" if name.startswith("body.") else name
