"""--prompts FILE: many pictures, each line of a file with settings of its own.

    text    a red apple --steps 20 --seed 5            one prompt a line, options behind it as on the command line
    CSV     prompt,negative_prompt,steps,seed          the first line names options, an empty cell leaves its own out
            a red apple,blurry,20,5

What a line names goes before what the command line does. Only options that are a picture's own can be named: those that
its text of settings has, its prompts, the picture it starts from, and how many are made.
"""
import csv
import io
import pathlib
import re
import shlex

from npdiffusion.checkpoints import text_files
from npdiffusion.errors import UserError, nearest
from npdiffusion.settings import SETTINGS
from npdiffusion.settings.kinds import SWITCHED, Listed, Switch, Unfit
from npdiffusion.settings.run import OPTIONS

LARGEST_FILE = 16 << 20               # bytes
MOST_PICTURES = 100_000
SHORT = {flag for row in SETTINGS.values() for flag in row.options if len(flag) == 2}
FIRST_OPTION = re.compile(rf"(?:^|\s)(?:--[A-Za-z]|(?:{'|'.join(sorted(SHORT))})(?=\s|=|\d))")


def read_prompts(path):
    """What each line asks for: [(where, {setting: value})]. UserError with file and line for what makes no sense."""
    path = pathlib.Path(path).expanduser()
    text = text_files.read_text(path, LARGEST_FILE)
    known = names()

    def find(what, word, number):
        """The setting that a word in a line of that number names"""
        return known.get(plain(word)) or refuse(what, word, known, f"{path}, line {number}")
    rows = []
    for number, found in (from_csv if path.suffix.lower() == ".csv" else from_lines)(text, path, find):
        where = f"{path}, line {number}"
        row = {}
        for name, word, text in found:
            value = convert(name, word, text, where)
            row[name] = row.get(name, ()) + value if isinstance(SETTINGS[name].kind, Listed) else value
        implied = {name: value for each in row.values() for name, value in getattr(each, "implied", {}).items()}
        rows.append((where, implied | row))
    if not rows:
        raise UserError(f"{path}: there is no prompt in it")
    if sum(row.get("count", 1) for _, row in rows) > MOST_PICTURES:
        raise UserError(f"{path}: it asks for more than {MOST_PICTURES} pictures")
    return rows


def names():
    """{how a setting may be written in a file: its name} for those that a picture may have of its own"""
    rows = [row for row in SETTINGS.values() if row.per_picture]
    return {plain(word): row.name for row in rows
            for word in (*row.options, *[row.name] * (row.kind != Switch(off=True)))}


def plain(word):
    """A name as it is compared: "--CFG-scale" is cfg_scale."""
    word = word.strip()
    return word if word in SHORT else word.lower().lstrip("-").replace("-", "_").replace(" ", "_")      # -W is not -w


def refuse(what, word, known, where):
    """UserError for an option that a picture can't have of its own, or that there isn't; what: option or column"""
    if plain(word) in {plain(option) for row in (*SETTINGS.values(), *OPTIONS.values()) for option in row.options}:
        raise UserError(f"{where}: {word} is for all pictures, so it belongs on the command line")
    raise UserError(f"{where}: unknown {what} {word[:40]!r}{nearest(plain(word), known, ', did you mean {}?')}")


def convert(name, word, text, where):
    """The value of a setting, which is called `word` in the file"""
    try:
        if text == "help" and SETTINGS[name].shown:
            raise Unfit("'help' is for the command line")
        return SETTINGS[name].kind.read(text)
    except Unfit as error:
        raise UserError(f"{where}: {word}: {error}") from None


def from_csv(text, path, find):
    """Line number, [(option, column, text)] of each line that isn't empty"""
    lines = csv.reader(io.StringIO(text), strict=True)
    try:
        columns = next(lines, [])
        while columns and not columns[-1].strip():               # of commas at the end
            columns.pop()
        names = [find("column", column, 1) for column in columns]
        twice = [column for i, column in enumerate(columns)
                 if names[i] in names[:i] and not isinstance(SETTINGS[names[i]].kind, Listed)]
        if twice:
            raise UserError(f"{path}, line 1: the column {plain(twice[0])} is there twice")
        for cells in lines:
            if any(cell.strip() for cell in cells[len(columns):]):
                raise UserError(f"{path}, line {lines.line_num}: "
                                f"{len(cells)} cells, but there are {len(columns)} columns")
            if any(cell.strip() for cell in cells):
                yield lines.line_num, [each for each in zip(names, columns, cells) if each[-1].strip()]
    except csv.Error as error:
        raise UserError(f"{path}, line {lines.line_num}: not CSV ({error})") from None


def from_lines(text, path, find):
    """Line number, [(option, how it is written, text)] of each line that isn't empty"""
    for number, line in enumerate(text.splitlines(), start=1):
        first = FIRST_OPTION.search(line)
        prompt, rest = (line[:first.start()], line[first.start():]) if first else (line, "")
        found = [("prompt", "prompt", prompt.strip())] if prompt.strip() else []
        try:
            words = shlex.split(rest)
        except ValueError as error:
            raise UserError(f"{path}, line {number}: {str(error).lower()} after the prompt") from None
        while words:
            word = words.pop(0)
            if not word.startswith("-"):
                raise UserError(f"{path}, line {number}: "
                                f"{word[:40]!r} is left over: put a value of several words in quotes")
            option, given, value = word.partition("=")
            if option[:2] in SHORT and len(option) > 2:          # -s5
                option, given, value = word[:2], True, word[2:].removeprefix("=")
            name = find("option", option, number)
            switch = isinstance(SETTINGS[name].kind, Switch)
            if not given and switch and not (words and words[0].lower() in SWITCHED):
                value = "true"
            elif not given:
                value = words.pop(0) if words else None
            if value is None:
                raise UserError(f"{path}, line {number}: {option} has no value")
            found.append((name, option, value))
        if found:
            yield number, found
