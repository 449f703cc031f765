"""Pictures as files and as arrays.

    file → PIL image (RGB) → array (H, W, 3), float32 in [−1, 1]          x = 2 · level / 255 − 1
    array (N, H, W, 3) → PIL images → PNG, JPEG or WebP files             level = round(255 · clip(x / 2 + 1/2, 0, 1))

Levels are 0 … 255, halves are rounded to even. Both directions equal diffusers' VaeImageProcessor bit for bit. A file
is untrusted when read; when written it appears under its name all at once, and never in place of another one.
"""
import contextlib
import io
import math
import os
import pathlib
import re
import warnings

import numpy as np
from PIL import Image, ImageOps
from PIL.PngImagePlugin import PngInfo

from npdiffusion.checkpoints.text_files import check_regular
from npdiffusion.errors import UserError

LARGEST_PICTURE = 64_000_000          # pixels; decoded it takes 4 bytes for each
BAND = 64                             # rows that are put on white at once
PART = re.compile(r"\.npdiffusion-([1-9][0-9]{0,9})-[0-9a-f]{8}\.part")      # a file that is being written, by that process
WRITTEN = {".png": "PNG", ".jpg": "JPEG", ".jpeg": "JPEG", ".webp": "WEBP"}      # by the ending of the name
QUALITY = {"JPEG": {"quality": 95, "subsampling": 0}, "WEBP": {"quality": 95}}   # 0: colours at every pixel
LONGEST_SIDES = {"JPEG": 65_500, "WEBP": 16_383}         # pixels that the formats have room for
FORMATS = ("PNG", "JPEG", "WEBP", "AVIF", "BMP", "GIF", "TIFF", "PPM")      # not EPS, which runs Ghostscript


# ---- reading

def open_image(path):
    """The picture in a file as a PIL image in RGB: upright as its EXIF says, what is transparent put on white.

    UserError for anything that can't be read, names a file of another kind, or has more than LARGEST_PICTURE pixels.
    """
    with look_into(path) as image:
        ImageOps.exif_transpose(image, in_place=True)
        return to_rgb(image)


@contextlib.contextmanager
def look_into(path, file=None):
    """A PIL image of the file, whose pixels are not read yet; every error within becomes a UserError as above.

    file: open, where there is one already, or its path says no more than what to call it
    """
    path = os.path.expanduser(path)
    with _readable(path), contextlib.ExitStack() as stack:
        if file is None:
            check_regular(path)
        yield stack.enter_context(_opened(file or path, path))


def from_bytes(content, name, most=LARGEST_PICTURE):
    """The content of a picture file → PIL image of the mode it has; UserError, which calls it by `name`, as for a file.

    most: pixels
    """
    with _readable(name), _opened(io.BytesIO(content), name, most) as image:
        image.load()
        return image.copy()


@contextlib.contextmanager
def _opened(source, name, most=LARGEST_PICTURE):
    """Pillow's image of a path or a file; UserError if it is too large."""
    Image.init()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")                  # of Pillow, about metadata and the size, see below
        with Image.open(source, formats=[known for known in FORMATS if known in Image.OPEN]) as image:
            if image.width * image.height > most:
                raise UserError(f"{name}: {image.width}x{image.height} is too large, at most "
                                f"{most // 10**6} million pixels are read")
            yield image


@contextlib.contextmanager
def _readable(name):
    """Every error within becomes a UserError about the picture of that name."""
    try:
        yield
    except UserError:
        raise
    except Image.UnidentifiedImageError:
        raise UserError(f"{name}: damaged, or not a picture in a known format ({', '.join(FORMATS)})") from None
    except Image.DecompressionBombError:
        raise UserError(f"{name}: too large, at most {LARGEST_PICTURE // 10**6} million pixels are read") from None
    except OSError as error:
        raise UserError(f"{name}: can't be read ({error.strerror or error})") from None
    except Exception as error:              # noqa: BLE001, decoders raise nearly anything on a damaged file
        raise UserError(f"{name}: damaged, can't be read ({error or type(error).__name__})") from None


def to_rgb(image):
    """A PIL image of any mode → RGB, 8 bits a channel. ValueError for floating-point pixels: their range is unknown."""
    if image.mode == "F":
        raise ValueError("its pixels are floating-point numbers, save it with 8 bits a channel")
    if image.mode.startswith("I"):                       # 16-bit grey: Pillow would clip it at 255
        image = Image.fromarray((np.asarray(image).clip(0, 65535) // 257).astype(np.uint8))
    if "transparency" in image.info or image.mode in ("RGBA", "RGBa", "LA", "La", "PA"):
        whole = Image.new("RGB", image.size)
        for top in range(0, image.height, BAND):         # so that no second and third copy of it is needed
            part = image.crop((0, top, image.width, min(top + BAND, image.height))).convert("RGBA")
            whole.paste(Image.alpha_composite(Image.new("RGBA", part.size, "white"), part).convert("RGB"), (0, top))
        return whole
    return image.convert("RGB")


def rgb(image, name="init_image"):
    """PIL image, path or array → PIL image in RGB; UserError, which calls an image by `name`, if it can't be read.

    An array is (H, W, 3), uint8 or, as diffusers takes it, float from 0 to 1.
    """
    if isinstance(image, np.ndarray):
        image = from_array(image, name)
    if not isinstance(image, Image.Image):
        if not isinstance(image, (str, os.PathLike)):
            raise UserError(f"{name} is a {type(image).__name__}: a PIL image, a path or an array (H, W, 3) was expected")
        return open_image(image)
    try:
        return to_rgb(image)
    except ValueError as error:
        raise UserError(f"{name}: {error}") from None


def from_array(array, name, grey=False):
    """(H, W, 3), uint8 or float from 0 to 1 → PIL image; UserError for another. grey: (H, W), (H, W, 1) and bool, too"""
    if grey and array.ndim == 3 and array.shape[2] == 1:
        array = array[:, :, 0]
    right = (array.ndim == 3 and array.shape[2] == 3) or (grey and array.ndim == 2)
    right = right and 0 < array.shape[0] * array.shape[1] <= LARGEST_PICTURE
    if right and ((array.dtype.kind == "f" and np.all((array >= 0) & (array <= 1))) or (grey and array.dtype == bool)):
        array = (array * np.float32(255)).round().astype(np.uint8)
    if not right or array.dtype != np.uint8:
        expected = f"(H, W, 3){' or (H, W)' * grey} was expected, uint8 or floats from 0 to 1"
        raise UserError(f"{name} is an array {array.shape} of {array.dtype}: {expected}")
    return Image.fromarray(array)


def to_array(image, width, height):
    """PIL image or path → (height, width, 3), float32 in [−1, 1].

    Another size is scaled (Lanczos) until it covers width × height, and what overlaps is cut off evenly on both sides.
    UserError if a file can't be read.
    """
    return 2 * (np.asarray(fit(rgb(image), width, height), np.float32) / 255) - 1


def fit(image, width, height):
    """A PIL image scaled (Lanczos) until it covers width × height; what overlaps is cut off evenly on both sides."""
    if image.size == (width, height):
        return image
    return ImageOps.fit(image, (width, height), Image.Resampling.LANCZOS)


# ---- writing

def to_images(array):
    """(N, H, W, 3), float in [−1, 1] → list of N PIL images; values beyond are clipped. ValueError for a NaN."""
    if np.isnan(array).any():
        raise ValueError("the picture holds NaN")
    levels = array * 0.5                                 # in place from here on: large pictures are large numbers
    levels += 0.5
    np.clip(levels, 0, 1, out=levels)
    levels *= 255
    levels = np.rint(levels, out=levels).astype(np.uint8)
    return [Image.fromarray(picture) for picture in levels]


def check_folder(folder):
    """UserError unless new files can be written into a folder; tries it, since permissions alone don't tell."""
    try:
        with _temporary(folder) as file:
            pass
        os.unlink(file.name)
    except OSError as error:
        raise UserError(f"{folder}: no file can be written here ({error.strerror or error})") from None


def free_name(path, taken=()):
    """`path`, or if that is there, or its name among those `taken`, the first free one of path-2, path-3, …"""
    path = pathlib.Path(path)
    candidate, number = path, 1
    while candidate.name in taken or os.path.lexists(candidate):
        number += 1
        candidate = path.with_name(f"{path.stem}-{number}{path.suffix}")
    return candidate


def format_of(path):
    """The format that a picture of that name is written in: Pillow's name for it; PNG under an unknown ending"""
    return WRITTEN.get(pathlib.Path(path).suffix.lower(), "PNG")


def has_room(path, image):
    """Whether the format of a picture of that name takes so many pixels."""
    return max(image.size) <= LONGEST_SIDES.get(format_of(path), math.inf)


def file_of(image, path, options=None):
    """The content of the file of a PIL image in the format of `path`

    options: further ones of Pillow's `save`, such as text_inside.save_options; nothing of image.info goes in without
    """
    kind, file = format_of(path), io.BytesIO()
    Image.Image.save(image, file, **{"format": kind} | QUALITY.get(kind, {}) | (options or {}))
    return file.getvalue()


def save_picture(content, path, taken=(), before=None, free=free_name):
    """Write the content of a file and return the path it got: free(path, taken), `free_name` or one like it.

    before(path) is called when all is written, but not yet there under that name.
    The file is complete when it appears. UserError if it can't be written; nothing is left behind then.
    """
    with _written(lambda file: file.write(content), pathlib.Path(path)) as temporary:
        return _named(temporary, path, taken, before, free)


def save_png(image, path, pnginfo=None):
    """Write a PIL image as PNG, whatever its name, and return the path it got, as `save_text` does."""
    with _written(lambda file: image.save(file, format="PNG", pnginfo=pnginfo), pathlib.Path(path)) as temporary:
        return _named(temporary, path)


def save_text(text, path):
    """Write a text in UTF-8 and return the path it got: `path`, or the next free name beside it (see `free_name`).

    The file is complete when it appears. UserError if it can't be written; nothing is left behind then.
    """
    with _written(lambda file: file.write(text.encode()), pathlib.Path(path), "the file") as temporary:
        return _named(temporary, path)


def save_array(array, path):
    """Write an array as .npy, and return the path it got, as `save_text` does."""
    with _written(lambda file: np.save(file, array, allow_pickle=False), pathlib.Path(path), "the file") as temporary:
        return _named(temporary, path)


def remove_leftovers(folder):
    """Remove what processes that were killed have not finished writing in a folder."""
    if os.name != "posix":                               # elsewhere there is no harmless way to ask whether one lives
        return
    for path in pathlib.Path(folder).glob(".npdiffusion-*-*.part"):
        found = PART.fullmatch(path.name)
        with contextlib.suppress(OverflowError, OSError):
            try:
                os.kill(int(found[1]) if found else os.getpid(), 0)   # is it still there?
            except ProcessLookupError:
                path.unlink()


def replace_png(image, path, mark=None):
    """Write a PIL image as PNG in place of what is there: whoever reads it finds a complete picture, old or new.

    mark: the key of an empty text inside, by which it is known again, if it is to be
    UserError if it can't be written; nothing is left behind then.
    """
    info = PngInfo()
    if mark is not None:
        info.add_text(mark, "")
    options = {"format": "PNG", "compress_level": 1, "pnginfo": info}
    with _written(lambda file: image.save(file, **options), pathlib.Path(path)) as temporary:
        os.replace(temporary, path)


@contextlib.contextmanager
def _written(write, path, what="the picture"):
    """Within, what write(file) writes is a complete file beside `path`, under the name that is given; afterwards that name is
    gone.

    UserError if it can't be written, or not be moved within.
    """
    temporary = None
    try:
        with _temporary(path.parent) as file:
            temporary = file.name
            write(file)
            file.flush()
            os.fsync(file.fileno())
        yield temporary
    except OSError as error:
        raise UserError(f"{path}: {what} can't be written ({error.strerror or error})") from None
    finally:
        if temporary is not None:
            with contextlib.suppress(OSError):           # moved already
                os.unlink(temporary)


def _temporary(folder):
    """A new file in the folder, open for writing; unlike tempfile's it gets the user's ordinary permissions."""
    return open(pathlib.Path(folder, f".npdiffusion-{os.getpid()}-{os.urandom(4).hex()}.part"), "xb")


def _named(temporary, path, taken=(), before=None, free=free_name):
    """Give a complete file its name, the next free one; before(path) is called just before."""
    while True:
        target = free(path, taken)
        if before:
            before(target)
        with contextlib.suppress(FileExistsError):       # made by someone else in this moment: take the next name
            _move(temporary, target)
            return target


def _move(temporary, target):
    """Rename, but FileExistsError where that would replace a file: a second name for the same file never does."""
    try:
        os.link(temporary, target)
    except FileExistsError:
        raise
    except OSError:                                      # a file system without hard links: look, then rename
        if os.path.lexists(target):
            raise FileExistsError(target) from None
        os.rename(temporary, target)
