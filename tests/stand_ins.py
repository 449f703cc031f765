"""Tiny random weights of each kind that the documentation names, made without any other library.

A picture of these models is noise, but every file is of its kind: names, shapes and settings are those that are looked at.
"""
import json
import shutil
from dataclasses import asdict, replace

import numpy as np
from safetensors.numpy import save_file

from bench import models
from bench.models import write_json
from npdiffusion.checkpoints import families
from npdiffusion.models import parameters
from npdiffusion.models.clip_vision import CLIPVisionConfig, CLIPVisionModelWithProjection
from npdiffusion.models.configs import CLIPTextConfig, TinyVAEConfig, UNetConfig, VAEConfig
from npdiffusion.models.controlnet import ControlNetModel
from npdiffusion.models.ip_adapter import ImageProjection, IPAdapter, cross_attentions
from npdiffusion.models.t2i_adapter import T2IAdapter
from npdiffusion.models.taesd import AutoencoderTiny
from npdiffusion.models.unet import UNet2DConditionModel

UNET = dict(block_out_channels=(32, 64), cross_attention=(True, False), heads=(8, 8), layers_per_block=1,
            cross_attention_dim=64, sample_size=8)
VAE = VAEConfig(block_out_channels=(32,) * 4, layers_per_block=1, sample_size=64)
TEXT = CLIPTextConfig(vocab_size=600, hidden_size=64, intermediate_size=96, num_hidden_layers=2, num_attention_heads=1)
PARTS = {"unet": UNetConfig(**UNET), "vae": VAE, "text_encoder": TEXT}
EULER = {"_class_name": "EulerDiscreteScheduler", "beta_schedule": "scaled_linear", "beta_start": 0.00085,
         "beta_end": 0.012, "timestep_spacing": "leading", "steps_offset": 1}
SIZED = dict(added_width=48 + 6 * 8, size_width=8)      # XL's UNet: a pooled vector and six sizes
TURBO = {"_class_name": "EulerDiscreteScheduler", "timestep_spacing": "trailing", "prediction_type": "epsilon"}


def random(*shape):
    return np.random.default_rng(0).standard_normal(shape, dtype=np.float32)


def folder(path, scheduler=None, **sizes):
    """A model in diffusers layout; scheduler: settings besides Stable Diffusion v1's"""
    models.write_folder(path, UNetConfig(**UNET | sizes), VAE, TEXT)
    settings = path / "scheduler" / "scheduler_config.json"
    settings.write_text(json.dumps(json.loads(settings.read_text()) | (scheduler or {})))
    return path


def relative(path, name, cls, scheduler, **sizes):
    """A folder of another family than v1, by its name; cls: of the pipeline; sizes: of the UNet"""
    row = next(family for family in families.FAMILIES if family.name == name)
    width = TEXT.hidden_size * len(row.text_encoders)
    unet = UNetConfig(**UNET | dict(linear_projection=True, heads=(4, 8), cross_attention_dim=width) | sizes)
    for part, model in row.parts.items():
        config = {"unet": unet, "vae": VAE}.get(part, replace(TEXT, projection_dim=48))
        write_json(path / part / "config.json", models.config(config))
        tensors = {key: tensor().astype(np.float16) for key, tensor in models.tensors(model.model(config)).items()}
        save_file(tensors, path / part / f"{model.stem}.safetensors")
        if part in row.text_encoders:
            models.write_tokenizer(path / families.tokenizer_of(part), TEXT.vocab_size)
    write_json(path / "scheduler" / "scheduler_config.json", EULER | scheduler)
    write_json(path / "model_index.json", {"_class_name": cls})


def controlnet(path):
    """A ControlNet for the model in `folder`, in diffusers layout"""
    write_json(path / "config.json", models.config(UNetConfig(**UNET)))
    tensors = models.tensors(ControlNetModel(UNetConfig(**UNET)))
    save_file({key: tensor().astype(np.float16) for key, tensor in tensors.items()},
              path / "diffusion_pytorch_model.safetensors")


def ip_adapter(path):
    """An IP-Adapter for the model in `folder`, and image_encoder/ beside it"""
    vision = CLIPVisionConfig(64, 96, 2, 2, image_size=28, projection_dim=32)
    unet = UNet2DConditionModel(UNetConfig(**UNET))
    channels = [each.to_k.weight.shape[0] for each in cross_attentions(unet)]
    adapter = IPAdapter(ImageProjection(32, 4, TEXT.hidden_size), TEXT.hidden_size, channels)
    save_file({key: tensor() for key, tensor in models.tensors(adapter).items()}, path)
    write_json(path.parent / "image_encoder" / "config.json", asdict(vision))
    tensors = models.tensors(CLIPVisionModelWithProjection(vision))
    save_file({key: tensor() for key, tensor in tensors.items()}, path.parent / "image_encoder" / "model.safetensors")


def t2i_adapter(path):
    """A T2I-Adapter for the model in `folder`, in diffusers layout"""
    adapter = T2IAdapter(8, 3, UNET["block_out_channels"], UNET["block_out_channels"], 2, (False, True))
    write_json(path / "config.json", {"_class_name": "T2IAdapter", "adapter_type": "full_adapter", "downscale_factor": 8})
    save_file({key: tensor() for key, tensor in models.tensors(adapter).items()}, path / "diffusion_pytorch_model.safetensors")


def single_file(path):
    """A model in one file, in the original names."""
    tensors = {}
    for part, sizes in PARTS.items():
        row = families.FAMILIES[0].parts[part]
        spell = row.name(sizes, [f"{row.prefix}text_model."], row.prefix)
        for name, tensor in models.tensors(models.MODELS[type(sizes)](sizes)).items():
            tensors[spell(name)] = tensor().astype(np.float16)
    save_file(tensors, path)


def autoencoder(path):
    """The autoencoder alone, in diffusers' names."""
    save_file({name: tensor() for name, tensor in models.tensors(models.MODELS[VAEConfig](VAE)).items()}, path)


def taesd(path):
    """Both files of TAESD; `path` is the decoder's."""
    shapes = parameters.shapes(AutoencoderTiny(TinyVAEConfig()))
    for part, first in (("encoder", 0), ("decoder", 1)):
        found = {name.removeprefix(f"{part}.layers."): shape for name, shape in shapes.items() if name.startswith(part)}
        tensors = {}
        for name, shape in found.items():
            number, _, rest = name.partition(".")
            tensors[f"{int(number) + first}.{rest}"] = models.RandomTensor(name, shape)()
        save_file(tensors, path.with_name(f"taesd_{part}.safetensors"))


def lora(path):
    """For one layer of the UNet, in kohya's names."""
    name = "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn2_to_k"
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file({f"{name}.lora_down.weight": random(4, 64), f"{name}.lora_up.weight": random(32, 4),
               f"{name}.alpha": np.array(4, np.float32)}, path)


def learnt_word(path):
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file({"emb_params": random(2, 64)}, path)


def in_cache(home, name, source):
    """A repository in Hugging Face's cache."""
    repository = home / ".cache/huggingface/hub" / f"models--{name.replace('/', '--')}"
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "main").write_text("0")
    shutil.copytree(source, repository / "snapshots" / "0")


def write(home):
    """All of them: ~/models, and two models in Hugging Face's cache."""
    there = home / "models"
    v1 = folder(there / "stable-diffusion-v1-5")
    folder(there / "turbo", TURBO)
    folder(there / "LCM_Dreamshaper_v7", {"_class_name": "LCMScheduler"}, time_cond_proj_dim=16)
    relative(there / "stable-diffusion-2-1", families.V2, "StableDiffusionPipeline", {"prediction_type": "v_prediction"})
    relative(there / "sd-turbo", families.V2, "StableDiffusionPipeline", TURBO)
    relative(there / "sdxl", families.XL, "StableDiffusionXLPipeline", {}, **SIZED)
    relative(there / "sdxl-refiner", families.REFINER, "StableDiffusionXLImg2ImgPipeline", {}, added_width=48 + 5 * 8,
             size_width=8)
    relative(there / "sdxl-turbo", families.XL, "StableDiffusionXLPipeline", TURBO, **SIZED)
    for name in "sdxl_lightning_4step", "dmd2_sdxl_4step":
        shutil.copy(there / "sdxl-turbo" / "unet" / "diffusion_pytorch_model.safetensors", there / f"{name}_unet.safetensors")
    controlnet(there / "control-canny")
    shutil.copy(there / "control-canny" / "diffusion_pytorch_model.safetensors", there / "control-scribble.safetensors")
    ip_adapter(there / "ip-adapter_sd15.safetensors")
    t2i_adapter(there / "t2i-sketch")
    (there / "anime").mkdir()
    for name in "v1-5-pruned-emaonly", "anime/dream", "turbo":
        single_file(there / f"{name}.safetensors")
        shutil.copytree(v1 / "tokenizer", (there / name).parent / "tokenizer", dirs_exist_ok=True)
    autoencoder(there / "vae-ft-mse-840000-ema-pruned.safetensors")
    taesd(there / "taesd_decoder.safetensors")
    for name in "ink", "styles/oil", "lcm-lora-sdv1-5":
        lora(there / "loras" / f"{name}.safetensors")
    for name in "zigzag", "bad-hands", "cat-toy":
        learnt_word(there / "embeddings" / f"{name}.safetensors")
    in_cache(home, "stable-diffusion-v1-5/stable-diffusion-v1-5", v1)
    in_cache(home, "stabilityai/sd-vae-ft-mse", v1 / "vae")
