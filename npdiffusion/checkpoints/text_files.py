"""Text files that users write, prompts and words to choose from, read within limits."""
import pathlib

from npdiffusion.errors import UserError


def read(path, largest):
    """The text of a file in UTF-8; UserError if it isn't there, isn't text, or has more than `largest` bytes."""
    path = pathlib.Path(path)
    try:
        if not path.is_file():
            raise UserError(f"{path}: {'not a file' if path.exists() else 'no such file'}")
        if path.stat().st_size > largest:
            raise UserError(f"{path}: it has more than {largest >> 20} MB")
        return path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: not valid UTF-8 ({error.reason} at byte {error.start})") from None
    except OSError as error:
        raise UserError(f"{path}: {error.strerror or error}") from None
