"""A look inside a picture: for each word of its prompt a map of where it was looked at, to be laid over the picture.

The picture is made once more from the settings in the manifest, while its attention is watched (study/attention.py). The whole
report is the page that --inside writes: it is kept as a text, and shown without any right to ask the server.
"""
import numpy as np
from PIL import Image

from npdiffusion.errors import UserError
from npdiffusion.server import reading
from npdiffusion.settings import SETTINGS, Request
from npdiffusion.study.attention import Recorder
from npdiffusion.study.looking import finish, look_at
from npdiffusion.study.making import make
from npdiffusion.study.report import page

COLOUR, DARKEST = (255, 84, 20), 225  # of a map, and its opacity where a word was looked at most
MARKS = "strength", "control_scale", "ip_scale", "t2i_scale"         # of pictures that were made from, or led by, another one
MOST_KEPT, MOST_REPORTS = 50, 5       # pictures whose maps, and whose reports, are in memory
POLICY = ("default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'unsafe-inline'; base-uri 'none'; "
          "form-action 'none'; frame-ancestors 'none'; sandbox allow-scripts allow-downloads")      # of a report's answer


def request_of(line):
    """A line of the manifest → the request that makes its picture again. UserError if that needs another picture."""
    settings = {name: value for name, value in line.get("settings", {}).items() if name in SETTINGS}
    if any(settings.get(name) is not None for name in MARKS):
        raise UserError("this picture was made from another one, which isn't here any more")
    return Request(line["prompt"], line.get("negative_prompt") or "", **settings)


def look(pipeline, request, watcher):
    """Make a picture and see where its words are looked at → [{"word": …, "map": data: URL}], in the order of the prompt"""
    resolved = pipeline.resolve(request)
    recorder = Recorder(pipeline, resolved)

    def step(done, total, latents):
        recorder.step(done, total, latents)
        watcher.step(done, total, latents)
    watcher.begins(1, 1, None, resolved, None)
    make(pipeline, resolved, [recorder.watch], step)
    found = recorder.finish()
    return [{"word": word.text, "map": "data:image/png;base64," + reading.encoded(tinted(found.averages()[column]))}
            for column, word in enumerate(found.words) if word.kind == "token"]


def report(pipeline, request, watcher):
    """The report of a picture, made anew → text of an HTML file"""
    resolved = pipeline.resolve(request)
    watcher.begins(1, 1, None, resolved, None)
    found = look_at(pipeline, resolved, watcher.step)
    watcher.check()
    return page(pipeline, finish(pipeline, found))


def tinted(shares):
    """A map (h, w) as a picture of one colour, the more opaque the larger"""
    spread = float(shares.max() - shares.min()) or 1.0
    opacity = ((shares - shares.min()) / spread * DARKEST).round().astype(np.uint8)
    image = Image.new("RGBA", opacity.shape[::-1], (*COLOUR, 0))
    image.putalpha(Image.fromarray(opacity))
    return image
