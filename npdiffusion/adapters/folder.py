"""From the name of an adapter to its file. It is looked up among the files that are there, so it never is a path."""
import pathlib

import safetensors

from npdiffusion.checkpoints import bundled
from npdiffusion.checkpoints.folder_walk import TooMany, walk
from npdiffusion.checkpoints.safetensors_file import PICKLES
from npdiffusion.errors import UserError, nearest

SUFFIXES = (".safetensors", *PICKLES)        # pickles, so that they are refused by name
GENERIC = ("pytorch_lora_weights", "adapter_model")   # as diffusers and PEFT call a file: its folder's name says more
DEEPEST = 10                          # folders within folders that are looked through
SHOWN = 5


def find_adapter(folder, name):
    """The file of the adapter of that name; UserError, with the nearest name, if there is none or more than one.

    A name is that of a file without suffix, if need be with folders before it ("styles/ink"), or the one that its maker
    gave it (kohya's ss_output_name), which A1111 uses too. What no file is called may be bundled with the embedded model.
    """
    if folder is None and name in bundled.LORAS:
        return bundled.LORAS[name]
    if folder is None:
        raise UserError(f"the prompt asks for the adapter {name[:200]!a}, but where is it? Name the folder with LoRA "
                        "files (--lora-dir, or lora_dir of npdiffusion.load)")
    files = catalogue(folder)
    key = name.casefold()
    for matches in (lambda known: known == name, lambda known: known.casefold() == key,
                    lambda known: known.rpartition("/")[2].casefold() == key):
        found = [known for known in files if matches(known)]
        if found:
            break
    else:
        found = [known for known, path in files.items() if alias(path) == name]
    if len(found) > 1:
        raise UserError(f"{folder}: {name[:200]!a} may be {' or '.join(ascii(known) for known in found[:SHOWN])}: "
                        "name it with its folder")
    if not found and name in bundled.LORAS:
        return bundled.LORAS[name]
    if not found:
        raise UserError(f"{folder}: there is no adapter {name[:200]!a}{suggestion(name, files)}")
    return files[found[0]]


def catalogue(folder):
    """{name: path} of all adapters in a folder and those below it; safetensors files hide pickles of the same name."""
    folder = pathlib.Path(folder).expanduser()
    if not folder.is_dir():
        raise UserError(f"{folder}: no such folder (it should hold the LoRA files that a prompt names)")
    try:
        found = [path for path in walk(folder, DEEPEST) if path.suffix in SUFFIXES]
    except TooMany as ended:
        raise UserError(f"{ended}, that is no folder of LoRAs") from None
    files = {}
    for path in sorted(found, key=lambda path: path.suffix != SUFFIXES[0]):
        where = path.relative_to(folder)
        where = where.parent if path.stem in GENERIC and where.parent.name else where.with_suffix("")
        files.setdefault(where.as_posix(), path)
    return files


def alias(path):
    """The name that an adapter's maker gave it, or None."""
    try:
        with safetensors.safe_open(path, framework="np") as file:
            return (file.metadata() or {}).get("ss_output_name")
    except (OSError, safetensors.SafetensorError):
        return None


def suggestion(name, files):
    """The end of a message that says a name is unknown."""
    spelled = {end.casefold(): known for known in files for end in (known, known.rpartition("/")[2])}
    near = spelled.get(nearest(name, spelled, "{}"))
    if near:
        return f", did you mean {near!a}?"
    known = ", ".join(ascii(known) for known in sorted(files)[:SHOWN])
    more = f" and {len(files) - SHOWN} more" if len(files) > SHOWN else ""
    return f"; known are {known}{more}" if files else "; there are none at all"


def adapter_file(path):
    """A file, or the one in a folder as diffusers and PEFT write it → path"""
    path = pathlib.Path(path).expanduser()
    if path.is_dir():
        there = [path / f"{name}.safetensors" for name in GENERIC if (path / f"{name}.safetensors").is_file()]
        there = there or sorted(path.glob("*.safetensors"))
        if len(there) != 1:
            raise UserError(f"{path}: {len(there)} .safetensors files in it, name the one that is meant")
        return there[0]
    return path
