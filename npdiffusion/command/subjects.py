"""npdiffusion subjects: what the embedded model can draw, as a list, or with -o as a sheet with a picture of each.

    animals         🐱 cat, 🐶 dog, 🦊 fox, …
    grounds         "on a red background", …, "at night"

The list is weights/words.json, which the model's recipe makes.
"""
import shutil
import sys
import textwrap

from npdiffusion.command.parser import Parser
from npdiffusion.command.talk import Progress, print_line
from npdiffusion.settings.run import OPTIONS

STEPS, SAMPLER = 10, "dpm++2m"        # for which weights/README.md has the figures
SIDE, COLUMNS = 64, 16                # pixels of a picture on the sheet, pictures in a row
MARGIN, UNBROKEN = 16, "\xa0"         # of a printed list: columns for the names of rows, the space within an entry


def parse(arguments):
    """The checked options; SystemExit with code 2 and a line on stderr if they are wrong."""
    parser = Parser(prog="npdiffusion subjects", usage="npdiffusion subjects [options]", allow_abbrev=False,
                    description="List what the embedded model can draw: subjects, grounds, colours, sizes, places. Words "
                                "that are not in the list mean nothing to it.")
    parser.add(OPTIONS["output"], help="draw a picture of each instead, on one sheet, a PNG file; takes a minute or two")
    for name in "threads", "backend", "verbose":
        parser.add(OPTIONS[name])
    return parser.read(arguments, positional="word")


def run(options):
    """Print the list, or draw the sheet."""
    if options.output is not None:
        return draw(options)
    for line in lines(shutil.get_terminal_size((120, 24)).columns, emoji=can_print("🐱")):
        print_line(line)
    return 0


def can_print(text):
    """Whether the output's encoding has the characters of a text."""
    try:
        return bool(text.encode(sys.stdout.encoding or "utf-8"))
    except UnicodeEncodeError:
        return False


def lines(width, emoji=True):
    """The list, no line longer than `width` characters, and with or without a picture of each subject."""
    from npdiffusion.checkpoints import bundled
    from npdiffusion.text import known_words
    table, everything = known_words.vocabulary(), known_words.subjects()
    tinted = [subject["name"] for subject in everything if subject["colours"]]
    rows = {kind: [f"{subject['emoji']} {subject['name']}" if emoji else subject["name"] for subject in subjects]
            for kind, subjects in table["subjects"].items()}
    rows |= {"grounds": [f'"{said}"' for said in table["grounds"].values()],
             "colours": [*colours(), f'as in "a blue apple", of {len(tinted)} subjects: {tinted[0]}', *tinted[1:]],
             "numbers": ['"two cats"', '"three owls"', '"a cat and a dog"', '"a cat on the left and a dog on the right"'],
             "sizes": ["small", "big"], "places": ["left", "right", "top", "bottom", "middle", "the corners"],
             "by an outline": [bundled.OPTIONS[0]], "in four steps": [bundled.OPTIONS[1]]}
    yield f"The embedded model draws {len(everything)} subjects on {len(table['grounds'])} grounds, 128x128 pixels:"
    for name, entries in rows.items():
        text = ", ".join(entry.replace(" ", UNBROKEN) for entry in entries)
        for line in textwrap.wrap(f"{name:<{MARGIN}}{text}", max(2 * MARGIN, width - MARGIN), subsequent_indent=" " * MARGIN):
            yield line.replace(UNBROKEN, " ")


def colours():
    """The colours that subjects can be shifted to, in the order of the grounds"""
    from npdiffusion.text import known_words
    shifted = {colour for subject in known_words.subjects() for colour in subject["colours"].split()}
    return [ground for ground in known_words.vocabulary()["grounds"] if ground in shifted]


def prompts():
    """{caption on the sheet: prompt}: each subject, each ground, each colour"""
    from npdiffusion.text import known_words
    shown = {subject["name"]: f"{subject['caption']} on a white background" for subject in known_words.subjects()}
    shown |= {said: f"a snowman {said}" for said in known_words.vocabulary()["grounds"].values()}
    return shown | {f"{colour} balloon": f"a {colour} balloon on a white background" for colour in colours()}


def draw(options):
    """The sheet, in a new file."""
    from npdiffusion.command.prepare import compile_kernels, set_up
    backend, _ = set_up(options)
    import npdiffusion
    from npdiffusion.pictures.images import save_png
    from npdiffusion.pictures.sheets import sheet
    pipeline, wanted, pictures = npdiffusion.load(threads=options.threads), prompts(), []
    if backend == "numba":
        compile_kernels("float32")
    with Progress("picture", len(wanted)) as progress:
        for number, prompt in enumerate(wanted.values(), start=1):
            image, = pipeline.generate(prompt, steps=STEPS, sampler=SAMPLER, seed=number)
            pictures.append(image.resize((SIDE, SIDE)))
            progress(number, len(wanted))
    print_line(save_png(sheet(pictures, list(wanted), COLUMNS), options.output))
    return 0
