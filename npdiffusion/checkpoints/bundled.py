"""What comes with the embedded model beside its parts, called by a name where a file's would stand.

    --control scribble     a ControlNet that follows outlines, white on black      weights/controlnet/
    <lora:lcm>             a LoRA: four steps, with --sampler lcm                  weights/lora/lcm.safetensors

Both are for its UNet and for no other. A file or folder that is called so, where one is looked for, comes first.
"""
import pathlib

import npdiffusion.weights
from npdiffusion.checkpoints.text_files import read_json
from npdiffusion.errors import UserError
from npdiffusion.models.configs import UNetConfig

FOLDER = pathlib.Path(npdiffusion.weights.__file__).parent
CONTROLNETS = {"scribble": FOLDER / "controlnet"}
LORAS = {"lcm": FOLDER / "lora" / "lcm.safetensors"}
OPTIONS = "--control scribble --control-image FILE", '"a cat <lora:lcm>" --sampler lcm'          # how they are asked for
SIZES = "block_out_channels", "layers_per_block", "cross_attention_dim"          # by which its UNet is told from others


def check(path, unet):
    """UserError if a path is that of one of these, and a UNet of that configuration is no embedded model's"""
    name = next((name for name, place in (CONTROLNETS | LORAS).items() if place == path), None)
    if name is not None:
        config = FOLDER / "unet" / "config.json"
        ours = UNetConfig.from_dict(read_json(config), config)
        if any(getattr(unet, size) != getattr(ours, size) for size in SIZES):
            raise UserError(f"{name} comes with the embedded model and goes with no other: name a file made for this one")
