"""What leads pictures beside their words: ControlNets, IP- and T2I-Adapters of --control-dir, called by their names, and the
embedded model's own ("scribble").

    {"control": ["canny", "depth"], "control_image": [base64, base64]}      a picture for each ControlNet, in their order
    {"ip_adapter": ["plus"], "ip_image": [base64]}                          likewise; one name and one picture need no list
    {"t2i_adapter": "sketch", "t2i_image": base64}                          one

They are loaded with the model, so that --max-memory counts what it counts for the command. A name is that of a file below the
folder, or of a folder in diffusers layout; tables of contents alone tell what it is.
"""
from dataclasses import asdict, dataclass, fields
from types import SimpleNamespace

from npdiffusion.adapters import folder
from npdiffusion.checkpoints import bundled, library
from npdiffusion.checkpoints.controlnets import open_controlnets
from npdiffusion.checkpoints.ip_adapters import open_ip_adapter
from npdiffusion.checkpoints.t2i_adapters import STEM, open_t2i_adapter
from npdiffusion.errors import UserError, nearest

KINDS = {"control": "a ControlNet", "ip_adapter": "an IP-Adapter", "t2i_adapter": "a T2I-Adapter"}    # as library.describe says
PICTURES = {"control": "control_image", "ip_adapter": "ip_image", "t2i_adapter": "t2i_image"}


LISTED = "control", "ip_adapter"       # of which there may be several


@dataclass(frozen=True)
class Led:
    """Names of what leads a picture; of the folder, once `found` has looked them up"""
    control: tuple = ()
    ip_adapter: tuple = ()
    t2i_adapter: str | None = None

    def given(self):
        """{kind: name or names} of those that there are"""
        return {kind: value for kind, value in asdict(self).items() if value}


NONE = Led()


@dataclass(frozen=True)
class Leader:
    """A file of the folder: what it is, one of KINDS, and for which family of models"""
    path: object
    kind: str
    family: str


def leaders(place):
    """{name: Leader} of what a folder has, or None, and of what comes with the embedded model"""
    found = {}
    for name, path in folder.catalogue(place).items() if place else ():
        family = library.describe(name, path).family
        kind = next((kind for kind, what in KINDS.items() if family.startswith(what)), None)
        whole = path.stem.startswith(STEM) and (path.parent / "config.json").is_file()         # in diffusers layout
        if kind and whole and "/" in name:
            name, path = name.rpartition("/")[0], path.parent
        if kind:
            found.setdefault(name, Leader(path, kind, family))
    for name, path in bundled.CONTROLNETS.items():
        found.setdefault(name, Leader(path, "control", "a ControlNet of the embedded model"))
    return found


def take(found):
    """Take the names out of {field: JSON value} → Led. UserError for what are none."""
    values = {each.name: found.pop(each.name, None) for each in fields(Led)}
    for kind in LISTED:
        names = values[kind] or []
        names = [names] if isinstance(names, str) else names
        if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
            raise UserError(f"{kind}: a list of names is expected")
        values[kind] = tuple(names)
    if not isinstance(values["t2i_adapter"], (str, type(None))):
        raise UserError("t2i_adapter: a name is expected")
    return Led(**values | {"t2i_adapter": values["t2i_adapter"] or None})


def looked_up(led, known):
    """Led → the same with names as they are listed. UserError for one that isn't there, or is of another kind.

    known: {name: Leader}
    """
    several = {kind: tuple(find(name, kind, known) for name in getattr(led, kind)) for kind in LISTED}
    return Led(**several, t2i_adapter=led.t2i_adapter and find(led.t2i_adapter, "t2i_adapter", known))


def find(name, kind, known):
    """The listed name that a name means, of that kind or, for None, of any; without suffix, perhaps without its folders"""
    plain = name.strip().removesuffix(".safetensors")
    for same in (lambda each: each == plain, lambda each: each.rpartition("/")[2] == plain):
        found = [each for each, leader in known.items() if same(each) and kind in (None, leader.kind)]
        if len(found) == 1:
            return found[0]
    here = [each for each, leader in known.items() if kind in (None, leader.kind)]
    what = KINDS.get(kind, "a ControlNet").partition(" ")[2]
    raise UserError(f"there is no {what} {name[:100]!r} here (--control-dir names the server's folder of them); "
                    f"{nearest(plain, here)}known are {', '.join(here[:20]) or 'none'}")


def places(led, known):
    """{keyword of npdiffusion.load: path or paths} of a Led whose names are listed"""
    return {kind: [known[name].path for name in value] if kind in LISTED else known[value].path
            for kind, value in led.given().items()}


def check_pairs(led, request):
    """UserError unless each has its picture, and each picture what it leads."""
    for kind, picture in PICTURES.items():
        names, pictures = getattr(led, kind), getattr(request, picture)
        count = len(names) if kind in LISTED else int(names is not None)
        given = len(pictures or ()) if kind in LISTED else int(pictures is not None)
        if count != given:
            raise UserError(f"{kind} and {picture} go together, a picture for each: {count} and {given} are given")


class Outlook:
    """A pipeline as it will be once what leads is loaded, for `request.resolve`: only tables of contents are read.

    UserError for what doesn't go with the model.
    """
    def __init__(self, pipeline, places):
        self.pipeline = pipeline
        unet, family = pipeline.unet, pipeline.family
        self.controlnets = open_controlnets(places.get("control"), unet.config, family)
        adapters = [open_ip_adapter(path, unet, family) for path in places.get("ip_adapter", ())]
        self.ip_adapter = SimpleNamespace(adapters=adapters) if adapters else None
        self.t2i_adapter = places.get("t2i_adapter") and open_t2i_adapter(places["t2i_adapter"], unet.config, family)

    def __getattr__(self, name):
        return getattr(self.pipeline, name)
