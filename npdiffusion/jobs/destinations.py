"""The files that pictures go to: folder and name from --output, or a name made of the prompt and the seed."""
import os
import pathlib
import re

from npdiffusion.command.talk import print_line, say
from npdiffusion.errors import UserError
from npdiffusion.jobs.prompts_file import PER_PICTURE

OTHER_FORMATS = (".jpg", ".jpeg", ".webp", ".gif", ".bmp", ".tif", ".tiff", ".avif", ".ppm")
LONGEST_NAME = 200                    # bytes of a file name that is given
LONGEST_WORDS = 60                    # bytes of the prompt in a file name that is made


def find_output(output):
    """--output → (folder, file name, or None where each picture is named after its prompt and seed)

    UserError unless files can be written there. A folder that ends in a slash is created.
    """
    from npdiffusion.pictures.images import check_folder
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


class Files:
    """Each picture in a file of its own; an existing file is kept, and the new one gets a number."""
    def __init__(self, folder, name):
        self.folder, self.name, self.saved, self.count = folder, name, [], 0

    def __enter__(self):
        return self

    def __exit__(self, *exception):
        if 0 < len(self.saved) < self.count:
            say(f"{len(self.saved)} of {self.count} pictures are saved")

    def left(self, pictures):
        """Those that are to be made: all."""
        self.count = len(pictures)
        return pictures

    def save(self, image, text, picture, entry):
        """Write a picture and the text of its settings, if that isn't None; print its path and set `picture.path`."""
        wanted = self.folder / (self.name or default_name(picture.prompt, picture.seed))
        picture.path = write(image, text, wanted)
        if picture.path != wanted and wanted not in self.saved:
            say(f"{wanted} is there already and stays as it is, the picture goes to {picture.path}")
        self.saved.append(picture.path)


class OneSheet:
    """All pictures on one sheet, with what differs between them and the seconds that each took below it."""
    def __init__(self, folder, name, columns):
        self.folder, self.name, self.columns, self.made, self.count = folder, name, columns, [], 0

    def __enter__(self):
        return self

    def __exit__(self, *exception):
        """Write the sheet; if something went wrong, with the pictures that there are."""
        if self.made:
            if len(self.made) < self.count:
                say(f"{len(self.made)} of {self.count} pictures are on the sheet")
            from npdiffusion.pictures.sheets import sheet
            images, pictures, seconds = zip(*self.made)
            captions = [f"{caption}, {time:.2f} s" for caption, time in zip(differences(pictures), seconds)]
            first = pictures[0]
            name = self.name or default_name(first.prompt, first.seed).removesuffix(".png") + "-samplers.png"
            write(sheet(images, captions, self.columns), None, self.folder / name)

    def left(self, pictures):
        """Those that are to be made: all."""
        self.count = len(pictures)
        return pictures

    def save(self, image, text, picture, entry):
        """Keep a picture for the sheet."""
        self.made.append((image, picture, entry["seconds"]))


def write_grid(pictures, folder, name, made):
    """--grid: a sheet of pictures that have their paths; not again if none was `made` now and it is there."""
    from npdiffusion.pictures.sheets import sheet
    if made or not (folder / name).exists():
        write(sheet([picture.path for picture in pictures], differences(pictures)), None, folder / name)


def write(image, text, wanted):
    """Write a picture, with a text inside unless it is None, under a free name; print and return its path."""
    from npdiffusion.pictures import images, text_inside
    path = images.save_png(image, wanted, None if text is None else text_inside.png_info(text))
    print_line(path)
    return path


def differences(pictures):
    """A caption for each: the prompt, sampler, seed, … unless they are the same for all"""
    ways = {name: [getattr(picture, name) for picture in pictures] for name in PER_PICTURE if name != "batch_count"}
    ways = {name: values for name, values in ways.items() if any(value != values[0] for value in values)}
    return [", ".join(spelled(name, values[i]) for name, values in ways.items() if values[i] not in (None, ""))
            for i in range(len(pictures))]


def spelled(name, value):
    """An option in a caption."""
    if name in ("prompt", "sampler", "schedule", "init_image", "mask_image"):
        return str(value)
    return f"{value} steps" if name == "steps" else f"{name.replace('_', ' ')} {value}"


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
