"""--like FILE: the settings inside a picture, as options of the command line.

What the command line names itself goes first. What can't be followed is said, in a note each: a setting without an
option, a value that the option doesn't take, a model that isn't here, a picture to start from.
"""
from npdiffusion.command.talk import one_line, printable, say
from npdiffusion.diffusion import samplers
from npdiffusion.errors import UserError
from npdiffusion.pictures import settings_text
from npdiffusion.settings import SETTINGS
from npdiffusion.settings.kinds import Unfit


def settings_like(path, given):
    """{option: value} of what is inside a file and not among `given`, the options of the command line

    UserError if there is nothing inside, or it can't be read, or none of the settings can be followed.
    """
    from npdiffusion.pictures import text_inside
    text = text_inside.read_text(path)
    prompt, negative_prompt, pairs = settings_text.parse_parameters(text)
    texts, unknown = settings_text.to_options(pairs)
    if not pairs:
        raise UserError(f"{path}: there are no settings inside, only a text: {printable(one_line(text))[:60]}")
    notes = dict.fromkeys(unknown, "there is no such option here")
    found = {"prompt": prompt, "negative_prompt": negative_prompt}
    for name, value in texts.items():
        if name not in given:
            try:
                found[name] = SETTINGS[name].kind.read(value) if name in SETTINGS else value
            except Unfit as error:
                notes[settings_text.key_of(name)] = error
    random = [name for name in ("seed", "subseed") if name in found and found[name] is None]
    found = {name: value for name, value in found.items() if value is not None and value is not False}
    upscaler = pairs.get("Hires upscaler", "").casefold()
    if found.get("hires_upscaler") == "lanczos" and upscaler not in ("", "lanczos"):
        notes["Hires upscaler"] = "lanczos, the nearest that is offered, is taken"
    check_models(found, given, notes)
    check_start(found, given, notes)
    check_schedule(found, given, pairs)
    lines = [f"{key}{': ' * (key in pairs)}{printable(one_line(pairs.get(key, '')))[:60]} is not followed ({why})"
             for key, why in notes.items()]
    written = {key.casefold() for key in pairs}
    if not any(settings_text.key_of(name).casefold() in written for name in texts if name in found or name in given):
        raise UserError(f"{path}: none of the settings inside can be used: {'; '.join(lines[:3])}")
    lines += [f"{settings_text.key_of(name)}: -1 stands for a random one" for name in random]
    for line in lines:
        say(f"{path}: {line}")
    return found


def settings(path):
    """The settings inside a picture, from Python → arguments of `generate`, arguments of `load`

    What can't be followed is said on stderr. UserError as from `settings_like`.
    """
    found = settings_like(path, {})
    model = {"path_or_id": found.pop("model", None), "vae": found.pop("vae", None)}
    return found, model


def check_models(found, given, notes):
    """Take out a model or VAE that isn't in the list of those that are here. It is a name, whatever it looks like."""
    from npdiffusion.checkpoints import library
    for option, key in ("model", "Model"), ("vae", "VAE"):
        name = found.pop(option, None)
        if name not in (None, library.EMBEDDED):
            path = library.find(name, given.get("model_dir"))
            if path is None:
                notes[key] = f"it is not among those that `npdiffusion models` lists; --{option} names another"
            else:
                found[option] = path


def check_start(found, given, notes):
    """Take out what needs a picture to start from, or a mask, if that isn't given; and what doesn't go with one."""
    if "init_image" in given and found.pop("hires", None):
        notes["Hires upscale"] = "it is for pictures made from words alone"
    for name, row in SETTINGS.items():
        if name in found and row.needs and not any(other in found or other in given for other in row.needs):
            del found[name]
            mask = "mask_image" in row.needs
            what = "a mask, to be given with --mask-image" if mask else "another picture, to be given with -i"
            if "hires" not in row.needs:
                notes[row.key] = f"it was made from {what}"


def check_schedule(found, given, pairs):
    """Take a schedule out that the sampler doesn't take, and a spacing that follows from another sampler."""
    if "sampler" in given and "Timestep spacing" not in pairs:
        found.pop("timestep_spacing", None)
    sampler = samplers.SAMPLERS.get(given.get("sampler", found.get("sampler")))
    if sampler and found.get("schedule") not in sampler.schedules:
        found.pop("schedule", None)
