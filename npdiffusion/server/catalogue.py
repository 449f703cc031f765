"""What a request may name: models, LoRAs, learnt words, ControlNets. Names of what is there, looked up and never joined to a
path."""
import os
import time

from npdiffusion.adapters import folder, tags
from npdiffusion.adapters.textual_inversion import LearntWords
from npdiffusion.checkpoints import bundled, library
from npdiffusion.errors import UserError, nearest
from npdiffusion.pictures.settings_text import model_name
from npdiffusion.server import leading

FRESH = 30                            # seconds for which a list is taken as it is


class Catalogue:
    """The folders of a server.

    model  what -m named, the model of requests that name none       model_dir, lora_dir, embedding_dir: as of the command
    control_dir  folder of ControlNets, IP- and T2I-Adapters, or None
    """
    def __init__(self, model=None, model_dir=None, lora_dir=None, embedding_dir=None, control_dir=None):
        self.given, self.model_dir, self.lora_dir, self.embedding_dir = model, model_dir, lora_dir, embedding_dir
        self.control_dir = control_dir
        self.default = model_name(model)
        self._lists = {}

    def forget(self):
        """Look into the folders again."""
        self._lists = {}

    def _list(self, name, make):
        known = self._lists.get(name)
        if known is None or time.monotonic() - known[0] > FRESH:
            known = self._lists[name] = time.monotonic(), make()
        return known[1]

    @property
    def models(self):
        """{name: family} of the models that can be loaded, the one of requests that name none first"""
        def make():
            usable = {entry.name: entry.family for entry in library.entries(self.model_dir) if entry.usable}
            return {self.default: usable.get(self.default, "")} | usable
        return self._list("models", make)

    @property
    def loras(self):
        """Names of the LoRAs, also of those that come with the embedded model"""
        def make():
            return sorted({*bundled.LORAS, *(folder.catalogue(self.lora_dir) if self.lora_dir else ())})
        return self._list("loras", make)

    @property
    def words(self):
        """{learnt word: shape of its vectors, or None if its file can't be read}"""
        def make():
            words = LearntWords()
            if self.embedding_dir:
                words.add(self.embedding_dir)
            return {word: shape(words, word) for word in sorted(words)}
        return self._list("words", make)

    @property
    def leaders(self):
        """{name: leading.Leader} of ControlNets and adapters of pictures, also of what comes with the embedded model"""
        return self._list("leaders", lambda: leading.leaders(self.control_dir))

    def model(self, name):
        """A name, or None or "" for the default → the name of a model that is here; UserError if there is none."""
        if not name:
            return self.default
        for same in (lambda known: known == name, lambda known: known.rpartition("/")[2] == name.removesuffix(".safetensors")):
            found = list(filter(same, self.models))
            if len(found) == 1:
                return found[0]
        raise UserError(f"there is no model {name[:100]!r} here; {nearest(name, self.models)}known are "
                        f"{', '.join(list(self.models)[:20])}")

    def place(self, name):
        """What `-m` would be given for a model of that name"""
        return self.given if name == self.default else name

    def check_adapters(self, prompt):
        """UserError for a LoRA in a prompt that isn't here."""
        for name, _ in tags.take_tags(prompt)[1]:
            folder.find_adapter(self.lora_dir, name)


def shape(words, word):
    """(n, X) of the vectors that a learnt word stands for, or None if its file can't be used"""
    try:
        return next(found.vectors.shape for found in words.split(word) if not isinstance(found, str))
    except (UserError, StopIteration):
        return None


def folders(catalogue):
    """The paths that answers must not tell, the longest first"""
    given = [catalogue.given, catalogue.model_dir, catalogue.lora_dir, catalogue.embedding_dir,
             catalogue.control_dir, os.getcwd(), os.path.expanduser("~")]
    return sorted({os.path.expanduser(path) for path in given if path and os.sep in str(path)}, key=len, reverse=True)
