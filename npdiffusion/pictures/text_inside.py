"""The text of settings inside a picture's file: a chunk of a PNG, the EXIF comment of any picture, a GIF's comment.

    PNG: 8 bytes of signature, then chunks: length (4 bytes, big-endian), type (4), data, CRC-32 of type and data
    tEXt  key \\0 Latin-1                     zTXt  key \\0 \\0 deflated Latin-1
    iTXt  key \\0 deflated? \\0 language \\0 translated key \\0 UTF-8, perhaps deflated   (PNG, section 11.3)

A file is untrusted: no more than LONGEST_TEXT is read or inflated, and the pixels of a picture with a text are not looked at.
"""
import os
import pathlib
import struct
import warnings
import zlib
from typing import TYPE_CHECKING, Any, BinaryIO

from npdiffusion.checkpoints.text_files import check_regular
from npdiffusion.errors import UserError

if TYPE_CHECKING:
    from PIL.PngImagePlugin import PngInfo

KEY = "parameters"                    # of the chunk
SIGNATURE = b"\x89PNG\r\n\x1a\n"
LONGEST_TEXT = 1 << 20                # bytes, inflated
MOST_CHUNKS = 100_000
LARGEST_EXIF = 65_000                 # bytes that a JPEG file takes
SLOPPY = b"Version: stable-diffusion.cpp"        # a program that writes UTF-8 where Latin-1 is due
USER_COMMENT, DESCRIPTION = 0x9286, 0x010E       # EXIF's numbers for them,
EXIF_TABLE = 0x8769                   # and for the second table, which the comment belongs in; some write it in the first


def png_info(text: str) -> "PngInfo":
    """The chunk for Pillow's `save(pnginfo=…)`: tEXt, or iTXt where Latin-1 has not all the characters."""
    from PIL.PngImagePlugin import PngInfo
    info = PngInfo()
    info.add_text(KEY, text.encode("utf-8", "replace").decode("utf-8"))      # names of files may hold lone surrogates
    return info


def exif(text: str) -> bytes:
    """EXIF with the text as its comment, in UTF-16 as AUTOMATIC1111's web interface writes it → bytes"""
    from PIL.Image import Exif
    tables = Exif()
    tables.get_ifd(EXIF_TABLE)[USER_COMMENT] = b"UNICODE\0" + text.encode("utf-16-be", "replace")
    return tables.tobytes()


def save_options(kind: str, text: str) -> dict[str, Any]:
    """The arguments of Pillow's `save` by which a picture of a format, "PNG", "JPEG" or "WEBP", gets the text inside

    None of another format, and with a warning if JPEG has no room for the text.
    """
    if kind == "PNG":
        return {"pnginfo": png_info(text)}
    inside = exif(text) if kind in ("JPEG", "WEBP") else b""
    if kind == "JPEG" and len(inside) > LARGEST_EXIF:
        warnings.warn(f"a JPEG file has no room for settings of {len(text)} characters: they are left out", stacklevel=3)
        inside = b""
    return {"exif": inside} if inside else {}


def read_text(path: str | os.PathLike[str]) -> str:
    """The text of settings in a picture's file; UserError if there is none, or it can't be read."""
    path = pathlib.Path(path).expanduser()
    try:
        check_regular(path)
        with path.open("rb") as file:
            return from_file(file, path)
    except OSError as error:
        raise UserError(f"{path}: can't be read ({error.strerror or error})") from None


def from_file(file: BinaryIO, name: str | os.PathLike[str]) -> str:
    """The same of an open file, which messages call by `name`"""
    try:
        png = file.read(8) == SIGNATURE
        text = (from_png(file) if png else None) or from_exif(file, name)
    except UserError:
        raise
    except (ValueError, zlib.error) as error:
        raise UserError(f"{name}: the settings inside are damaged ({error})") from None
    if not text:
        where = f"a PNG text named {KEY}, or an EXIF comment" if png else "an EXIF comment"
        raise UserError(f"{name}: there are no settings inside ({where})")
    return text


def from_png(file: BinaryIO) -> str | None:
    """The text of the chunk named KEY, wherever it stands, or None. ValueError or zlib.error if it is damaged."""
    for _ in range(MOST_CHUNKS):
        header = file.read(8)
        if len(header) < 8:
            return None               # cut short, but whether pixels are complete doesn't matter here
        length, kind = struct.unpack(">I4s", header)
        if kind not in (b"tEXt", b"zTXt", b"iTXt"):
            file.seek(length + 4, 1)
            continue
        if length > LONGEST_TEXT:
            if file.read(len(KEY) + 1) == KEY.encode() + b"\0":
                raise ValueError(f"it has {length} bytes, at most {LONGEST_TEXT} are read")
            file.seek(length + 4 - len(KEY) - 1, 1)
            continue
        data, check = file.read(length), file.read(4)
        name, _, rest = data.partition(b"\0")
        if name == KEY.encode():
            if check != struct.pack(">I", zlib.crc32(kind + data)):
                raise ValueError("cut short or changed: the check sum is another")
            return decode_chunk(kind, rest)
    return None


def decode_chunk(kind: bytes, data: bytes) -> str:
    """What follows the name in a chunk of text → str"""
    if kind == b"tEXt":
        return data.decode("utf-8" if SLOPPY in data else "latin-1", "replace")
    if kind == b"zTXt":
        return inflate(data[1:]).decode("latin-1")
    deflated, data = data[:1] == b"\1", data[2:]
    text = data.split(b"\0", 2)[-1]   # after the language and the name in that language
    return (inflate(text) if deflated else text).decode("utf-8")


def inflate(data: bytes) -> bytes:
    """Deflated bytes → bytes; ValueError if they are too many."""
    machine = zlib.decompressobj()
    result = machine.decompress(data, LONGEST_TEXT)
    if machine.unconsumed_tail:
        raise ValueError(f"inflated it has more than {LONGEST_TEXT} bytes")
    if not machine.eof:
        raise ValueError("cut short")
    return result


def from_exif(file: BinaryIO, name: str | os.PathLike[str]) -> str | None:
    """The comment or the description in a picture's EXIF tables, or a GIF's comment; None without any."""
    from npdiffusion.pictures.images import look_into
    file.seek(0)
    with look_into(name, file) as image:
        exif = image.getexif()
        places = (exif.get_ifd(EXIF_TABLE).get(USER_COMMENT), exif.get(USER_COMMENT), exif.get(DESCRIPTION),
                  image.info.get("comment"))
    return next(filter(None, map(decode_comment, places)), None)


def decode_comment(comment: Any) -> str | None:
    """A comment, which says in 8 bytes how it is encoded, or a plain text → str, or None if it is neither"""
    if isinstance(comment, str):
        comment = comment.encode("utf-8", "replace")
    if not isinstance(comment, bytes) or len(comment) <= 8:
        return None
    if len(comment) > LONGEST_TEXT:
        raise ValueError(f"they have {len(comment)} bytes, at most {LONGEST_TEXT} are read")
    code, text = comment[:8], comment[8:]
    if code == b"UNICODE\0":          # UTF-16 of either byte order: the zeros of Latin letters tell which
        order = "be" if text[::2].count(0) >= text[1::2].count(0) else "le"
        return text.decode(f"utf-16-{order}").lstrip("\ufeff").rstrip("\0")
    return (text if code in (b"ASCII\0\0\0", bytes(8)) else comment).decode("utf-8").rstrip("\0")
