"""A complete model, opened: its family, its parts with the tensors that belong into them, its noise schedule.

    folder (diffusers layout)     a folder for each part with config.json and weights; scheduler/; model_index.json
    one .safetensors or .gguf file    all weights, each part's under a prefix, see original_names.py

Only settings and tables of contents are read.
"""
from dataclasses import replace
from typing import NamedTuple

from npdiffusion.checkpoints import autoencoders, families, files, leftovers, safetensors_file
from npdiffusion.checkpoints.families import Family
from npdiffusion.checkpoints.part import Part
from npdiffusion.checkpoints.text_files import read_json
from npdiffusion.diffusion.schedules import NoiseSchedule
from npdiffusion.errors import UserError
from npdiffusion.models.configs import XL_FACTOR, Reader, VAEConfig


class WholeModel(NamedTuple):
    """family: its row      parts: {name: Part}      guidance_scale: what its makers advise, or None"""
    family: Family
    parts: dict
    schedule: NoiseSchedule
    guidance_scale: float | None = None


def open_model(path, vae=None, tokenizer=None):
    """A folder or a file → WholeModel; vae: an autoencoder in place of its own, see autoencoders.py

    tokenizer: one that is used in place of its own, so that it may lack it
    UserError if it is another family, or its parts don't fit together.
    """
    return open_folder(path, vae, tokenizer) if path.is_dir() else open_file(path, vae)


def open_folder(folder, vae=None, tokenizer=None):
    """As `open_model`, of a folder."""
    index = folder / "model_index.json"
    given = {"vae": vae, "tokenizer": tokenizer}
    index_settings = read_json(index) if index.exists() else {}
    unet = folder / "unet" / "config.json"
    family = families.of_folder(index_settings.get("_class_name"), folder, read_json(unet) if unet.is_file() else None,
                                [path.name for path in folder.iterdir()])
    if index_settings.get("force_zeros_for_empty_prompt") in (True, False) and family.added:
        family = replace(family, zeros=index_settings["force_zeros_for_empty_prompt"])
    first = families.tokenizer_of(family.text_encoders[0])
    needed = [name for name in (*family.parts, first, "scheduler")
              if given.get("tokenizer" if name == first else name) is None]
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
    check_family(family, settings, folder)
    source = folder / "scheduler" / "scheduler_config.json"
    schedule = NoiseSchedule.from_config(read_json(source), source, index_settings.get("_class_name"))
    configs = {name: row.config.from_dict(settings[name], folder / name / "config.json", row.only)
               for name, row in family.parts.items() if row.config is not VAEConfig}
    parts = {"vae": autoencoders.in_folder(folder / "vae") if vae is None else
             replacement(vae, autoencoders.config_of(folder / "vae") if "vae" in settings else None, family)}
    check_widths(family, configs | {"vae": parts["vae"].model.config}, folder)
    for name, config in configs.items():
        row = family.parts[name]
        tensors, source = safetensors_file.read_folder(folder / name, row.stem)
        parts[name] = Part.match(row.model(config), tensors, source, families.folder_name(tensors))
    for name, part in parts.items():
        if name != "vae" or vae is None:
            leftovers.note(part.source, part.left_out, len(part.tensors) + len(part.left_out))
    read = Reader(index_settings, index)      # "guidance_scale" is a key of our own: diffusers mentions that it ignores it
    advised = read.number("guidance_scale", None) if "guidance_scale" in read.settings else None
    return WholeModel(family, parts, schedule, advised)


def open_file(path, vae=None):
    """As `open_model`, of a single file: its sizes are those of its tensors."""
    everything = files.read_tensors(path)
    family, tensors = by_part(everything, path, () if vae is None else ("vae",))
    own = tensors.pop("vae", None) if vae is not None else None
    settings = sizes(family, tensors, path)
    for part in settings:
        settings[part] |= decided(family, everything).get(part, {})
    check_family(family, settings, path)
    rows = {name: family.parts[name].spelled(found) for name, found in tensors.items()}
    configs = {name: row.config.from_dict(settings[name], path, row.only) for name, row in rows.items()}
    parts = {} if vae is None else {"vae": replacement(vae, config_of_own_vae(family, own, path), family)}
    configs |= {name: part.model.config for name, part in parts.items()}
    check_widths(family, configs, path)
    for name, row in rows.items():
        spell = row.name(configs[name], tensors[name], row.prefix)
        parts[name] = Part.match(row.model(configs[name]), tensors[name], path, spell)
    prefixes = tuple(row.prefix for row in spellings(family, everything).values())
    others = {name for name in everything if not name.startswith(prefixes)} - family.marks.keys()
    leftovers.note(path, others.union(*(parts[name].left_out for name in rows)), len(everything))
    return WholeModel(family, parts, NoiseSchedule.from_config(scheduler(family, everything)))


def config_of_own_vae(family, tensors, source):
    """That of the autoencoder in a single file, or None if it has none, or one that can't be told; tensors: of `by_part`"""
    try:
        return VAEConfig.from_dict(sizes(family, {"vae": tensors}, source)["vae"]) if tensors else None
    except UserError:
        return None                  # half of one, perhaps: it is replaced anyway


def decided(family, tensors):
    """What the shapes in a single file don't tell, unless marks do: {"scheduler" or part: settings}; tensors: all of them"""
    return {} if family.marks.keys() & tensors.keys() else family.decide(tensors)


def scheduler(family, tensors):
    """scheduler_config.json of a single file, which holds none; tensors: all of them"""
    marked = [settings for mark, settings in family.marks.items() if mark in tensors]
    marked.append(decided(family, tensors).get("scheduler", {}))
    return family.scheduler | {field: value for settings in marked for field, value in settings.items()}


def by_part(tensors, source, given=()):
    """The tensors of a single file → its family, {part: {name in the file: tensor}}; UserError if it is no whole model

    given: parts that it may lack      Names stay as they are, but for what the family's row arranges.
    """
    family = families.of_names(tensors, source, given)
    return family, {part: row.arrange({name: tensor for name, tensor in tensors.items() if name.startswith(row.prefix)})
                    for part, row in spellings(family, tensors).items()}


def spellings(family, names):
    """{part: the row that spells it as these names of tensors do} of the parts that are there"""
    return {part: spelled for part, row in family.parts.items() if (spelled := row.spelled(names))}


def sizes(family, parts, source):
    """{part: settings as in a config.json} of a single file, from the shapes in what `by_part` gives"""
    try:
        rows = {name: family.parts[name].spelled(found) for name, found in parts.items()}
        return {name: row.sizes({tensor.removeprefix(row.prefix): found.shape for tensor, found in parts[name].items()})
                for name, row in rows.items()}
    except UserError:
        raise
    except (KeyError, IndexError, ValueError) as error:
        raise UserError(f"{source}: its layers are not those of {family.name} (at {error})") from None


def replacement(path_or_id, own, family):
    """An autoencoder to take the place of a model's own → Part; UserError unless its latents are of that kind

    own: its configuration, or None if the model has none      The latents' factor is the model's: the UNet knows no other.
    """
    new = autoencoders.open_autoencoder(path_or_id)
    for what, setting in ("channels in its latents", "latent_channels"), ("pixels to a latent pixel", "reduction"):
        wanted, found = (getattr(config, setting) for config in (own or new.model.config, new.model.config))
        if found != wanted:
            raise UserError(f"{path_or_id}: this VAE has {found} {what}, the model's own {wanted}: "
                            "it is of another family")
    if isinstance(new.model.config, VAEConfig):            # TAESD's latents have no factor
        factor = own.scaling_factor if isinstance(own, VAEConfig) else family.factor
        told = new.model.config.scaling_factor if autoencoders.has_config(new.source) else factor
        if {told, factor} == {VAEConfig.scaling_factor, XL_FACTOR}:             # shapes can't tell them apart
            names = {XL_FACTOR: families.XL, VAEConfig.scaling_factor: f"{families.V1} or 2"}
            raise UserError(f"{path_or_id}: this VAE is of {names[told]} (its config.json has the factor {told}), but the "
                            f"model is of another family, {family.name} ({factor})")
        new.model.config = replace(new.model.config, scaling_factor=factor)
    return new


def check_family(family, settings, source):
    """UserError if the sizes are those of a relative; settings: {part: config.json}"""
    latents = settings.get("vae", {}).get("latent_channels", VAEConfig.latent_channels)
    families.check_sizes(family, settings["unet"], latents, source)


def check_widths(family, configs, source):
    """UserError unless the parts fit together; configs: {part: its configuration}"""
    context = sum(configs[name].hidden_size for name in family.text_encoders)
    for what, found, other, wanted in (
            ("the UNet's context", configs["unet"].cross_attention_dim, "the text encoder", context),
            ("the UNet's output", configs["unet"].out_channels, "the VAE", configs["vae"].latent_channels)):
        if found != wanted:
            raise UserError(f"{source}: its parts don't fit together: {what} is {found} wide, but {other} has {wanted}")
