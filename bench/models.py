"""The models of Stable Diffusion v1 with random weights, made by diffusers from a seed, and the same weights here.

Time does not depend on the values of weights, so nothing has to be downloaded; sizes come from our configurations.
"""
import json
import pathlib

import numpy as np

from npdiffusion.models import configs, parameters, unet, vae
from npdiffusion.text.tokenizer import byte_alphabet

SCHEDULER = dict(beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012, skip_prk_steps=True, steps_offset=1)


def torch_unet(sizes=configs.UNetConfig(), seed=0):
    """diffusers' UNet of these sizes"""
    import diffusers
    import torch
    torch.manual_seed(seed)
    attending = ["CrossAttn" if attends else "" for attends in sizes.cross_attention]
    return diffusers.UNet2DConditionModel(
        sample_size=sizes.sample_size, in_channels=sizes.in_channels, out_channels=sizes.out_channels,
        block_out_channels=sizes.block_out_channels, layers_per_block=sizes.layers_per_block,
        cross_attention_dim=sizes.cross_attention_dim, attention_head_dim=sizes.heads,
        norm_num_groups=sizes.norm_num_groups, down_block_types=tuple(f"{kind}DownBlock2D" for kind in attending),
        up_block_types=tuple(f"{kind}UpBlock2D" for kind in reversed(attending))).eval().requires_grad_(False)


def torch_vae(sizes=configs.VAEConfig(), seed=0):
    """diffusers' autoencoder of these sizes"""
    import diffusers
    import torch
    torch.manual_seed(seed)
    levels = len(sizes.block_out_channels)
    return diffusers.AutoencoderKL(
        sample_size=sizes.sample_size, latent_channels=sizes.latent_channels,
        block_out_channels=sizes.block_out_channels, layers_per_block=sizes.layers_per_block,
        norm_num_groups=sizes.norm_num_groups, down_block_types=("DownEncoderBlock2D",) * levels,
        up_block_types=("UpDecoderBlock2D",) * levels).eval().requires_grad_(False)


class _Tensor:
    """A torch tensor as `parameters.load` takes it."""
    def __init__(self, tensor):
        self.tensor, self.shape = tensor, tuple(tensor.shape)

    def __call__(self):
        return self.tensor.numpy().copy()


def ours(theirs, sizes, dtype="float32"):
    """Our model with the weights of a torch model, which is not kept."""
    make = unet.UNet2DConditionModel if isinstance(sizes, configs.UNetConfig) else vae.AutoencoderKL
    model = make(sizes)
    tensors = {name: _Tensor(tensor) for name, tensor in theirs.state_dict().items()}
    parameters.load(model, tensors, type(theirs).__name__, dtype=dtype)
    return model


def write_folder(folder, unet_sizes=configs.UNetConfig(), vae_sizes=configs.VAEConfig(),
                 text_sizes=configs.CLIPTextConfig()):
    """A complete model in diffusers layout, weights in float16; returns the folder."""
    import diffusers
    import torch
    import transformers
    folder = pathlib.Path(folder)
    end = text_sizes.vocab_size - 1
    text_encoder = transformers.CLIPTextModel(transformers.CLIPTextConfig(
        vocab_size=text_sizes.vocab_size, hidden_size=text_sizes.hidden_size,
        intermediate_size=text_sizes.intermediate_size, num_hidden_layers=text_sizes.num_hidden_layers,
        num_attention_heads=text_sizes.num_attention_heads,
        bos_token_id=end - 1, eos_token_id=end, pad_token_id=end))
    _write_tokenizer(folder / "words", text_sizes.vocab_size)
    diffusers.StableDiffusionPipeline(
        vae=torch_vae(vae_sizes), unet=torch_unet(unet_sizes), text_encoder=text_encoder,
        tokenizer=transformers.CLIPTokenizer.from_pretrained(folder / "words"),
        scheduler=diffusers.PNDMScheduler(**SCHEDULER), safety_checker=None, feature_extractor=None,
        requires_safety_checker=False).to(torch.float16).save_pretrained(folder)
    for path in (folder / "words").iterdir():            # vocab.json and merges.txt: new versions write another file
        path.replace(folder / "tokenizer" / path.name)
    (folder / "words").rmdir()
    return folder


def _write_tokenizer(folder, pieces):
    """A vocabulary of that many pieces: all bytes, all bytes that end a word, as many pairs of bytes as are wanted."""
    letters = byte_alphabet()
    letters = [*letters, *(letter + "</w>" for letter in letters)]
    pairs = [(first, second) for second in letters for first in letters if not first.endswith("</w>")]
    merges = pairs[:pieces - len(letters) - 2]
    vocabulary = [*letters, *(first + second for first, second in merges), "<|startoftext|>", "<|endoftext|>"]
    folder.mkdir(parents=True)
    (folder / "vocab.json").write_text(json.dumps({piece: i for i, piece in enumerate(vocabulary)}), encoding="utf-8")
    (folder / "merges.txt").write_text("\n".join(["#version: 0.2", *map(" ".join, merges)]) + "\n", encoding="utf-8")
    (folder / "tokenizer_config.json").write_text(json.dumps({"model_max_length": 77}))


def normal(*shape):
    """The same normal numbers for every system."""
    return np.random.default_rng(0).standard_normal(shape, dtype=np.float32)
