"""--prompts FILE: many pictures, each line of a file with settings of its own.

    text    a red apple --steps 20 --seed 5            one prompt a line, options behind it as on the command line
    CSV     prompt,negative_prompt,steps,seed          the first line names options, an empty cell leaves its own out
            a red apple,blurry,20,5

What a line names goes before what the command line does. Only options that are a picture's own can be named: those that
its text of settings has, its prompts, the picture it starts from, and how many are made.
"""
import argparse
import csv
import io
import pathlib
import re
import shlex

from npdiffusion import metadata, textfiles
from npdiffusion.errors import UserError, nearest

PER_PICTURE = ("prompt", "negative_prompt", "init_image", "mask_image", "apply_overlay", "width", "height",
               "batch_count", *(setting.name for setting in metadata.SETTINGS
                                if setting.name not in ("size", "model", "vae", "inpaint_area")))
LARGEST_FILE = 16 << 20               # bytes
MOST_PICTURES = 100_000
FIRST_OPTION = re.compile(r"(?:^|\s)--[A-Za-z]")


def read(path, parser):
    """What each line asks for: [(where, {option: value})]. UserError with file and line for what makes no sense."""
    path = pathlib.Path(path)
    text = textfiles.read(path, LARGEST_FILE)
    known = options_of(parser)
    rows = []
    for number, pairs in (from_csv if path.suffix.lower() == ".csv" else from_lines)(text, path):
        where = f"{path}, line {number}"
        rows.append((where, {name: value for name, value in (convert(*pair, parser, known, where) for pair in pairs)}))
    if not rows:
        raise UserError(f"{path}: there is no prompt in it")
    if sum(row.get("batch_count", 1) for _, row in rows) > MOST_PICTURES:
        raise UserError(f"{path}: it asks for more than {MOST_PICTURES} pictures")
    return rows


def options_of(parser):
    """{how an option may be written in a file: its name} for those that a picture may have of its own"""
    actions = [action for action in parser._actions if action.dest in PER_PICTURE]
    return {plain(word): action.dest for action in actions
            for word in (*action.option_strings, *[action.dest] * (action.const is not False))}      # not apply_overlay


def plain(word):
    """A name as it is compared: "--CFG-scale" is cfg_scale."""
    return word.strip().lower().lstrip("-").replace("-", "_").replace(" ", "_")


def convert(word, text, parser, known, where):
    """→ name of the option, its value"""
    name = known.get(plain(word))
    if name is None:
        if plain(word) in {plain(option) for action in parser._actions for option in action.option_strings}:
            raise UserError(f"{where}: {word} is for all pictures, so it belongs on the command line")
        raise UserError(f"{where}: unknown option {word[:40]!r}{nearest(plain(word), known, ', did you mean {}?')}")
    try:
        return name, parser.value(name, text)
    except argparse.ArgumentTypeError as error:
        raise UserError(f"{where}: {word}: {error}") from None


def from_csv(text, path):
    """Line number, [(column, text)] of each line that isn't empty"""
    lines = csv.reader(io.StringIO(text), strict=True)
    try:
        columns = next(lines, [])
        twice = {plain(column) for column in columns if [plain(other) for other in columns].count(plain(column)) > 1}
        if twice:
            raise UserError(f"{path}, line 1: the column {sorted(twice)[0]} is there twice")
        for cells in lines:
            if len(cells) > len(columns):
                raise UserError(f"{path}, line {lines.line_num}: "
                                f"{len(cells)} cells, but there are {len(columns)} columns")
            if any(cell.strip() for cell in cells):
                yield lines.line_num, [(column, cell) for column, cell in zip(columns, cells) if cell.strip()]
    except csv.Error as error:
        raise UserError(f"{path}, line {lines.line_num}: not CSV ({error})") from None


def from_lines(text, path):
    """Line number, [(option, text)] of each line that isn't empty"""
    for number, line in enumerate(text.splitlines(), start=1):
        first = FIRST_OPTION.search(line)
        prompt, rest = (line[:first.start()], line[first.start():]) if first else (line, "")
        pairs = [("prompt", prompt.strip())] if prompt.strip() else []
        try:
            words = iter(shlex.split(rest))
        except ValueError as error:
            raise UserError(f"{path}, line {number}: {str(error).lower()} after the prompt") from None
        for word in words:
            if not word.startswith("-"):
                raise UserError(f"{path}, line {number}: "
                                f"{word[:40]!r} is left over: put a value of several words in quotes")
            option, given, value = word.partition("=")
            value = value if given else next(words, None)
            if value is None:
                raise UserError(f"{path}, line {number}: {option} has no value")
            pairs.append((option, value))
        if pairs:
            yield number, pairs
