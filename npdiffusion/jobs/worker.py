"""What a process of a Dask cluster does: it tells with what it would make pictures, and makes one at a time.

Processes are of two kinds. `npdiffusion worker` has loaded a model before it registers; processes that the driver started
(--cluster local:2) load the driver's with the first picture. A worker that was started without a model takes the driver's, if
it finds the same files: at the same path, as on a shared disk, or by the same id in its cache of Hugging Face's hub.
"""
import functools
import hashlib
import json
import os
import pathlib
import warnings

from npdiffusion.checkpoints import hub
from npdiffusion.errors import UserError
from npdiffusion.jobs.destinations import encoded
from npdiffusion.jobs.entries import Entry
from npdiffusion.jobs.listener import Listener
from npdiffusion.jobs.render import ended_by, render
from npdiffusion.settings import Request
from npdiffusion.version import __version__

ENDS = 1 << 20                        # bytes of either end of a file of weights by which it is known
PARTS = {"model": "path_or_id"} | {name: name for name in (           # ours → keyword of npdiffusion.load
    "unet", "vae", "tokenizer", "refiner", "image_encoder", "t2i_adapter")}
LISTED = {"ControlNet ": "control", "IP-Adapter ": "ip_adapter"}           # followed by a number: any of several

own = {}                              # of a process that `npdiffusion worker` started: "pipeline", "identity", "load", "free"
asked = {}                            # what drivers wanted and it has, as JSON → keywords of `load` in place of its own


class Unwanted(Exception):
    """Nobody wants the picture any more: the driver has gone, or another copy was first."""


class Unasked(Exception):
    """A worker was given a picture before it was asked with what it would make it, or although it doesn't fit."""


# ---- with what

def digest(path):
    """What files are known by: names, sizes and both ends of those with weights, or of all if none has"""
    path, found = pathlib.Path(path), hashlib.sha256()
    files = [path] if path.is_file() else sorted(path.rglob("*.safetensors")) or sorted(filter(pathlib.Path.is_file,
                                                                                              path.rglob("*")))
    for file in files:
        with file.open("rb") as content:
            size = content.seek(0, 2)
            content.seek(0)
            found.update(f"{'' if path.is_file() else file.relative_to(path)} {size} ".encode())
            found.update(content.read(ENDS))
            content.seek(max(0, size - ENDS))
            found.update(content.read())
    return found.hexdigest()[:16]


def identity_of(load, loras=()):
    """With what pictures are made → {"npdiffusion": version, "distributed": version, "dtype": …, "model": digest, …}

    load: keywords of npdiffusion.load      loras: names of those that prompts ask for
    """
    import distributed
    found = {"npdiffusion": __version__, "distributed": distributed.__version__, "dtype": load["dtype"] or "float32"}
    for part, place in places_of(load).items():
        path = next(paths(place), None)
        found[part] = place if path is None else digest(path)
    return found | loras_of(load["lora_dir"], loras)


def places_of(load):
    """{part: path or id of its files} of keywords of npdiffusion.load"""
    found = {part: str(load[key]) for part, key in PARTS.items() if load[key] is not None}
    return found | {f"{what}{number}": str(each) for what, key in LISTED.items()
                    for number, each in enumerate(load.get(key) or ())}


def paths(place):
    """Where files may be on this machine, if they are: at a path, or by an id in the hub's cache"""
    for path in (os.path.expanduser(place), hub.cached(place) if hub.ID.fullmatch(place) else None):
        if path is not None and os.path.exists(path):
            yield path


def loras_of(folder, names):
    """{"lora NAME": digest} of those that are there"""
    from npdiffusion.adapters.folder import find_adapter
    found = {}
    for name in names:
        try:
            found[f"lora {name}"] = digest(find_adapter(folder, name))
        except (UserError, OSError):
            pass
    return found


def introduce(wanted, places, loras):
    """What this process would make pictures with, to be compared with what is wanted, and paths at which a file was missed;
    (None, []) for a process that the driver started

    wanted: the driver's identity      places: {part: path or id of its files, where the driver has them}
    """
    if "identity" not in own:
        return None, []
    found, missed, instead = own["identity"] | loras_of(own["load"]["lora_dir"], loras), [], {}
    parts = [*PARTS, *(name for name in (*found, *wanted) if name.startswith(tuple(LISTED)))]
    if own["free"] and any(found.get(part) != wanted.get(part) for part in parts):
        there = {part: next((str(path) for path in paths(place) if digest(path) == wanted[part]), None)
                 for part, place in places.items()}
        missed = [places[part] for part, path in there.items() if path is None]
        if not missed:
            listed = {key: [path for part, path in there.items() if part.startswith(what)] for what, key in LISTED.items()}
            instead = {PARTS[part]: path for part, path in there.items() if part in PARTS} | {
                key: found for key, found in listed.items() if found}
            found = {name: value for name, value in found.items() if name not in parts} | {
                part: wanted[part] for part in there}
    if not difference(found, wanted):
        asked[json.dumps(wanted, sort_keys=True)] = instead
    return found, missed


def difference(found, wanted):
    """In what an identity differs from what is wanted, as text, or "" """
    if found is None:
        return "it is a worker of another program"
    return ", ".join(f"{name} {found.get(name, 'none')} in place of {wanted.get(name, 'none')}"
                     for name in dict.fromkeys([*wanted, *found]) if found.get(name) != wanted.get(name))


# ---- one picture

@functools.lru_cache(1)
def loaded(options):
    """The pipeline of npdiffusion.load with these options, as JSON, once for all pictures"""
    from npdiffusion.loading import load
    return load(**json.loads(options))


def pipeline_for(task):
    """The pipeline that makes a picture"""
    if "identity" not in own:
        return loaded(task["load"])
    wanted = json.dumps(task["wanted"], sort_keys=True)
    if wanted not in asked:
        raise Unasked
    return loaded(json.dumps(own["load"] | asked[wanted])) if asked[wanted] else own["pipeline"]


def make(task):
    """A picture → its file, the ending of its name, the record for the manifest, warnings"""
    import distributed
    worker = distributed.get_worker()
    pipeline, place, wanted = pipeline_for(task), Kept(task["ending"]), Wanted(worker, worker.get_current_task())
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always", UserWarning)
        render(pipeline, [Entry(Request.from_json(task["request"]))], 1, place, wanted, task["model"], task["vae"],
               task["metadata"], make=ended_by(wanted.check, pipeline.make))
    notes = [str(each.message) for each in said if issubclass(each.category, UserWarning)]
    return *place.file, place.record | {"worker": str(worker.name)}, notes


class Kept:
    """A place that keeps one picture as a file."""
    def __init__(self, ending):
        self.ending = ending

    def save(self, image, text, entry, record):
        self.file, self.record = encoded(image, text, self.ending), record


class Wanted(Listener):
    """Ends a picture that nobody wants; Dask can't end a thread."""
    def __init__(self, worker, key):
        self.worker, self.key = worker, key

    def step(self, done, total, latents):
        self.check()

    def check(self):
        """Raise Unwanted if nobody wants it any more."""
        task = self.worker.state.tasks.get(self.key)
        if task is None or task.state == "cancelled":
            raise Unwanted
