"""The files that pictures go to: folder and name from --output, or a name made of the prompt and the seed."""
import os
import pathlib
import re

from npdiffusion.errors import UserError
from npdiffusion.pictures import images, text_inside
from npdiffusion.pictures.sheets import sheet
from npdiffusion.settings import SETTINGS

OTHER_FORMATS = (".jpg", ".jpeg", ".webp", ".gif", ".bmp", ".tif", ".tiff", ".avif", ".ppm")
LONGEST_NAME = 200                    # bytes of a file name that is given
LONGEST_WORDS = 60                    # bytes of the prompt in a file name that is made


def find_output(output):
    """--output → (folder, file name, or None where each picture is named after its prompt and seed)

    UserError unless files can be written there. A folder that ends in a slash is created.
    """
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
    images.check_folder(folder)
    return folder, name


class Files:
    """Each picture in a file of its own; an existing file is kept, and the new one gets a number."""
    def __init__(self, folder, name, listener):
        self.folder, self.name, self.listener, self.saved, self.count = folder, name, listener, [], 0

    def __enter__(self):
        return self

    def __exit__(self, *exception):
        if 0 < len(self.saved) < self.count:
            self.listener.note(f"{len(self.saved)} of {self.count} pictures are saved")

    def left(self, entries):
        """Those that are to be made: all."""
        self.count = len(entries)
        return entries

    def save(self, image, text, entry, record):
        """Write a picture, and the text of its settings unless that is None; set `entry.path`."""
        wanted = self.folder / (self.name or default_name(entry.request.prompt, entry.request.seed))
        entry.path = write(image, text, wanted, self.listener)
        if entry.path != wanted and wanted not in self.saved:
            self.listener.note(f"{wanted} is there already and stays as it is, the picture goes to {entry.path}")
        self.saved.append(entry.path)


class OneSheet:
    """All pictures on one sheet, with what differs between them and the seconds that each took below it."""
    def __init__(self, folder, name, columns, listener):
        self.folder, self.name, self.columns, self.listener, self.made, self.count = folder, name, columns, listener, [], 0

    def __enter__(self):
        return self

    def __exit__(self, *exception):
        """Write the sheet; if something went wrong, with the pictures that there are."""
        if self.made:
            if len(self.made) < self.count:
                self.listener.note(f"{len(self.made)} of {self.count} pictures are on the sheet")
            images, entries, seconds = zip(*self.made)
            captions = [f"{caption}, {time:.2f} s" for caption, time in zip(differences(entries), seconds)]
            first = entries[0].request
            name = self.name or default_name(first.prompt, first.seed).removesuffix(".png") + "-samplers.png"
            write(sheet(images, captions, self.columns), None, self.folder / name, self.listener)

    def left(self, entries):
        """Those that are to be made: all."""
        self.count = len(entries)
        return entries

    def save(self, image, text, entry, record):
        """Keep a picture for the sheet."""
        self.made.append((image, entry, record["seconds"]))


def write_grid(entries, folder, name, made, listener):
    """--grid: a sheet of pictures that have their paths; not again if none was `made` now and it is there."""
    if made or not (folder / name).exists():
        write(sheet([entry.path for entry in entries], differences(entries)), None, folder / name, listener)


def write(image, text, wanted, listener):
    """Write a picture, with a text inside unless it is None, under a free name; return its path."""
    path = images.save_png(image, wanted, None if text is None else text_inside.png_info(text))
    listener.saved(path)
    return path


def differences(entries):
    """A caption for each: the prompt, sampler, seed, … unless they are the same for all"""
    ways = {name: [getattr(entry.request, name) for entry in entries] for name, row in SETTINGS.items()
            if row.per_picture and name != "count"}
    ways = {name: values for name, values in ways.items() if any(value != values[0] for value in values)}
    return [", ".join(spelled(name, values[i]) for name, values in ways.items() if values[i] not in (None, ""))
            for i in range(len(entries))]


def spelled(name, value):
    """A setting in a caption."""
    if name in ("prompt", "sampler", "schedule", "init_image", "mask_image"):
        return str(value)
    return f"{value} steps" if name == "steps" else f"{name.replace('_', ' ')} {value}"


def default_name(prompt, seed):
    """File name of a picture: words of its prompt, then the seed."""
    words = "-".join(re.findall(r"\w+", prompt.lower()))
    try:
        os.fsencode(words)
    except UnicodeEncodeError:        # names of files have no other characters under this locale
        words = "-".join(re.findall(r"\w+", prompt.lower(), re.ASCII))
    short = words.encode()[:LONGEST_WORDS].decode(errors="ignore")
    if short != words:                # no half word, unless it is the only one
        short = short.rpartition("-")[0] or short
    return f"{short or 'picture'}-{seed}.png"
