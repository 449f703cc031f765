"""A pipeline that paints in one colour, for tests of the command (fixture `pipeline`), and what such a command leaves."""
import types

import numpy as np
from PIL import Image

from npdiffusion.adapters.merging import Adapters
from npdiffusion.checkpoints.families import FAMILIES
from npdiffusion.diffusion import defaults
from npdiffusion.diffusion.schedules import NoiseSchedule
from npdiffusion.models.configs import CLIPTextConfig, UNetConfig, VAEConfig
from npdiffusion.pipeline import StableDiffusionPipeline
from npdiffusion.request import resolve

PROMPT = "a red apple"


class FakePipeline:
    """Remembers what it was asked for; `act` is called before each picture is returned.

    asked   {name: value} of each picture: its prompts and what its settings came to      made   the `Resolved` themselves
    """
    size = (128, 128)
    default_sampler = "pndm"
    adapters = Adapters()
    schedule = NoiseSchedule()
    vae = types.SimpleNamespace(config=VAEConfig())
    unet = types.SimpleNamespace(config=UNetConfig())
    text_encoder = types.SimpleNamespace(config=CLIPTextConfig())
    budget = refiner = ip_adapter = t2i_adapter = None
    controlnets = ()
    family = FAMILIES[0]
    source = "fake"
    texts = StableDiffusionPipeline.texts

    def __init__(self):
        self.loaded, self.asked, self.made, self.timings, self.act = [], [], [], {}, lambda: None

    def defaults(self, sampler=None):
        return defaults.defaults(self.schedule, sampler=sampler, advised=4.0)

    def load(self, *arguments, **settings):
        self.loaded.append((arguments, settings))
        return self

    def resolve(self, request, inputs=None):
        return resolve(request, self, inputs)

    def make(self, resolved, callback, preview):
        request = resolved.request
        self.asked.append({"prompt": request.prompt, "negative_prompt": request.negative_prompt} | resolved.settings())
        self.made.append(resolved)
        for step in range(1, resolved.planned + 1):
            callback(step, resolved.planned, np.zeros((1, 16, 16, 4), np.float32))
        self.act()
        self.timings = {"text": 0.25, "encoding": 0.125, "sampling": 2.0, "decoding": 0.5}
        return [Image.new("RGB", resolved.size, "red")]


def files(folder):
    """Names of what is in a folder, sorted."""
    return sorted(path.name for path in folder.iterdir())


def settings_in(path):
    """The settings text inside a PNG."""
    with Image.open(path) as image:
        return image.text["parameters"]
