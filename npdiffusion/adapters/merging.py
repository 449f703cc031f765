"""Active adapters: weights are read from the checkpoint again, changed, and brought into the kernels' layout.

    W' = W + Σ ΔWᵢ(W)      each ΔW follows from the checkpoint's W alone, so the order of adapters does not matter

in float32, then packed as when the model was loaded. Nothing of the checkpoint is kept in memory for this: its tensors
know their place in the file. When an adapter goes, the weights that it changed are filled from the file as at first,
and are bit for bit what they were; only weights whose changes differ are touched, so using the same ones again is free.
"""
import math
import numbers
import re
import warnings

from npdiffusion.adapters import folder, lora, tags, textual_inversion
from npdiffusion.adapters.tags import Strength
from npdiffusion.checkpoints import bundled, safetensors_file
from npdiffusion.errors import UserError
from npdiffusion.kernels.arrays import as_float32
from npdiffusion.models import parameters


class Changed:
    """A tensor of the checkpoint with changes; like one, it has a shape, and calling it gives its numbers, float32."""
    def __init__(self, tensor, shape, changes):
        self.tensor, self.shape, self.changes = tensor, shape, changes
        self.name, self.path, self.dtype = tensor.name, tensor.path, tensor.dtype

    def __call__(self, into=None):
        weight = as_float32(self.tensor()).reshape(self.shape)        # an array of our own, like the differences
        (change, strength), *others = self.changes
        difference = change(weight, strength)
        for change, strength in others:
            difference += change(weight, strength)
        weight += difference
        return weight


def merged(model, path, strength):
    """{(part, parameter): tensor} that a LoRA changes, with it; model: checkpoints.whole_model.WholeModel"""
    adapter = Adapters(model.parts, family=model.family).open(folder.adapter_file(path))
    strength = as_strength(strength)
    return {(part, name): Changed(model.parts[part].tensors[name], model.parts[part].shapes[name],
                                  [(change, strength.unet if part == "unet" else strength.text_encoder)])
            for (part, name), change in adapter.changes.items()}


class Adapters:
    """The adapters that a pipeline has loaded, and those that are active.

    parts: {name: checkpoints.part.Part}, filled or still to be filled with `dtype`; models that come from no checkpoint,
        without parts, can have no adapters
    family: its row says which parts adapters change, and how they call them
    """
    def __init__(self, parts=None, dtype="float32", family=None):
        self.parts = {part: parts[part] for part in family.adapted} if parts else {}
        self.dtype, self.family = dtype, family
        self.folder = None            # where the names in prompts are looked up
        self.used = {}                # {name: LoRA} of those that the last picture was made with
        self.loaded = {}              # {name: (LoRA, Strength)} of those that were loaded by name
        self.words = []               # learnt words of the active ones
        self._opened = {}             # {path: LoRA}, the one last used at the end; as many as a prompt can name
        self._files = {path: safetensors_file.stamp(path) for part in self.parts.values() for path in part.files()}
        self._changes = {}            # {(part, parameter): [(function, strength)]} that the weights have now
        self._unsure = set()          # what was being changed when something went wrong

    def follow(self, prompt, negative_prompt=""):
        """Activate what the tags in a prompt ask for, beside what is loaded by name → the prompt without tags"""
        text, wanted = tags.take_tags(prompt)
        tags.note_literal(negative_prompt, "adapters act on the whole picture, so the prompt is their place")
        tagged = [(name, (self.named(name), strength)) for name, strength in wanted]
        self.put_in_force([*self.loaded.values(), *(adapter for _, adapter in tagged)])
        self.used = {name: adapter for name, (adapter, strength) in [*self.loaded.items(), *tagged] if any(strength)}
        return text

    def hashes(self):
        """What the settings in the last picture say of its adapters, as A1111 writes it: {key: text}"""
        pairs = (f"{re.sub('[:,]', '', name)}: {adapter.hash}" for name, adapter in self.used.items())
        return {"Lora hashes": ", ".join(pairs)} if self.used else {}

    def load(self, path, name, strength):
        """Load an adapter by a name and activate it → name"""
        path = folder.adapter_file(path)
        name = path.stem if name is None else name
        if name in self.loaded:
            raise UserError(f"an adapter {name!r} is loaded already: give this one another name")
        self._try(self.loaded | {name: (self.open(path), as_strength(strength))})
        return name

    def choose(self, names, strengths):
        """Activate exactly these adapters; each argument is one or a list."""
        names = [names] if isinstance(names, str) else list(names)
        strengths = list(strengths) if isinstance(strengths, (list, tuple)) else [strengths] * len(names)
        if len(names) != len(strengths):
            raise UserError(f"{len(names)} adapters are named, but {len(strengths)} strengths")
        strengths = dict(zip(names, strengths))
        unknown = strengths.keys() - self.loaded.keys()
        if unknown:
            raise UserError(f"no adapter {min(unknown)!r} is loaded; loaded are {', '.join(self.loaded) or 'none'}")
        self._try({name: (each, as_strength(strengths.get(name, 0))) for name, (each, _) in self.loaded.items()})

    def unload(self):
        """Back to the checkpoint's weights."""
        self._try({})
        self._opened.clear()

    def named(self, name):
        """The adapter that a prompt calls so; UserError if there is none, or it can't be used."""
        return self.open(folder.find_adapter(self.folder, name))

    def open(self, path):
        """The adapter in a file, which is opened again only if it has changed; warns of tensors that fit nowhere."""
        known = self._opened.pop(path, None)
        if not (known and known.stamp == safetensors_file.stamp(path)):
            known = self._read(path)
        self._opened[path] = known
        while len(self._opened) > tags.MOST:
            del self._opened[next(iter(self._opened))]
        return known

    def _read(self, path):
        if not self.parts:
            raise UserError(f"{path}: only models that were loaded from a checkpoint can take it")
        bundled.check(path, self.parts["unet"].model.config)
        shapes = {name: part.shapes for name, part in self.parts.items()}
        fitting = textual_inversion.fitting(self.family, {name: part.model for name, part in self.parts.items()})
        adapter = lora.read_lora(path, shapes, self.parts["unet"].model.config, self.family, fitting)
        if adapter.unmatched:
            warnings.warn(f"{path}: {len(adapter.unmatched)} of {adapter.count} tensors belong to no layer of the "
                          f"model and are left out: {parameters.some(adapter.unmatched)}", stacklevel=2)
        return adapter

    def put_in_force(self, adapters):
        """Give the models the weights that these adapters, [(LoRA, Strength)], make of the checkpoint's."""
        wanted, words = {}, [word for adapter, strength in adapters if any(strength) for word in adapter.words]
        for adapter, strength in adapters:
            for (part, name), change in adapter.changes.items():
                how_much = strength.unet if part == "unet" else strength.text_encoder
                if how_much:
                    wanted.setdefault((part, name), []).append((change, how_much))
        stale = {each for each in wanted.keys() | self._changes.keys() if wanted.get(each) != self._changes.get(each)}
        stale |= self._unsure
        if not stale:
            self.words = words
            return
        self._check_files(adapters)
        self._unsure |= stale
        try:
            self._fill(stale, wanted)
        except BaseException:
            self._fill(stale, self._changes)
            self._unsure.clear()
            raise
        self._changes, self.words = wanted, words
        self._unsure.clear()

    def _try(self, loaded):
        """Have these loaded, or leave everything as it is."""
        self.put_in_force(loaded.values())
        self.loaded = loaded

    def _fill(self, which, changes):
        """Give each (part, parameter) of `which` the weight that `changes` make of it."""
        for name, part in self.parts.items():
            here = [parameter for of, parameter in which if of == name]
            changed = {parameter: Changed(part.tensors[parameter], part.shapes[parameter], changes[name, parameter])
                       for parameter in here if (name, parameter) in changes}
            part.fill(self.dtype, here, part.tensors | changed)

    def _check_files(self, adapters):
        for path, before in [*self._files.items(), *((adapter.path, adapter.stamp) for adapter, _ in adapters)]:
            if safetensors_file.stamp(path) != before:
                raise UserError(f"{path}: it was changed or removed since it was loaded, but adapters need to read it "
                                "again: load it anew")


def as_strength(value):
    """A number, a Strength, or {"unet": number, "text_encoder": number}, as diffusers takes it → Strength"""
    strength = value
    if isinstance(value, dict) and value.keys() <= {*Strength._fields}:
        strength = Strength(**dict.fromkeys(Strength._fields, 1.0) | value)
    elif not isinstance(value, Strength):
        strength = Strength(value, value)
    if not all(isinstance(each, numbers.Real) and math.isfinite(each) for each in strength):
        raise UserError(f"{value!r} is no strength of an adapter: a number is, or one for each of "
                        f"{', '.join(Strength._fields)}")
    return Strength(*map(float, strength))
