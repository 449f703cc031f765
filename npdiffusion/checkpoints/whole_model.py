"""A complete model, opened: its family, its parts with the tensors that belong into them, its noise schedule.

    folder (diffusers layout)     a folder for each part with config.json and weights; scheduler/; model_index.json
    one .safetensors file         all weights, each part's under a prefix, see original_names.py

Only settings and tables of contents are read.
"""
from typing import NamedTuple

from npdiffusion.checkpoints import autoencoders, families, safetensors_file
from npdiffusion.checkpoints.families import Family
from npdiffusion.checkpoints.part import Part
from npdiffusion.checkpoints.text_files import read_json
from npdiffusion.diffusion.schedules import NoiseSchedule
from npdiffusion.errors import UserError
from npdiffusion.models import parameters
from npdiffusion.models.configs import Reader, UNetConfig, VAEConfig


class WholeModel(NamedTuple):
    """family: its row      parts: {name: Part}      guidance_scale: what its makers advise, or None"""
    family: Family
    parts: dict
    schedule: NoiseSchedule
    guidance_scale: float | None = None


def open_model(path, vae=None):
    """A folder or a file → WholeModel; vae: an autoencoder in place of its own, see autoencoders.py

    UserError if it is another family, or its parts don't fit together.
    """
    return open_folder(path, vae) if path.is_dir() else open_file(path, vae)


def open_folder(folder, vae=None):
    """As `open_model`, of a folder."""
    index = folder / "model_index.json"
    index_settings = read_json(index) if index.exists() else {}
    family = families.of_folder(index_settings.get("_class_name"), folder)
    needed = [name for name in (*family.parts, "tokenizer", "scheduler") if not (name == "vae" and vae is not None)]
    missing = [name for name in needed if not (folder / name).is_dir()]
    if missing:
        hint = ""
        files = sorted(path.name for path in folder.glob("*.safetensors"))
        if (folder / "config.json").exists():
            hint = "; it looks like one part of a model, so try the folder above it"
        elif files:
            hint = f"; to load a single file, name it: {folder / files[0]}"
        raise UserError(f"{folder}: not a model in diffusers layout, it has no {'/, '.join(missing)}/{hint}")
    settings = {name: read_json(folder / name / "config.json") for name in family.parts if (folder / name).is_dir()}
    check_family(settings, folder)
    source = folder / "scheduler" / "scheduler_config.json"
    schedule = NoiseSchedule.from_config(read_json(source), source, index_settings.get("_class_name"))
    configs = {name: row.config.from_dict(settings[name], folder / name / "config.json", row.only)
               for name, row in family.parts.items() if row.config is not VAEConfig}
    own = None if "vae" not in settings else autoencoders.in_folder(folder / "vae")
    parts = {"vae": own if vae is None else replacement(vae, own)}
    check_widths(family, configs | {"vae": parts["vae"].model.config}, folder)
    for name, config in configs.items():
        row = family.parts[name]
        tensors, source = safetensors_file.read_folder(folder / name, row.stem)
        tensors = {key: tensor for key, tensor in tensors.items() if not key.endswith(".position_ids")}
        older = any(key.startswith("text_model.") for key in tensors)          # how text encoders were saved at first
        parts[name] = Part.match(row.model(config), tensors, source, "text_model.{}".format if older else str)
    read = Reader(index_settings, index)      # "guidance_scale" is a key of our own: diffusers mentions that it ignores it
    advised = read.number("guidance_scale", None) if "guidance_scale" in read.settings else None
    return WholeModel(family, parts, schedule, advised)


def open_file(path, vae=None):
    """As `open_model`, of a single file: its sizes are those of its tensors."""
    everything = safetensors_file.read_file(path)
    family, tensors = by_part(everything, path)
    settings = sizes(family, tensors, path)
    check_family(settings, path)
    rows = {name: row.spelled(tensors[name]) for name, row in family.parts.items()}
    configs = {name: row.config.from_dict(settings[name], path, row.only) for name, row in rows.items()}
    check_widths(family, configs, path)
    parts = {name: Part.match(row.model(configs[name]), tensors[name], path, row.name(configs[name], tensors[name], row.prefix))
             for name, row in rows.items()}
    if vae is not None:
        parts["vae"] = replacement(vae, parts["vae"])
    return WholeModel(family, parts, NoiseSchedule.from_config(scheduler(family, everything)))


def scheduler(family, names):
    """scheduler_config.json of a single file, which holds none; names: of all its tensors"""
    marked = [settings for mark, settings in family.marks.items() if mark in names]
    return family.scheduler | {field: value for settings in marked for field, value in settings.items()}


def by_part(tensors, source):
    """The tensors of a single file → its family, {part: {name in the file: tensor}}; UserError if it is no whole model"""
    family = families.of_names(tensors, source)
    tensors = {name: tensor for name, tensor in tensors.items()
               if name not in family.marks and not family.ignored.fullmatch(name)}
    rows = {part: row.spelled(tensors) for part, row in family.parts.items()}
    parts = {part: {name: tensor for name, tensor in tensors.items() if name.startswith(row.prefix)}
             for part, row in rows.items()}
    others = tensors.keys() - {name for found in parts.values() for name in found}
    if others:
        raise UserError(f"{source}: {len(others)} tensors that a {family.name} checkpoint doesn't have: "
                        f"{parameters.some(others)}")
    return family, {part: row.arrange(parts[part]) for part, row in rows.items()}


def sizes(family, parts, source):
    """{part: settings as in a config.json} of a single file, from the shapes in what `by_part` gives"""
    try:
        rows = {name: row.spelled(parts[name]) for name, row in family.parts.items()}
        return {name: row.sizes({tensor.removeprefix(row.prefix): found.shape for tensor, found in parts[name].items()})
                for name, row in rows.items()}
    except (KeyError, IndexError, ValueError) as error:
        raise UserError(f"{source}: its layers are not those of {family.name} (at {error})") from None


def replacement(path_or_id, own):
    """An autoencoder to take the place of a model's own → Part; UserError unless its latents are of that kind

    own: None if the model has none
    """
    new = autoencoders.open_autoencoder(path_or_id)
    for what, setting in ("channels in its latents", "latent_channels"), ("pixels to a latent pixel", "reduction"):
        wanted, found = (getattr(each.model.config, setting) for each in (own or new, new))
        if found != wanted:
            raise UserError(f"{path_or_id}: this VAE has {found} {what}, the model's own {wanted}: "
                            "it is of another family")
    return new


def check_family(settings, source):
    """UserError if the sizes are those of a relative; settings: {part: config.json}"""
    unet, vae = settings["unet"], settings.get("vae", {})
    families.check_sizes(unet.get("cross_attention_dim"), unet.get("use_linear_projection"),
                         unet.get("in_channels", UNetConfig.in_channels),
                         vae.get("latent_channels", VAEConfig.latent_channels), source)


def check_widths(family, configs, source):
    """UserError unless the parts fit together; configs: {part: its configuration}"""
    context = sum(configs[name].hidden_size for name in family.text_encoders)
    for what, found, other, wanted in (
            ("the UNet's context", configs["unet"].cross_attention_dim, "the text encoder", context),
            ("the UNet's output", configs["unet"].out_channels, "the VAE", configs["vae"].latent_channels)):
        if found != wanted:
            raise UserError(f"{source}: its parts don't fit together: {what} is {found} wide, but {other} has {wanted}")
