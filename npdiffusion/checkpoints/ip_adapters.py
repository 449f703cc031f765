"""An IP-Adapter and the image encoder that it reads: a safetensors file each, the encoder usually in a folder.

    image_proj.…            three kinds, told by their tensors         ip_adapter.1.to_k_ip.weight, …
    vision_model.…, visual_projection.weight                           as transformers calls them, with config.json or without

The encoder is the one that is named, or image_encoder/ beside the adapter, beside its folder, or in the model's folder.
"""
import os
import pathlib
from typing import Any

from npdiffusion.checkpoints import families, files, original_names, safetensors_file
from npdiffusion.checkpoints.part import Part
from npdiffusion.checkpoints.text_files import read_json
from npdiffusion.errors import UserError
from npdiffusion.models.clip_vision import CLIPVisionConfig, CLIPVisionModelWithProjection
from npdiffusion.models.configs import LARGEST
from npdiffusion.models.ip_adapter import (
    FullImageProjection,
    ImageProjection,
    IPAdapter,
    Projection,
    Resampler,
    cross_attentions,
)
from npdiffusion.models.unet import UNet2DConditionModel

ENCODER, STEM = "image_encoder", "model"
FACE_ID = ("to_k_lora.", "to_q_lora.", "perceiver_resampler.")


def open_ip_adapters(paths: Any, encoder: Any, unet: UNet2DConditionModel, family: families.Family,
                     model: Any = None) -> dict[str, Part]:
    """One IP-Adapter's path, or several, and the image encoder that all of them read → {"ip_adapter 0": Part, …,
    "image_encoder": Part}; arguments as of `open_ip_adapter` and `find_encoder`. UserError if they don't fit"""
    paths = [paths] if isinstance(paths, (str, os.PathLike)) else [*paths]
    found = {f"ip_adapter {number}": open_ip_adapter(path, unet, family) for number, path in enumerate(paths)}
    place = find_encoder(encoder, paths[0], model)
    return found | {"image_encoder": open_encoder(place, *(part.model.image_proj for part in found.values()))}


def open_ip_adapter(path: Any, unet: UNet2DConditionModel, family: families.Family) -> Part:
    """An IP-Adapter for a UNet → checkpoints.part.Part; UserError if it is none, or for another family"""
    path = pathlib.Path(os.path.expanduser(path))
    if not path.is_file():
        raise UserError(f"{path}: no such file (an IP-Adapter was expected)")
    tensors = files.read_tensors(path)
    shape = {name: tensor.shape for name, tensor in tensors.items()}
    if any(part in name for name in shape for part in FACE_ID):
        raise UserError(f"{path}: an IP-Adapter of the kind FaceID, which reads another network's faces, isn't here")
    keys = [shape[f"ip_adapter.{number}.to_k_ip.weight"][-1:] for number in range(1, 2 * len(shape), 2)
            if f"ip_adapter.{number}.to_k_ip.weight" in shape]
    if not keys or not keys[0] or not any(name.startswith("image_proj.") for name in shape):
        raise UserError(f"{path}: not an IP-Adapter: it has no image_proj.… and ip_adapter.1.to_k_ip.weight")
    width, wanted = keys[0][0], unet.config.cross_attention_dim
    if width != wanted:
        raise UserError(f"{path}: this IP-Adapter is for {families.WIDTHS.get(width, 'another model')} (its context is {width} "
                        f"wide), but the model is of another family, {family.name} ({wanted})")
    channels = [attention.to_k.weight.shape[0] for attention in cross_attentions(unet)]
    if len(keys) != len(channels):
        raise UserError(f"{path}: this IP-Adapter is for a UNet of {len(keys)} cross-attentions, {family.name}'s has "
                        f"{len(channels)}")
    try:
        projection = image_projection({name.removeprefix("image_proj."): found for name, found in shape.items()}, width)
    except (KeyError, IndexError, ValueError) as error:
        raise UserError(f"{path}: its image_proj is of no kind that is known (at {error})") from None
    return Part.match(IPAdapter(projection, width, channels), tensors, path)


def image_projection(shape: dict[str, Any], width: int) -> Projection:
    """The empty projection of these tensors, {name: shape}"""
    if "latents" in shape:
        channels, states = shape["proj_in.weight"]
        inner, tokens = shape["layers.0.0.to_q.weight"][0], shape["latents"][1]
        layers = original_names.count(shape, "layers.{}.0.to_q.weight")
        check_sizes(channels, states, inner, tokens, layers)
        return Resampler(states, channels, inner, tokens, layers, width)
    if "proj.3.weight" in shape:
        inner = shape["proj.0.weight"][0]
        check_sizes(inner)
        return FullImageProjection(inner, width)
    outputs, embedding = shape["proj.weight"]
    check_sizes(embedding, outputs // width)
    return ImageProjection(embedding, outputs // width, width)


def check_sizes(*sizes: int) -> None:
    """ValueError if one is no number of channels: a model of such sizes would be allocated"""
    if not all(1 <= size <= LARGEST["channels"] for size in sizes):
        raise ValueError(f"sizes {sizes}")


def find_encoder(given: Any, adapter: Any, model: Any) -> pathlib.Path:
    """The folder or file of the image encoder: the one that is given, or one beside the adapter or in the model's folder"""
    if given is not None:
        return pathlib.Path(os.path.expanduser(given))
    adapter = pathlib.Path(os.path.expanduser(adapter)).parent
    places = [adapter / ENCODER, adapter.parent / ENCODER, *([pathlib.Path(model) / ENCODER] if model else [])]
    found = next((place for place in places if place.is_dir()), None)
    if found is None:
        raise UserError(f"{adapter}: no {ENCODER}/ there: name CLIP's image encoder that the IP-Adapter reads (--ip-encoder, "
                        "in Python image_encoder)")
    return found


def open_encoder(path: pathlib.Path, *projections: Projection) -> Part:
    """CLIP's image encoder → checkpoints.part.Part; UserError if it is none, or not the one that projections read"""
    if not path.exists():
        raise UserError(f"{path}: no such file or folder (an image encoder was expected)")
    tensors, source = safetensors_file.read_folder(path, STEM) if path.is_dir() else (files.read_tensors(path), path)
    shape = {name: tensor.shape for name, tensor in tensors.items()}
    beside = (path if path.is_dir() else path.parent) / "config.json"
    try:
        settings = read_json(beside) if beside.is_file() else settings_of(shape)
    except (KeyError, IndexError, ValueError) as error:
        raise UserError(f"{path}: not CLIP's image encoder (at {error})") from None
    config = CLIPVisionConfig.from_dict(settings.get("vision_config", settings), beside if beside.is_file() else path)
    part = Part.match(CLIPVisionModelWithProjection(config), tensors, source)
    for projection in projections:
        reads = projection.proj_in if isinstance(projection, Resampler) else (
            projection.proj[0] if isinstance(projection, FullImageProjection) else projection.proj)
        wanted, found = reads.weight.shape[1], config.hidden_size if projection.of_states else config.projection_dim
        if wanted != found:
            raise UserError(f"{path}: this image encoder gives {found} numbers, the IP-Adapter reads {wanted}: ViT-H gives "
                            "1280 (1024 projected), bigG 1664 (1280)")
    return part


def settings_of(shape: dict[str, Any]) -> dict[str, Any]:
    """Settings of an image encoder as in config.json, from {name: shape}; all published ones have 16 heads"""
    before = "vision_model.embeddings."
    width, _, patch, _ = shape[f"{before}patch_embedding.weight"]
    side = round((shape[f"{before}position_embedding.weight"][0] - 1) ** 0.5)
    return {"hidden_size": width, "patch_size": patch, "image_size": side * patch, "num_attention_heads": 16,
            "num_hidden_layers": original_names.count(shape, "vision_model.encoder.layers.{}.layer_norm1.weight"),
            "intermediate_size": shape["vision_model.encoder.layers.0.mlp.fc1.weight"][0],
            "projection_dim": shape["visual_projection.weight"][0], "hidden_act": "quick_gelu" if width == 1024 else "gelu"}
