"""The settings of a picture, as text inside its PNG file.

AUTOMATIC1111's web interface writes a text chunk named `parameters`, which other programs have learnt to read:

    a red apple
    Negative prompt: blurry
    Steps: 50, Sampler: DPM++ 2M, Schedule type: Karras, CFG scale: 7.5, Seed: 1, Size: 128x128, Model: v1-5, Version: …

The prompts are taken as they are, however many lines they have; the last line holds `key: value` pairs. A value with a
comma, a colon or a line break is written as a JSON string.
"""
import json

from PIL.PngImagePlugin import PngInfo

from . import __version__
from .errors import UserError

KEY = "parameters"
SAMPLER_NAMES = {                     # ours → that of the web interface, which knows PNDM as PLMS
    "ddpm": "DDPM", "ddim": "DDIM", "pndm": "PLMS",
    "euler": "Euler", "euler_a": "Euler a", "heun": "Heun", "dpm++2m": "DPM++ 2M",
}
SCHEDULE_NAMES = {"discrete": "Uniform", "karras": "Karras"}
WITHOUT_SCHEDULE = ("ddpm", "ddim", "pndm")      # they walk over the training's time steps: no choice
RNG_NAMES = {"torch": "CPU", "numpy": "NumPy"}   # "CPU" is torch's generator there, and no entry means a GPU's


def parameters(prompt, negative_prompt="", *, steps, sampler, schedule, guidance_scale, seed, width, height, model,
               strength=None, rng="torch"):
    """The text for one picture. Names of sampler, schedule and rng are ours; strength is None without an init image."""
    settings = {
        "Steps": steps,
        "Sampler": SAMPLER_NAMES.get(sampler, sampler),
        "Schedule type": None if sampler in WITHOUT_SCHEDULE else SCHEDULE_NAMES.get(schedule, schedule),
        "CFG scale": f"{guidance_scale:g}",
        "Seed": seed,
        "Size": f"{width}x{height}",
        "Model": model,
        "Denoising strength": None if strength is None else f"{strength:g}",
        "RNG": RNG_NAMES.get(rng, rng),
        "Version": f"npdiffusion {__version__}",
    }
    lines = [prompt, f"Negative prompt: {negative_prompt}"] if negative_prompt else [prompt]
    lines.append(", ".join(f"{key}: {quote(value)}" for key, value in settings.items() if value is not None))
    return "\n".join(lines).strip()


def quote(value):
    """Text of a value, as a JSON string where it would not end at the next comma otherwise."""
    text = str(value)
    return json.dumps(text, ensure_ascii=False) if any(c in text for c in ",:\n") else text


def read(path):
    """The text inside a PNG file; UserError if there is none, or the file is none."""
    from .images import look_into
    with look_into(path) as image:
        text = getattr(image, "text", {}).get(KEY)
    if not text:
        raise UserError(f"{path}: there are no settings inside (a PNG text named {KEY})")
    return str(text)


def png_info(text):
    """The chunk for Pillow's `save(pnginfo=…)`: tEXt, or iTXt where Latin-1 has not all the characters."""
    info = PngInfo()
    info.add_text(KEY, text.encode("utf-8", "replace").decode("utf-8"))      # names of files may hold lone surrogates
    return info
