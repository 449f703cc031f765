"""The models of Stable Diffusion v1 with random weights: ours from our configurations, torch's with the same numbers.

Time does not depend on the values of weights, so nothing has to be downloaded; a weight is drawn from its name, so that
neither system has to keep it for the other. torch and diffusers are needed for their own models alone.
"""
import json
import math
import pathlib
import zlib

import numpy as np

from npdiffusion.checkpoints.config_json import config
from npdiffusion.models import clip, configs, parameters, unet, vae
from npdiffusion.text.tokenizer import byte_alphabet

MODELS = {configs.UNetConfig: unet.UNet2DConditionModel, configs.VAEConfig: vae.AutoencoderKL,
          configs.CLIPTextConfig: clip.CLIPTextModel}
SCHEDULER = dict(beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012, skip_prk_steps=True, steps_offset=1)


def torch_model(sizes):
    """diffusers' UNet or autoencoder of these sizes"""
    import diffusers
    settings = config(sizes)
    return getattr(diffusers, settings["_class_name"]).from_config(settings).eval().requires_grad_(False)


class RandomTensor:
    """A parameter as `parameters.load` takes it: norms are 1, biases 0, weights uniform with variance 1 / inputs."""
    def __init__(self, name, shape):
        self.name, self.shape = name, tuple(shape)

    def __call__(self, into=None):
        if len(self.shape) == 1:
            return np.full(self.shape, float(self.name.endswith("weight")), np.float32)
        numbers = np.random.default_rng(zlib.crc32(self.name.encode())).random(self.shape, dtype=np.float32)
        numbers -= 0.5
        numbers *= math.sqrt(12 / math.prod(self.shape[1:]))
        return numbers


def tensors(model):
    """{name: RandomTensor} of all parameters of one of our models, not yet loaded"""
    return {name: RandomTensor(name, shape) for name, shape in parameters.shapes(model).items()}


def ours(sizes, dtype="float32"):
    """Our model of these sizes"""
    model = MODELS[type(sizes)](sizes)
    parameters.load(model, tensors(model), "random weights", dtype=dtype)
    return model


def theirs(sizes):
    """torch's model of these sizes, with the weights of `ours`"""
    import torch
    made = torch_model(sizes)
    for name, tensor in tensors(MODELS[type(sizes)](sizes)).items():
        made.get_parameter(name).copy_(torch.from_numpy(tensor()))
    return made


def write_folder(folder, unet_sizes=configs.UNetConfig(), vae_sizes=configs.VAEConfig(), text_sizes=configs.CLIPTextConfig()):
    """A complete model in diffusers layout, weights in float16; returns the folder."""
    from safetensors.numpy import save_file
    folder = pathlib.Path(folder)
    for part, sizes, stem in (("unet", unet_sizes, "diffusion_pytorch_model"), ("vae", vae_sizes, "diffusion_pytorch_model"),
                              ("text_encoder", text_sizes, "model")):
        write_json(folder / part / "config.json", config(sizes))
        save_file({name: tensor().astype(np.float16) for name, tensor in tensors(MODELS[type(sizes)](sizes)).items()},
                  folder / part / f"{stem}.safetensors", {"format": "pt"})
    write_tokenizer(folder / "tokenizer", text_sizes.vocab_size)
    write_json(folder / "scheduler" / "scheduler_config.json", {"_class_name": "PNDMScheduler", **SCHEDULER})
    write_json(folder / "model_index.json", {
        "_class_name": "StableDiffusionPipeline", "requires_safety_checker": False, "safety_checker": [None, None],
        "feature_extractor": [None, None], "image_encoder": [None, None], "scheduler": ["diffusers", "PNDMScheduler"],
        "text_encoder": ["transformers", "CLIPTextModel"], "tokenizer": ["transformers", "CLIPTokenizer"],
        "unet": ["diffusers", "UNet2DConditionModel"], "vae": ["diffusers", "AutoencoderKL"]})
    return folder


def write_json(path, content):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content, indent=1), encoding="utf-8")


def write_tokenizer(folder, pieces):
    """A vocabulary of that many pieces: all bytes, all bytes that end a word, as many pairs of bytes as are wanted."""
    letters = byte_alphabet()
    letters = [*letters, *(letter + "</w>" for letter in letters)]
    pairs = [(first, second) for second in letters for first in letters if not first.endswith("</w>")]
    merges = pairs[:pieces - len(letters) - 2]
    vocabulary = [*letters, *(first + second for first, second in merges), "<|startoftext|>", "<|endoftext|>"]
    write_json(folder / "vocab.json", {piece: i for i, piece in enumerate(vocabulary)})
    (folder / "merges.txt").write_text("\n".join(["#version: 0.2", *map(" ".join, merges)]) + "\n", encoding="utf-8")
    write_json(folder / "tokenizer_config.json", {"model_max_length": 77})


def normal(*shape):
    """The same normal numbers for every system."""
    return np.random.default_rng(0).standard_normal(shape, dtype=np.float32)
