"""ControlNets of diffusers, tiny and random, a picture that leads, and a folder with all that may lead."""
import numpy as np
import torch
from diffusers import ControlNetModel as TorchControlNet
from diffusers import T2IAdapter
from PIL import Image
from safetensors.torch import save_file
from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection

from tests import references

UNET = {key: value for key, value in references.TINY_UNET.items() if key not in ("sample_size", "up_block_types")}
HINT = (8, 12, 16)     # two convolutions that halve, as the tiny VAE does


def torch_controlnet(seed=5, hint=HINT, **settings):
    torch.manual_seed(seed)
    made = references.make_demanding(TorchControlNet(**UNET | settings, conditioning_embedding_out_channels=hint), seed)
    wake(made)
    return made


@torch.no_grad()
def wake(made):
    """Numbers in the zero convolutions: a random ControlNet does nothing otherwise"""
    for each in (*made.controlnet_down_blocks, made.controlnet_mid_block, made.controlnet_cond_embedding.conv_out):
        each.weight.copy_(0.3 * torch.randn(each.weight.shape) / each.weight.shape[1] ** 0.5)


def picture(seed=3, width=48, height=32):
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8))


def mask():
    return Image.fromarray(np.where(np.arange(48) < 24, 0, 255).astype(np.uint8)[None].repeat(32, axis=0))


# ---- a folder of what leads, for the server and a cluster

VISION = dict(hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=2, image_size=28, patch_size=14,
              projection_dim=20, hidden_act="gelu")


def write_all(folder, theirs):
    """A model, and beside it in led/: two ControlNets, as a folder and as a file, a T2I-Adapter, an IP-Adapter with its encoder

    theirs: diffusers' pipeline
    """
    theirs.save_pretrained(folder / "model")
    torch_controlnet().save_pretrained(folder / "led" / "v11_canny")
    save_file(dict(torch_controlnet(6).state_dict()), folder / "led" / "depth.safetensors")
    torch.manual_seed(6)
    T2IAdapter(in_channels=3, channels=[32, 64, 64], num_res_blocks=2, downscale_factor=4,
               adapter_type="full_adapter").save_pretrained(folder / "led" / "sketch")
    CLIPVisionModelWithProjection(CLIPVisionConfig(**VISION)).save_pretrained(folder / "led" / "image_encoder")
    save_file(ip_adapter(theirs.unet), folder / "led" / "looks.safetensors")
    return folder


def ip_adapter(unet):
    """{name: tensor} of a plain IP-Adapter for diffusers' UNet"""
    width, found = unet.config.cross_attention_dim, {}
    found |= {"image_proj.proj.weight": torch.randn(4 * width, 20), "image_proj.proj.bias": torch.randn(4 * width),
              "image_proj.norm.weight": torch.ones(width), "image_proj.norm.bias": torch.zeros(width)}
    for number, name in enumerate(unet.attn_processors):
        if name.endswith("attn2.processor"):
            channels = unet.get_submodule(name.removesuffix(".processor")).to_k.weight.shape[0]
            found |= {f"ip_adapter.{number}.to_{what}_ip.weight": torch.randn(channels, width) / 5 for what in "kv"}
    return found
