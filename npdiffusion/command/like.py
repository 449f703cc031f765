"""--like FILE: the settings inside a picture, as options of the command line.

What the command line names itself goes first. What can't be followed never ends the command, but is said, in a note each:
a setting without an option, a value that the option doesn't take, a model that isn't here, a picture to start from, and
what doesn't go together with the rest or with the model, see `Liked.suited`.
"""
from collections.abc import Callable
from dataclasses import dataclass, field

from npdiffusion.command.talk import one_line, printable, say
from npdiffusion.errors import UserError
from npdiffusion.pictures import settings_text
from npdiffusion.settings import ON_COMMAND_LINE, SETTINGS, Request, SettingError
from npdiffusion.settings.kinds import Unfit

# Settings that are left out together: a part of them would be a picture that nobody asked for.
TOGETHER = (("width", "height"), ("subseed", "subseed_strength"),
            ("hires", "hires_strength", "hires_steps", "hires_upscaler"), ("sampler",), ("schedule",))

MODELS_OWN = (("vae", "none"), ("vae", "automatic"))      # what the web interface calls the one inside the model


@dataclass
class Liked:
    """What was inside a file and can be followed, as far as that can be told without the model.

    path     of the file, for notes      pairs: {key: value} of its text
    found    {option: value}, among them None for a seed that is to be a random one
    said     notes that were made: each is made once
    """
    path: str
    pairs: dict
    found: dict
    said: set = field(default_factory=set)

    def suited(self, settings: dict, names: set, check: Callable) -> dict:
        """Settings without those of the file, `names`, that `check` refuses; a note says which, and why.

        check: raises UserError for {name: value} that can't be a picture. Raises it too, if that isn't the file's fault.
        """
        while True:
            try:
                check(settings)
                return settings
            except UserError as error:
                group = self.culprit(settings, names, check, error)
                if not group:
                    raise
                reason = error.reason(ON_COMMAND_LINE) if isinstance(error, SettingError) else str(error)
                self.note(group, reason)
                settings = {name: value for name, value in settings.items() if name not in group}

    @staticmethod
    def culprit(settings, names, check, error):
        """The names, of one group, without which `check` is content, or at least says something else; None without any"""
        there = names & settings.keys() - {"prompt"}     # what a group has beside that is the command line's
        groups = [tuple(name for name in group if name in there) for group in (*TOGETHER, *((name,) for name in SETTINGS))]
        groups.sort(key=lambda group: getattr(error, "setting", None) not in group)
        better = None
        for group in filter(None, groups):
            try:
                check({name: value for name, value in settings.items() if name not in group})
                return group
            except UserError as other:
                better = better or (group if str(other) != str(error) else None)
        return better

    def note(self, names, reason):
        """Say that a setting of the file, or several that belong together, is not followed."""
        written = {key.casefold(): key for key in self.pairs}
        keys = [written.get(key) for key in dict.fromkeys(settings_text.key_of(name).casefold() for name in names
                                                          if name in self.found)]
        what = ", ".join(f"{key}: {printable(one_line(self.pairs[key]))[:60]}" for key in filter(None, keys))
        self.say(f"{what or settings_text.key_of(names[0])} is not followed ({reason})")

    def say(self, line):
        """A note, which is made once."""
        if line not in self.said:
            self.said.add(line)
            say(f"{self.path}: {line}")


def settings_like(path, given):
    """What is inside a file and not among `given`, the options of the command line → Liked

    UserError if there are no settings inside, or the file can't be read.
    """
    from npdiffusion.pictures import text_inside
    text = text_inside.read_text(path)
    prompt, negative_prompt, pairs = settings_text.parse_parameters(text)
    texts, unknown = settings_text.to_options(pairs)
    if not pairs:
        raise UserError(f"{path}: there are no settings inside, only a text: {printable(one_line(text))[:60]}")
    notes = dict.fromkeys(unknown, "there is no such option here")
    if "Hires resize" in unknown:
        notes["Hires resize"] = ("the factor beside it is followed" if "hires" in texts else
                                 "hires fix makes both sides so many times as long: --hires 2")
    found = {"prompt": prompt, "negative_prompt": negative_prompt}
    for name, value in texts.items():
        if name not in given:
            try:
                found[name] = SETTINGS[name].kind.read(value) if name in SETTINGS else value
            except Unfit as error:
                notes[settings_text.key_of(name)] = error
    random = [name for name in ("seed", "subseed") if name in found and found[name] is None]
    found = {name: value for name, value in found.items() if name in random or (value is not None and value is not False)}
    check_models(found, given, notes)
    check_start(found, given, notes)
    upscaler = found.get("hires_upscaler")
    if upscaler and pairs.get("Hires upscaler", upscaler).casefold() != upscaler:
        notes["Hires upscaler"] = f"{upscaler}, the nearest that is offered, is taken"
    if "sampler" in given and "Timestep spacing" not in pairs:
        found.pop("timestep_spacing", None)              # it follows from the other program's sampler
    lines = [f"{key}{': ' * (key in pairs)}{printable(one_line(pairs.get(key, '')))[:60]} is not followed ({why})"
             for key, why in notes.items()]
    lines += [f"{settings_text.key_of(name)}: -1 stands for a random one" for name in random]
    for line in lines:
        say(f"{path}: {line}")
    return Liked(path, pairs, found)


def settings(path):
    """The settings inside a picture, from Python → arguments of `generate`, arguments of `load`

    What can't be followed is said on stderr. UserError as from `settings_like`.
    """
    liked = settings_like(path, {})
    model = {"path_or_id" if name == "model" else name: liked.found.pop(name, None) for name in settings_text.MODELS}
    found = {name: value for name, value in liked.found.items() if value is not None}        # a random seed is none
    return liked.suited(found, {*found}, lambda settings: Request.of(**settings)), model


def check_models(found, given, notes):
    """Take out a model, VAE or refiner that isn't in the list of those that are here. It is a name, whatever it looks like."""
    from npdiffusion.checkpoints import library
    for option, key in settings_text.MODELS.items():
        name = found.pop(option, None)
        if name not in (None, library.EMBEDDED) and (option, name.casefold()) not in MODELS_OWN:
            path = library.path_of(name, given.get("model_dir"))
            if path is None:
                found.pop("refiner_at" if option == "refiner" else None, None)
                notes[key] = f"it is not among those that `npdiffusion models` lists; --{option} names another"
            else:
                found[option] = path


def check_start(found, given, notes):
    """Take out what needs a picture to start from, or a mask, if that isn't given; and what doesn't go with one."""
    if "init_image" in given and found.pop("hires", None):
        notes["Hires upscale"] = "it is for pictures made from words alone"
    for name, row in SETTINGS.items():
        if name in found and row.needs and not any(other in found or other in given for other in row.needs):
            del found[name]
            mask = "mask_image" in row.needs
            option = "-i" if "init_image" in row.needs else SETTINGS[row.needs[0]].option
            what = "a mask, to be given with --mask-image" if mask else f"another picture, to be given with {option}"
            if "hires" not in row.needs:
                notes[row.key] = f"it was made from {what}"
            else:
                notes.setdefault(row.key, "it belongs to hires fix, whose factor isn't followed or isn't there")
