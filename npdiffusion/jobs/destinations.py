"""The files that pictures go to: folder and name from --output, or a name made of the prompt and the seed.

    apple.jpg        that file, or if it is there, apple-2.jpg: an ending of images.WRITTEN says which format it is
    apple-%03d.jpg   apple-001.jpg, apple-002.jpg, …: one more than the highest number there; %% is a percent sign
"""
import os
import pathlib
import re
from dataclasses import dataclass, replace

from npdiffusion.errors import UserError
from npdiffusion.pictures import images, text_inside
from npdiffusion.pictures.sheets import sheet
from npdiffusion.settings import SETTINGS

ENDING = re.compile(r"\.[A-Za-z][A-Za-z0-9]{0,4}")       # version1.5 has none
PLACES = re.compile("%(?:%|([0-9]{0,3})d|)")             # of a number with so many digits, of a percent sign, or wrong
LONGEST_NAME = 200                    # bytes of a file name that is given
LONGEST_WORDS = 60                    # bytes of the prompt in a file name that is made


def find_output(output):
    """--output → (folder, file name or Numbered, or None where each picture is named after its prompt and seed)

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
    elif os.path.exists(folder) and not os.path.isfile(folder) and not os.path.isdir(folder):
        raise UserError(f"--output: {folder} is a device or a pipe, and pictures are whole files")
    elif not os.path.isdir(folder):
        folder, name = folder.parent, folder.name
        if not os.path.isdir(folder):
            raise UserError(f"--output: there is no folder {folder} (to have it created, end the path in /)")
        name = parse_name(name)
        if len(os.fsencode(name if isinstance(name, str) else name.of(0))) > LONGEST_NAME:
            raise UserError(f"--output: the file name is too long, at most {LONGEST_NAME} bytes are allowed")
    images.check_folder(folder)
    return folder, name


def parse_name(name):
    """A file name of --output, with .png where it has no ending → str, or Numbered if there is a %d in it; UserError"""
    ending = pathlib.Path(name).suffix
    if ending.lower() not in images.WRITTEN:
        if ENDING.fullmatch(ending):
            raise UserError(f"--output: {name}: the ending {ending} is unknown, known are {', '.join(images.WRITTEN)}")
        name += ".png"
    places = list(PLACES.finditer(name))
    numbers = [place for place in places if place[1] is not None]
    if len(numbers) > 1 or any(place[0] == "%" for place in places):
        raise UserError(f"--output: {name}: % begins the place of the number, %d or %03d, which may be there once; %% is a "
                        "percent sign")
    if not numbers:
        return name.replace("%%", "%")
    number, = numbers
    head, tail = (part.replace("%%", "%") for part in (name[:number.start()], name[number.end():]))
    return Numbered(head, int(number[1] or 1), tail)


@dataclass(frozen=True)
class Numbered:
    """File names head + number + tail; the number has so many digits, or more if it is larger."""
    head: str
    digits: int
    tail: str

    def __str__(self):
        return f"{self.head}%0{self.digits}d{self.tail}"

    def of(self, number):
        """The name with that number"""
        return f"{self.head}{number:0{self.digits}}{self.tail}"

    def free(self, path, taken=()):
        """The next name in the folder of `path`: one more than the highest number of its files and of the names `taken`."""
        known = re.compile(f"{re.escape(self.head)}([0-9]{{1,18}}){re.escape(self.tail)}")
        found = [match for name in (*os.listdir(path.parent), *taken) if (match := known.fullmatch(name))]
        number = 1 + max((int(match[1]) for match in found), default=0)
        while os.path.lexists(path.with_name(self.of(number))):      # in other letters, on a disk that ignores case
            number += 1
        return path.with_name(self.of(number))


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
        name = self.name or default_name(entry.request.prompt, entry.request.seed)
        wanted, entry.path = self.folder / str(name), write(image, text, self.folder, name, self.listener)
        if isinstance(name, str) and os.path.lexists(wanted) and entry.path != wanted and wanted not in self.saved:
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
            write(sheet(images, captions, self.columns), None, self.folder, name, self.listener)

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
        write(sheet([entry.path for entry in entries], differences(entries)), None, folder, name, listener)


def write(image, text, folder, name, listener):
    """Write a picture, with a text inside unless it is None, under a free name; return its path.

    name: str or Numbered, whose ending says the format
    """
    content, ending = encoded(image, text, ending_of(name))
    return write_file(content, folder, fitting(name, ending, folder, listener), listener)


def ending_of(name):
    """The ending of a name, str or Numbered"""
    return pathlib.PurePath(name if isinstance(name, str) else name.of(0)).suffix


def encoded(image, text, ending):
    """A PIL image → the content of its file, with a text inside unless it is None, and the ending of its name: that which is
    given, or .png where such files have no room for so many pixels"""
    name = f"picture{ending if images.has_room(f'picture{ending}', image) else '.png'}"
    options = None if text is None else text_inside.save_options(images.format_of(name), text)
    return images.file_of(image, name, options), pathlib.PurePath(name).suffix


def fitting(name, ending, folder, listener):
    """A name, str or Numbered, as it is if a file of that ending is to get it; else as .png, which is said"""
    if ending == ending_of(name):
        return name
    listener.note(f"{folder / str(name)}: it has more pixels a side than this format takes, so it is a PNG")
    return as_png(name)


def free_for(name):
    """The function of (path, taken) that finds a free name beside a path, for a name that is str or Numbered"""
    return images.free_name if isinstance(name, str) else name.free


def write_file(content, folder, name, listener, free=None, before=None):
    """Write the content of a picture's file under a free name; return its path. free, before: see images.save_picture"""
    path = images.save_picture(content, folder / str(name), before=before, free=free or free_for(name))
    listener.saved(path)
    return path


def as_png(name):
    """The name, str or Numbered, with the ending .png"""
    return name[:name.rindex(".")] + ".png" if isinstance(name, str) else replace(name, tail=as_png(name.tail))


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
