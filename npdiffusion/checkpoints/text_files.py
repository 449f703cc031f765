"""Small files, read within limits: texts that users write, JSON, vocabularies. Weights and pictures have their own readers."""
import json
import os
import stat

from npdiffusion.errors import UserError

LARGEST_JSON = 1 << 20          # bytes of a config.json


def check_regular(path):
    """UserError for a folder, a pipe (it would block for ever) or a device (it may never end); OSError if nothing is there"""
    if not stat.S_ISREG(os.stat(path).st_mode):
        raise UserError(f"{path}: not a file")


def read_text(path, largest):
    """The text of a file in UTF-8, lines end with "\\n"; UserError if it is missing, isn't text, or exceeds `largest` bytes."""
    try:
        check_regular(path)
        with open(path, "rb") as file:
            if os.fstat(file.fileno()).st_size > largest or len(content := file.read(largest + 1)) > largest:
                raise UserError(f"{path}: it has more than {largest >> 20} MB")
        return content.decode("utf-8-sig").replace("\r\n", "\n").replace("\r", "\n")
    except (FileNotFoundError, NotADirectoryError):
        raise UserError(f"{path}: no such file") from None
    except OSError as error:
        raise UserError(f"{path}: {error.strerror or error}") from None
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: not valid UTF-8 ({error.reason} at byte {error.start})") from None


def read_json(path, largest=LARGEST_JSON):
    """The dictionary in a JSON file; UserError as by `read_text`, or if it is anything else than that."""
    text = read_text(path, largest)
    try:
        content = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path}: not valid JSON ({error})") from None
    if not isinstance(content, dict):
        raise UserError(f"{path}: a dictionary was expected, found a {type(content).__name__}")
    return content
