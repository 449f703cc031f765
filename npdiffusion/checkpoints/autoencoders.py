"""An autoencoder by itself, in place of a model's own. Its tensors show which kind it is and how they are named.

    Stable Diffusion's, diffusers     encoder.down_blocks.0.resnets.0.…     a folder with config.json, or a file
    the same, original names          encoder.down.0.block.0.…              also with first_stage_model. before them
    TAESD, diffusers                  encoder.layers.1.conv.0.…
    TAESD, original names             1.conv.0.…    taesd_encoder.safetensors and taesd_decoder.safetensors, a
                                                    torch.nn.Sequential each; the decoder counts a clamp as layer 0

A file may be named, or a folder that has such files (or a vae/ with them), or a Hugging Face id. Files without a
config.json beside them tell their sizes by the shapes of tensors; what shapes don't tell is as in v1.
"""
import os
import pathlib

from npdiffusion.checkpoints import files, hub, leftovers, original_names, safetensors_file
from npdiffusion.checkpoints.families import FAMILIES
from npdiffusion.checkpoints.part import Part
from npdiffusion.checkpoints.text_files import read_json
from npdiffusion.errors import UserError
from npdiffusion.models import parameters
from npdiffusion.models.configs import TinyVAEConfig, VAEConfig
from npdiffusion.models.taesd import AutoencoderTiny
from npdiffusion.models.vae import AutoencoderKL

TAESD_FILES = {"encoder": "taesd_encoder.safetensors", "decoder": "taesd_decoder.safetensors"}
VAE = FAMILIES[0].parts["vae"]        # every family has the same kind
STEM, ORIGINAL_PREFIX = VAE.stem, VAE.prefix
OLD_ATTENTION = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}   # in diffusers' first year


def open_autoencoder(path_or_id):
    """The autoencoder of a file, a folder or a Hugging Face id, see above → Part. UserError if there is none."""
    path = pathlib.Path(os.path.expanduser(path_or_id))
    if not path.exists():
        if not (isinstance(path_or_id, str) and hub.ID.fullmatch(path_or_id)) or path.suffix == ".safetensors":
            raise UserError(f"{path_or_id}: no such file or folder (a VAE was expected)")
        path = hub.fetch_autoencoder(path_or_id)
    if path.is_dir():
        path = path / "vae" if (path / "vae" / "config.json").is_file() else path
        if not (path / "config.json").is_file():
            there = [path / name for name in TAESD_FILES.values() if (path / name).is_file()]
            if not there:
                raise UserError(f"{path}: no VAE in this folder, neither config.json nor "
                                f"{' and '.join(TAESD_FILES.values())}")
            path = there[-1]
    part = in_folder(path) if path.is_dir() else in_file(path)
    leftovers.note(part.source, part.left_out, len(part.tensors) + len(part.left_out))
    return part


def in_folder(folder):
    """That of a folder in diffusers layout → Part"""
    config = config_of(folder)
    tensors, file = safetensors_file.read_folder(folder, STEM)
    if isinstance(config, TinyVAEConfig):
        return Part.match(AutoencoderTiny(config), tensors, file)
    return Part.match(AutoencoderKL(config), tensors, file, diffusers_name(tensors))


def config_of(folder):
    """That in a folder's config.json → VAEConfig or TinyVAEConfig"""
    source = folder / "config.json"
    settings = read_json(source)
    kind = TinyVAEConfig if settings.get("_class_name") == "AutoencoderTiny" else VAEConfig
    return kind.from_dict(settings, source)


def has_config(path):
    """Whether a file of weights has a config.json beside it, as in diffusers layout"""
    return (path.parent / "config.json").is_file() and path.name.startswith(STEM)


def in_file(path):
    """That of one file, or of TAESD's two → Part"""
    if has_config(path):
        return in_folder(path.parent)
    tensors = {name: tensor for name, tensor in files.read_tensors(path).items()
               if not leftovers.LEFTOVERS.fullmatch(name)}
    whole = {name: tensor for name, tensor in tensors.items() if name.startswith(ORIGINAL_PREFIX)}
    tensors = whole or tensors                                                  # of a complete model, its VAE
    shapes = {name.removeprefix(ORIGINAL_PREFIX): tuple(tensor.shape) for name, tensor in tensors.items()}
    try:
        if "encoder.down.0.block.0.conv1.weight" in shapes:
            config = VAEConfig.from_dict(original_names.vae_settings(shapes), path)
            prefix = ORIGINAL_PREFIX if whole else ""
            return Part.match(AutoencoderKL(config), tensors, path, original_names.vae_name(config, prefix, tensors))
        if "encoder.down_blocks.0.resnets.0.conv1.weight" in shapes:
            config = VAEConfig.from_dict(settings_of(shapes), path)
            return Part.match(AutoencoderKL(config), tensors, path, diffusers_name(tensors))
        if any(name.startswith("decoder.layers.") for name in shapes):
            return taesd(tensors, path)
        if "1.conv.0.weight" in shapes or "3.conv.0.weight" in shapes:
            return taesd(both_files(path, tensors), path)
    except UserError:
        raise
    except (KeyError, IndexError, ValueError) as error:
        raise UserError(f"{path}: its layers are not those of a known VAE (at {error})") from None
    raise UserError(f"{path}: not a VAE; its tensors are {parameters.some(shapes)}")


def diffusers_name(names):
    """From a parameter's name to that in a VAE in diffusers layout: the same, or in the first ones `query` and the like."""
    if not any(name.endswith(".proj_attn.weight") for name in names):
        return str

    def old(name):
        if ".attentions." in name:
            for new, previous in OLD_ATTENTION.items():
                name = name.replace(f".{new}.", f".{previous}.")
        return name
    return old


def settings_of(shape):
    """config.json of an autoencoder in diffusers' names, from {name: shape}"""
    levels = original_names.count(shape, "encoder.down_blocks.{}.resnets.0.conv1.weight")
    return {"block_out_channels": [shape[f"encoder.down_blocks.{i}.resnets.0.conv1.weight"][0] for i in range(levels)],
            "layers_per_block": original_names.count(shape, "encoder.down_blocks.0.resnets.{}.conv1.weight"),
            "latent_channels": shape["decoder.conv_in.weight"][1]}


def both_files(path, tensors):
    """{diffusers' name: tensor} of TAESD's original files, of which `path` is one; the encoder may be missing."""
    found = {}
    for part, other in ("encoder", "decoder"), ("decoder", "encoder"):
        beside = path.with_name(path.name.replace(other, part))
        if side(tensors) == part:
            found[part] = tensors
        elif beside != path and beside.is_file():
            found[part] = files.read_tensors(beside)
            if side(found[part]) != part:
                raise UserError(f"{beside}: not the {part} of TAESD")
    if "decoder" not in found:
        raise UserError(f"{path}: the encoder of TAESD alone; {TAESD_FILES['decoder']} is needed beside it")
    shift = {"encoder": 0, "decoder": 1}                                        # of layer numbers: the clamp
    return {f"{part}.layers.{int(number) - shift[part]}.{rest}": tensor for part, names in found.items()
            for name, tensor in names.items() for number, _, rest in [name.partition(".")]}


def side(names):
    """"encoder" or "decoder", of which original TAESD file these are the names."""
    return "encoder" if "0.weight" in names else "decoder"


def taesd(tensors, source):
    """TAESD, of tensors in diffusers' names → Part; a plain convolution begins each stage."""
    shape = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    has_encoder = "encoder.layers.0.weight" in shape
    counts = {part: blocks_of(shape, part) for part in (("encoder", "decoder") if has_encoder else ("decoder",))}
    decoder_blocks = counts["decoder"]
    config = TinyVAEConfig.from_dict(
        {"latent_channels": shape["decoder.layers.0.weight"][1],
         "encoder_block_out_channels": [shape["decoder.layers.0.weight"][0]] * len(decoder_blocks),
         "decoder_block_out_channels": [shape["decoder.layers.0.weight"][0]] * len(decoder_blocks),
         "num_encoder_blocks": counts.get("encoder", decoder_blocks), "num_decoder_blocks": decoder_blocks}, source)
    return Part.match(AutoencoderTiny(config, has_encoder), tensors, source)


def blocks_of(shape, part):
    """Numbers of blocks at each stage: blocks follow each other up to the next plain convolution."""
    layers = sorted({int(name.split(".")[2]) for name in shape if name.startswith(f"{part}.layers.")})
    counts = [0]
    for i in layers[1:-1]:
        if f"{part}.layers.{i}.conv.0.weight" in shape:
            counts[-1] += 1
        elif f"{part}.layers.{i}.weight" in shape:
            counts.append(0)
    return counts
