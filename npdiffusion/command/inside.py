"""A look inside the pictures of a command: what --inside asks for.

    find_inside   before the model is loaded: a file that can be written
    Inside        makes each picture while it looks, and writes a report once the picture is in its file
"""
import pathlib
import shlex

from npdiffusion.command.talk import print_line, say
from npdiffusion.errors import UserError
from npdiffusion.settings import SETTINGS
from npdiffusion.settings.run import OPTIONS

SUFFIXES = (".html", ".htm")
PICTURES = "init_image", "mask_image", "control_image", "ip_image", "t2i_image"
FILES = "model", "unet", "vae", "control", "ip_adapter", "ip_encoder", "t2i_adapter", "lora_dir", "embedding_dir"


def find_inside(options):
    """Complete the path of --inside; UserError for one that can't be written."""
    if options.inside is None:
        return
    from npdiffusion.pictures.images import check_folder
    path = pathlib.Path(options.inside)
    if path.name == "" or path.is_dir():
        raise UserError(f"--inside: {path} is a folder, a file was expected")
    if path.suffix and path.suffix.lower() not in SUFFIXES:
        raise UserError(f"--inside: {path.name}: a report is written as HTML, so the name should end in .html")
    if not path.parent.is_dir():
        raise UserError(f"--inside: there is no folder {path.parent}")
    options.inside = path if path.suffix else path.with_name(path.name + ".html")
    check_folder(path.parent)


class Inside:
    """Its `make` takes the place of the pipeline's; `write` writes the report of the picture that was made last."""
    def __init__(self, pipeline, options):
        self.pipeline, self.options, self.look = pipeline, options, None

    def make(self, resolved, callback=None, preview=None):
        from npdiffusion.study.looking import look_at
        self.look = look_at(self.pipeline, resolved, callback, preview)
        return self.look.trace.images

    def write(self):
        look, self.look = self.look, None
        if look is None:
            return
        from npdiffusion.pictures.images import save_text
        from npdiffusion.study.looking import finish
        from npdiffusion.study.report import page
        if look.affordable:
            say("looking inside: the picture once more, and without each of its words")
        for note in finish(self.pipeline, look).notes:
            say(note)
        print_line(save_text(page(self.pipeline, look, command_line(look.resolved, self.options)), self.options.inside))


def command_line(resolved, options):
    """The line that makes the picture again"""
    request = resolved.request
    words = ["npdiffusion", request.prompt]
    for name, value in ({"negative_prompt": request.negative_prompt or None} | resolved.settings()).items():
        row = SETTINGS[name]
        if value is None or (value == row.default and name != "seed"):
            continue
        written = row.kind.write(value)
        words.append(row.option)
        words += [] if value is True else [f"{written:g}" if isinstance(written, float) else str(written)]
    paths = [(SETTINGS[name].option, getattr(request, name)) for name in PICTURES]
    paths += [(OPTIONS[name].option, getattr(options, name)) for name in FILES]
    for option, given in paths:
        for path in given if isinstance(given, (list, tuple)) else [given]:
            words += [] if path is None else [option, str(path)]
    return shlex.join(words)
