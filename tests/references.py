"""Torch models with random weights on which mistakes show, and the same models here.

With ordinary random weights attention is nearly uniform and norms are nearly the identity, so that a wrong ε or a tanh
GELU hides below 1e-4. `make_demanding` moves them away from that: norms get random scales and shifts, queries and keys
grow, residual branches shrink (so that ε matters beside the variance).
"""
import contextlib
import types
from unittest import mock

import numpy as np
import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from transformers import CLIPTextConfig as TorchCLIPTextConfig
from transformers import CLIPTextModel

from npdiffusion.models import clip, configs, parameters, unet, vae

TINY_UNET = dict(
    sample_size=8, block_out_channels=(32, 64, 64), layers_per_block=2, cross_attention_dim=24, attention_head_dim=4,
    norm_num_groups=8, down_block_types=("CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"),
    up_block_types=("UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D"))
TINY_VAE = dict(
    sample_size=32, block_out_channels=(16, 32, 32), layers_per_block=1, norm_num_groups=8, scaling_factor=0.3,
    down_block_types=("DownEncoderBlock2D",) * 3, up_block_types=("UpDecoderBlock2D",) * 3)
TINY_TEXT = dict(vocab_size=600, hidden_size=24, intermediate_size=96, num_hidden_layers=2, num_attention_heads=3,
                 bos_token_id=598, eos_token_id=599, pad_token_id=599)
FULL_UNET = dict(                                                      # the configs.json of SD v1's UNet
    sample_size=64, block_out_channels=(320, 640, 1280, 1280), layers_per_block=2, cross_attention_dim=768,
    attention_head_dim=8, down_block_types=("CrossAttnDownBlock2D",) * 3 + ("DownBlock2D",),
    up_block_types=("UpBlock2D",) + ("CrossAttnUpBlock2D",) * 3)
FULL_VAE = dict(
    sample_size=512, block_out_channels=(128, 256, 512, 512), layers_per_block=2, latent_channels=4,
    down_block_types=("DownEncoderBlock2D",) * 4, up_block_types=("UpDecoderBlock2D",) * 4)
FULL_TEXT = dict(vocab_size=49408, hidden_size=768, intermediate_size=3072, num_hidden_layers=12, num_attention_heads=12,
                 bos_token_id=49406, eos_token_id=49407, pad_token_id=49407)

SCHEDULER = dict(                                                      # the scheduler_config.json of SD v1
    beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", num_train_timesteps=1000, steps_offset=1,
    set_alpha_to_one=False, skip_prk_steps=True, clip_sample=False)

BRANCH_ENDS = ("conv2", "to_out.0", "ff.net.2", "proj_out", "out_proj", "fc2")


@torch.no_grad()
def make_demanding(model, seed=0, sharpness=3.0):
    """Change the parameters of a torch model in place, see above; returns the model, ready for inference."""
    generator = torch.Generator().manual_seed(seed)
    for name, p in model.named_parameters():
        if "norm" in name:
            p.add_(0.3 * torch.randn(p.shape, generator=generator))
        elif any(f"{part}.weight" in name for part in ("to_q", "to_k", "q_proj", "k_proj")):
            p.mul_(sharpness)
        elif name.endswith(".bias"):
            p.copy_(0.1 * torch.randn(p.shape, generator=generator))
        elif any(f"{part}.weight" in name for part in BRANCH_ENDS):
            p.mul_(0.5)
    return model.eval()


def torch_unet(seed=0, **settings):
    torch.manual_seed(seed)
    return make_demanding(UNet2DConditionModel(**settings), seed)


def torch_vae(seed=0, **settings):
    torch.manual_seed(seed)
    return make_demanding(AutoencoderKL(**settings), seed)


def torch_text_encoder(seed=0, **settings):
    torch.manual_seed(seed)
    return make_demanding(CLIPTextModel(TorchCLIPTextConfig(**settings)), seed)


class Tensor:
    """A torch tensor as `parameters.load` takes it."""
    def __init__(self, tensor, name="a tensor"):
        self.tensor, self.shape, self.name = tensor, tuple(tensor.shape), name

    def __call__(self, into=None):
        return self.tensor.detach().numpy().astype(np.float32)         # a copy: the model may be changed later


def twin(model):
    """The same model with the same weights here."""
    kind, make, prefix = {
        UNet2DConditionModel: (configs.UNetConfig, unet.UNet2DConditionModel, ""),
        AutoencoderKL: (configs.VAEConfig, vae.AutoencoderKL, ""),
        CLIPTextModel: (configs.CLIPTextConfig, clip.CLIPTextModel, "text_model."),
    }[type(model)]
    ours = make(kind.from_dict(dict(model.config) if not hasattr(model.config, "to_dict") else model.config.to_dict()))
    tensors = {name.removeprefix(prefix): Tensor(tensor) for name, tensor in model.state_dict().items()
               if not name.endswith("position_ids")}
    parameters.load(ours, tensors, type(model).__name__)
    return ours


@contextlib.contextmanager
def decoded(theirs, ours):
    """Two pipelines record, while it lasts, the latents that they decode; found.theirs, found.ours: (1, h, w, C), the last

    A picture of 256 levels hides differences which these show.
    """
    found = types.SimpleNamespace()
    their_decode, our_decode = theirs.vae.decode, ours.vae.decode

    def record_theirs(latents, *arguments, **options):
        found.theirs = channels_last(latents * theirs.vae.config.scaling_factor)
        return their_decode(latents, *arguments, **options)

    def record_ours(latents, tile=None):
        found.ours = latents.copy()
        return our_decode(latents, tile)

    with mock.patch.object(theirs.vae, "decode", record_theirs), mock.patch.object(ours.vae, "decode", record_ours):
        yield found


def random(*shape, seed=0):
    """Normal numbers, float32"""
    return np.random.default_rng(seed).standard_normal(shape, dtype=np.float32)


def channels_last(tensor):
    """(N, C, H, W) torch → (N, H, W, C) NumPy"""
    return tensor.detach().permute(0, 2, 3, 1).contiguous().numpy()


def channels_first(array):
    """(N, H, W, C) NumPy → (N, C, H, W) torch"""
    return torch.from_numpy(np.ascontiguousarray(array)).permute(0, 3, 1, 2)


def relative_error(found, expected):
    """Largest error over largest value."""
    expected = np.asarray(expected)
    assert found.shape == expected.shape, (found.shape, expected.shape)
    return float(np.abs(found - expected).max() / np.abs(expected).max())
