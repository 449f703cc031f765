"""A picture that was made, with the text of its settings in `info`: its files, copies and other processes keep it."""
import os
from typing import Any

from PIL import Image

from npdiffusion.pictures import text_inside


class Picture(Image.Image):
    """What `generate` gives."""

    def save(self, fp: Any, format: str | None = None, **params: Any) -> None:
        """Pillow's `save`, with the settings inside a PNG, JPEG or WebP unless `pnginfo` or `exif` say what is."""
        name = fp if isinstance(fp, (str, os.PathLike)) else getattr(fp, "name", "")        # as Pillow finds it
        kind = format or Image.registered_extensions().get(os.path.splitext(str(name))[1].lower(), "")
        if text_inside.KEY in self.info:
            params = text_inside.save_options(kind.upper(), self.info[text_inside.KEY]) | params
        super().save(fp, format, **params)

    def copy(self) -> Image.Image:
        copied = super().copy()
        copied.__class__ = Picture
        return copied


def with_settings(image: Image.Image, text: str) -> Image.Image:
    """A PIL image as a `Picture` with that text of settings; it is the same object."""
    image.__class__ = Picture
    image.info[text_inside.KEY] = text
    return image
