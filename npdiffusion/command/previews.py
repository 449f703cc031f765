"""Previews while a picture is made: what --preview, --preview-path, --steps-strip and --taesd ask for.

    find_previews   before the model is loaded: files that can be written, TAESD found
    start_previews  after that: the `Previews` for generate, one for all pictures, which begins anew with each
"""
import os
import pathlib

from npdiffusion.command.talk import say
from npdiffusion.errors import UserError

TAESD = "madebyollin/taesd"
OTHER_FORMATS = (".jpg", ".jpeg", ".webp", ".gif", ".bmp", ".tif", ".tiff", ".avif", ".ppm")


def find_previews(options, folder):
    """TAESD as an empty `checkpoints.part.Part`, or None where previews don't need it; UserError for what can't be had.

    The paths of the options are completed; folder: where pictures go
    """
    if options.preview is None and (options.preview_path is not None or options.steps_strip is not None):
        options.preview = "linear"
    if options.preview is None:
        return None
    from npdiffusion.checkpoints import hub
    from npdiffusion.pictures.images import check_folder
    from npdiffusion.pictures.preview import is_preview
    options.preview_path = options.preview_path or (None if options.steps_strip else str(folder / "preview.png"))
    for name in "preview_path", "steps_strip":
        path = getattr(options, name)
        if path is not None:
            setattr(options, name, check_name(f"--{name.replace('_', '-')}", pathlib.Path(path)))
            check_folder(pathlib.Path(path).parent)
    wanted = options.preview_path
    while options.preview_path is not None and os.path.lexists(options.preview_path) and not is_preview(options.preview_path):
        options.preview_path = next_name(wanted, options.preview_path)
    if options.preview_path != wanted:
        say(f"{wanted} is no preview and stays as it is, previews go to {options.preview_path}")
    if options.preview != "taesd":
        return None
    found = options.taesd or (None if options.vae else hub.cached(TAESD) and TAESD)
    if found is None and options.vae is None:
        raise UserError("--preview taesd: TAESD is not in Hugging Face's cache; name its file with --taesd, or download "
                        f"it with --taesd {TAESD}")
    return tiny(found or options.vae)


def next_name(path, name):
    """Of path, path-2, path-3, … the one after `name`"""
    number = int(name.stem.removeprefix(path.stem).removeprefix("-") or 1) + 1
    return path.with_name(f"{path.stem}-{number}{path.suffix}")


def check_name(option, path):
    """The path, with .png if it had no suffix; UserError for a name that can't be that of a PNG file."""
    if path.name == "" or path.is_dir():
        raise UserError(f"{option}: {path} is a folder, a file was expected")
    if path.name.lower().endswith(OTHER_FORMATS):
        raise UserError(f"{option}: {path.name}: previews are written as PNG, so the name should end in .png")
    if not path.parent.is_dir():
        raise UserError(f"{option}: there is no folder {path.parent}")
    return path if path.suffix else path.with_name(path.name + ".png")


def tiny(path_or_id):
    """TAESD from a file, folder or id, still empty; UserError if it is another autoencoder."""
    from npdiffusion.checkpoints import autoencoders
    from npdiffusion.models.taesd import AutoencoderTiny
    part = autoencoders.open_autoencoder(path_or_id)
    if not isinstance(part.model, AutoencoderTiny):
        raise UserError(f"{path_or_id}: a VAE, but not TAESD, which --preview taesd needs")
    return part


def start_previews(options, part, pipeline):
    """The `Previews` to be given to generate; None if none are asked for."""
    if options.preview is None:
        return None
    from npdiffusion.memory import tiles
    from npdiffusion.pictures.preview import Previews
    if part is not None:
        part.fill()

    def tile(width, height):
        if part is not None:                             # TAESD takes so little memory that it needs none
            return None
        return (pipeline.budget or tiles).choose(pipeline.vae.config, width, height, options.entries[0].request.vae_tiling)

    return Previews(options.preview, pipeline.vae if part is None else part.model, options.preview_path,
                    options.preview_every, options.steps_strip, tile)
