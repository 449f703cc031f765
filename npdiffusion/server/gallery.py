"""The pictures that are kept: the files of a folder, and its manifest, which a run of the command may have begun.

A picture is called by the number of its line in the manifest. Names of files never come from a request.
"""
import functools
import io
import os

from PIL import Image

from npdiffusion.jobs.listener import Listener
from npdiffusion.jobs.manifest import Manifest
from npdiffusion.pictures import images

SMALL = 320                           # pixels of a thumbnail's longer side
THUMBNAILS = 512                      # that are kept in memory, of some 10 kB each
SHOWN = ("file", "seed", "prompt", "negative_prompt", "model", "settings", "seconds")        # of a line


class Gallery:
    """The manifest of a folder and its pictures; also a place for `jobs.render`. UserError as from `Manifest`."""
    def __init__(self, folder):
        self.folder, self.manifest = folder, Manifest(folder, Listener())
        images.remove_leftovers(folder)
        self.numbers = {line["file"]: number for number, line in enumerate(self.manifest.lines)}
        self.small = functools.lru_cache(THUMBNAILS)(self._small)

    def close(self):
        self.manifest.file.close()

    def save(self, image, text, entry, record):
        """Keep a picture; see `Manifest.save`."""
        self.manifest.save(image, text, entry, record)
        self.numbers.setdefault(entry.path.name, len(self.manifest.lines) - 1)

    def done(self, entry):
        """Whether a picture is there already, made by an earlier server; it gets its path if it was begun."""
        return not self.manifest.left([entry])

    def number(self, entry):
        """The number of a picture that is in its place"""
        return self.numbers[entry.path.name]

    def path(self, number):
        """The file of a picture, or None if there is none"""
        lines = self.manifest.lines
        if not 0 <= number < len(lines):
            return None
        path = self.folder / lines[number]["file"]
        return path if path.is_file() else None

    def read(self, number):
        """The file's content, or None"""
        path = self.path(number)
        return None if path is None else path.read_bytes()

    def _small(self, number):
        """A thumbnail, WebP, or None"""
        path = self.path(number)
        if path is None:
            return None
        with images.look_into(path) as image:
            image.thumbnail((SMALL, SMALL), Image.Resampling.LANCZOS)
            return encoded(images.to_rgb(image), "WEBP", quality=82)

    def latest(self, before=None, count=60):
        """Lines of the newest pictures that are there, newest first, each with its number"""
        lines = self.manifest.lines
        start = len(lines) if before is None else max(0, min(before, len(lines)))
        here = {entry.name for entry in os.scandir(self.folder)}
        found = []
        for number in range(start - 1, -1, -1):
            if lines[number]["file"] in here:
                found.append({name: lines[number].get(name) for name in SHOWN} | {"number": number})
                if len(found) == count:
                    break
        return found


class Results:
    """A place for pictures of a job that isn't kept: they wait in memory for its answer."""
    def __init__(self, job):
        self.job = job

    def save(self, image, text, entry, record):
        from npdiffusion.pictures.text_inside import png_info
        self.job.results.append((encoded(image, "PNG", pnginfo=png_info(text)), record | {"text": text}))


def encoded(image, format, **options):
    """A PIL image as the content of a file"""
    file = io.BytesIO()
    image.save(file, format=format, **options)
    return file.getvalue()
