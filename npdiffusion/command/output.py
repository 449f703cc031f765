"""The files that pictures go to: folder and name from --output, or a name made of the prompt and the seed."""
import os
import pathlib
import re

from npdiffusion.command.talk import print_line, say
from npdiffusion.errors import UserError

OTHER_FORMATS = (".jpg", ".jpeg", ".webp", ".gif", ".bmp", ".tif", ".tiff", ".avif", ".ppm")
LONGEST_NAME = 200                    # bytes of a file name that is given
LONGEST_WORDS = 60                    # bytes of the prompt in a file name that is made


def find_output(output):
    """--output → (folder, file name, or None where each picture is named after its prompt and seed)

    UserError unless files can be written there. A folder that ends in a slash is created.
    """
    from npdiffusion.images import check_folder
    if output == "":
        raise UserError("--output: the name is empty")
    folder, name = pathlib.Path(output or "."), None
    if output and output.endswith(("/", os.sep)):
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(f"--output: the folder {folder} can't be created ({error.strerror or error})") from None
    elif not os.path.isdir(folder):
        folder, name = folder.parent, folder.name
        if not os.path.isdir(folder):
            raise UserError(f"--output: there is no folder {folder} (to have it created, end the path in /)")
        if name.lower().endswith(OTHER_FORMATS):
            raise UserError(f"--output: {name}: pictures are written as PNG, so the name should end in .png")
        name = name if name.lower().endswith(".png") else name + ".png"
        if len(os.fsencode(name)) > LONGEST_NAME:
            raise UserError(f"--output: the file name is too long, at most {LONGEST_NAME} bytes are allowed")
    check_folder(folder)
    return folder, name


def save(image, text, wanted, saved):
    """Write a picture and its settings, print the path it got and return it; `saved` are the paths before it.

    text: of the settings, or None
    """
    from npdiffusion import images, textchunks
    path = images.save_png(image, wanted, None if text is None else textchunks.png_info(text))
    if path != wanted and wanted not in saved:
        say(f"{wanted} is there already and stays as it is, the picture goes to {path}")
    print_line(path)
    return path


def default_name(prompt, seed):
    """File name of a picture: words of its prompt, then the seed."""
    words = "-".join(re.findall(r"\w+", prompt.lower()))
    short = words.encode()[:LONGEST_WORDS].decode(errors="ignore")
    if short != words:                # no half word, unless it is the only one
        short = short.rpartition("-")[0] or short
    return f"{short or 'picture'}-{seed}.png"


def model_name(model):
    """How --model is called in a picture's settings: a file or folder by its own name alone, an id as it is."""
    if model in (None, "embedded"):
        return "embedded"
    path = os.path.abspath(os.path.expanduser(model))
    return os.path.basename(path).removesuffix(".safetensors") if os.path.exists(path) else model
