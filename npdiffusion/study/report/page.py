"""The file itself: page.html with the style, the script and what it shows put inside.

    {{name}}   in page.html is replaced once, by what stands for it; nothing else is touched
"""
import html
import importlib.resources
import json
import re

from npdiffusion.study.report.contents import contents
from npdiffusion.study.report.drawing import unet

HOLE = re.compile(r"\{\{(\w+)\}\}")


def page(pipeline, look, command=""):
    """A `looking.Look` → the text of an HTML file      command: the line that makes the picture again"""
    prompt = look.resolved.request.prompt
    found = contents(pipeline, look, f"Inside “{prompt}”", command)
    parts = {
        "title": html.escape(shortened(prompt)), "image": found["image"], "alt": html.escape(f"the picture: {prompt}"),
        "style": part("style.css"), "script": part("script.js"), "unet": unet(look.trace.layers),
        "data": in_script(found),
    }
    return HOLE.sub(lambda match: parts[match[1]], part("page.html"))


def part(name):
    """A file of this folder"""
    return importlib.resources.files(__package__).joinpath(name).read_text(encoding="utf-8")


def in_script(value):
    """JSON that can stand between <script> and </script>: no < ends it, no line separator breaks it"""
    text = json.dumps(value, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    return text.replace("<", "\\u003c").replace("\u2028", "\\u2028").replace("\u2029", "\\u2029")


def shortened(text, length=80):
    return text if len(text) <= length else text[:length - 1] + "…"
