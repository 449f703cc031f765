"""What the page shows, as JSON: numbers, pictures as data URIs, attention maps as bytes.

    maps       share p of a place's attention as the byte 255 √p, so that small shares keep their digits
    pictures   WebP; noise and latents as PNG, a pixel for each latent one, which the browser enlarges
"""
import base64
import io

import numpy as np
from PIL import Image

from npdiffusion.pictures.images import to_images
from npdiffusion.pictures.preview import Linear
from npdiffusion.pictures.settings_text import model_name
from npdiffusion.study.colours import colour_map, heat
from npdiffusion.study.strips import decoder, picture

PICTURE, FRAME, LATENTS, SMALL = 640, 256, 64, 192       # pixels a side, at most, of: the result, x̂₀, latents, differences
EXACT = {"float32": 1e-6, "bfloat16": 2**-9}          # of P V: a power at the edge of two bfloat16 is half a step off
MOST_MAPS = 4 << 20            # bytes of all maps; more are averaged over neighbouring steps


def contents(pipeline, look, title, command):
    """A `looking.Look` → a dictionary for JSON      title: of the page; command: a line that makes the picture again"""
    resolved = look.resolved
    plan = resolved.passes[-1].plan
    schedule = pipeline.schedule
    training = schedule.sigmas
    every = np.linspace(0, len(training) - 1, 120).round().astype(int)
    model = "the embedded one" if pipeline.embedded else model_name(str(pipeline.source))
    return {
        "title": title, "prompt": resolved.request.prompt, "negative": resolved.request.negative_prompt,
        "command": command, "model": model, "sampler": resolved.sampler, "guidance": resolved.guidance,
        "kind": {"epsilon": "ε", "v_prediction": "v", "sample": "x₀"}[plan.prediction_type],
        "equation": equation(plan.sampler.function),
        "settings": {name: str(value) for name, value in resolved.settings().items()},
        "image": uri(look.image, PICTURE, quality=90), "size": list(look.image.size),
        "words": words(look), "maps": maps(look.maps), "steps": steps(pipeline, look), "sums": look.sums,
        "schedule": {"t": every.tolist(), "sigma": training[every].tolist()},
        "without": without(look), "layers": look.trace.rows(), "notes": look.notes,
        "checks": checks(look, pipeline.adapters.dtype),
        "colours": "".join(f"{r:02x}{g:02x}{b:02x}" for r, g, b in colour_map()),
    }


def equation(function):
    """The lines of a sampler's docstring, its equation and where it comes from"""
    lines = (function.__doc__ or "").strip().splitlines()
    return [line.strip() for line in lines if line.strip()]


def words(look):
    """The columns of the maps, each with its share of all attention"""
    averages = look.maps.averages()
    return [{"text": word.text, "word": word.word, "kind": word.kind, "id": word.id, "weight": word.weight,
             "share": float(mean.mean()), "peak": float(mean.max())} for word, mean in zip(look.maps.words, averages)]


def maps(found):
    """Levels with their bytes, (spans, heads, words, h, w)"""
    levels, spans = found.levels, found.spans
    while sum(level.size for level in levels) > MOST_MAPS and len(spans) > 1:
        levels = [halved(level) for level in levels]
        spans = [(a[0], b[-1]) for a, b in zip(spans[::2], [*spans[1::2], spans[-1]])]
    return {"spans": spans, "heads": levels[0].shape[1], "levels": [
        {"h": level.shape[3], "w": level.shape[4], "layers": layers,
         "bytes": base64.b64encode((255 * np.sqrt(np.clip(level, 0, 1))).round().astype(np.uint8).tobytes()).decode()}
        for level, layers in zip(levels, found.layers)]}


def halved(level):
    """Neighbouring steps averaged; the last one stays by itself where their number is odd"""
    pairs = level[:len(level) // 2 * 2].reshape(-1, 2, *level.shape[1:]).mean(axis=1)
    return np.concatenate([pairs, level[-1:]]) if len(level) % 2 else pairs


def steps(pipeline, look):
    """Numbers of each step, and pictures of those that are shown"""
    linear, decode = Linear(pipeline.vae), decoder(pipeline, look.resolved)
    arrays = [seen.given - (0 if seen.without is None else seen.without) for seen in look.seen if seen.given is not None]
    loudest = max([1e-12, *(float(np.abs(array).max()) for array in arrays)])
    found = []
    for seen in look.seen:
        row = {"step": seen.number, "t": seen.t, "alpha": seen.alpha, "sigma": seen.sigma, "calls": seen.calls, **seen.norms}
        if seen.x is not None:
            row["x_picture"] = latents(linear, seen.x)
            row["x0_picture"] = uri(picture(decode, seen.x0), FRAME, quality=82)
            row["given_picture"] = latents(linear, seen.given / 2, offset=False)
            if seen.without is not None:
                row["without_picture"] = latents(linear, seen.without / 2, offset=False)
                row["added_picture"] = latents(linear, (seen.given - seen.without) / loudest * 2, offset=False)
        found.append(row)
    return found


def latents(linear, z, offset=True):
    """Latents (h, w, C) as a small PNG; differences are shown around grey, without the offset of the fit"""
    colours = z @ linear.weights + (linear.offset if offset else 0)
    return uri(to_images(np.nan_to_num(colours)[None])[0], LATENTS, format="PNG")


def without(look):
    """The picture without each word, and where it changes, on one scale"""
    largest = max((float(np.percentile(each.where, 99.5)) for each in look.without), default=1.0)
    return [{"word": each.word, "change": each.change, "picture": uri(each.image, SMALL, quality=80),
             "where": uri(Image.fromarray(heat(each.where, largest)), SMALL, quality=80)} for each in look.without]


def checks(look, dtype):
    """What the page says of itself at its foot → [{what, value, limit, fine}, ...]"""
    differences = [row["relative"] for row in look.sums if row["difference"] is not None]
    found = [check("each place's attention sums to 1; the largest difference", look.maps.rows, 1e-5),
             check("P V is what the kernel computed; the largest difference over (1 + largest score) · largest V",
                   look.maps.values, EXACT[dtype])]
    if differences:
        found.append(check("the steps' arithmetic gives the states of the sampler; the largest difference, relative",
                           max(differences), 1e-5))
    if look.same is not None:
        found.append({"what": "the picture is bit for bit that made without looking", "value": "yes" if look.same else "no",
                      "limit": "", "fine": look.same})
    return found


def check(what, value, limit):
    return {"what": what, "value": f"{value:.1e}", "limit": f"{limit:.0e}", "fine": bool(value <= limit)}


def uri(image, side, format="WEBP", quality=85):
    """A PIL image, at most `side` pixels wide and high, as a data URI"""
    if max(image.size) > side:
        image = image.copy()
        image.thumbnail((side, side), Image.Resampling.LANCZOS)
    file = io.BytesIO()
    image.save(file, format=format, **({"quality": quality} if format == "WEBP" else {"optimize": True}))
    return f"data:image/{format.lower()};base64,{base64.b64encode(file.getvalue()).decode()}"
