"""/v1: OpenAI's interface for pictures, and what the answers add to it.

    POST /v1/images/generations   JSON: prompt, n, size, output_format, stream, partial_images
    POST /v1/images/edits         multipart: image, mask beside these; what is transparent in the mask is painted
    GET  /v1/models

Settings of ours that it has no word for (steps, seed, negative_prompt, sampler, …) are taken by our names, beside the others:
`extra_body` of its Python package. Pictures are always in the answer (b64_json): a URL would need a second request. What
has no effect here is in "notes".
"""
import base64
import io
import time

from PIL import Image
from starlette.responses import JSONResponse
from starlette.routing import Route

from npdiffusion.errors import UserError
from npdiffusion.server import leading, limits, reading
from npdiffusion.server.gallery import encoded
from npdiffusion.server.job import DONE, FAILED
from npdiffusion.server.jobs_api import client
from npdiffusion.server.notes import collected
from npdiffusion.server.reading import apart
from npdiffusion.server.slow_answers import Events, Waiting
from npdiffusion.settings import SETTINGS, is_picture
from npdiffusion.settings.kinds import Choice, Sides, Switch, Unfit, Whole

NAME = "openai"
MOST_PICTURES, LONGEST_PROMPT, MOST_PARTIAL = 10, 32_000, 3
FORMATS = {"png": "PNG", "jpeg": "JPEG", "webp": "WEBP"}
OWN = {"prompt", "model", "n", "size", "response_format", "output_format", "output_compression", "stream", "partial_images",
       "user", "image", "image[]", "mask"}
IDLE = {"quality": ("auto", "standard"), "style": (), "background": ("auto", "opaque"), "moderation": ("auto", "low"),
        "input_fidelity": ()}         # without effect here, with values that ask for nothing
FILES = ("image", "image[]", "mask")


class Refused(UserError):
    """A request that can't be followed; `param` is the field."""
    def __init__(self, message, param, status=400, code=None):
        super().__init__(message)
        self.param, self.status, self.code = param, status, code


async def generations(request):
    async with reading.in_turn(request):
        return await make(request, await reading.an_object(request), "image_generation")


async def edits(request):
    async with reading.in_turn(request):
        async with request.form(max_files=4, max_fields=64, max_part_size=limits.LARGEST_BODY) as form:
            found = {}
            for name, value in form.multi_items():
                if name in found:
                    raise Refused(f"{name.removesuffix('[]')}: one is expected", name.removesuffix("[]"))
                found[name] = value if isinstance(value, str) else await value.read()
        return await make(request, await apart(read_form, found), "image_edit")


async def make(request, found, event):
    """The answer for what is asked for"""
    engine, notes = request.app.state.engine, []
    with collected(notes):
        asked, model, led, output = await apart(read_fields, found, engine.catalogue)
        job = await apart(engine.submit, asked, client(request, found.get("user")), NAME, model, False, None, None, led)
    job.notes[:0] = notes + [f"{name} has no effect here" for name, value in found.items()
                             if name in IDLE and value is not None and value not in IDLE[name]]
    if output["stream"]:
        return Events(stream(engine, job, output, event), lambda: engine.cancel(job))

    async def finish(job):
        if job.state != DONE:
            return 500, failure(engine, job)
        data = [{"b64_json": await apart(output_of, content, output)} for content, _ in job.results]
        return 200, {"created": int(time.time()), "data": data, "output_format": output["format"], "size": size_of(job),
                     "quality": "auto", "background": "opaque", "usage": usage(), "notes": job.notes,
                     "seeds": [record["seed"] for _, record in job.results]}
    return Waiting(engine, job, finish)


async def stream(engine, job, output, event):
    """Yields partial pictures as they come, and each picture when it is done"""
    sent, partial = 0, 0
    common = {"quality": "auto", "background": "opaque", "output_format": output["format"]}
    while True:
        version = job.version
        while sent < len(job.results):
            content, record = job.results[sent]
            sent, partial = sent + 1, 0
            yield f"{event}.completed", common | {
                "type": f"{event}.completed", "b64_json": await apart(output_of, content, output), "size": size_of(job),
                "created_at": int(time.time()), "usage": usage(), "notes": job.notes, "seed": record["seed"]}
        if job.over or engine.stopping:
            break
        wanted = output["partial_images"]
        image = None
        if partial < wanted and job.steps and job.step * (wanted + 1) >= job.steps * (partial + 1) and job.step < job.steps:
            image = await apart(engine.preview, job)
        if image is not None:
            yield f"{event}.partial_image", common | {
                "type": f"{event}.partial_image", "b64_json": await apart(output_of, image, output),
                "partial_image_index": partial, "created_at": int(time.time()), "size": "{}x{}".format(*image.size)}
            partial += 1
        await job.news(version, 10)
        if job.version == version:
            yield None, None                             # a comment, which keeps the connection
    if job.state != DONE:
        yield "error", failure(engine, job)


def failure(engine, job):
    """The body of an answer for what was not made"""
    message = reading.without_paths(job.error, engine.folders) if job.state == FAILED else "it was cancelled"
    return error(message, kind="server_error")


def output_of(picture, output):
    """A PNG file or a PIL image as a file of the format that is wanted, in base64"""
    if isinstance(picture, bytes):
        if output["format"] == "png":
            return base64.b64encode(picture).decode("ascii")
        picture = Image.open(io.BytesIO(picture))
    options = {} if output["format"] == "png" else {"quality": output["compression"]}
    return base64.b64encode(encoded(picture, FORMATS[output["format"]], **options)).decode("ascii")


def size_of(job):
    """"WxH" of the pictures that were made"""
    settings = job.results[0][1]["settings"]
    return f"{settings['width']}x{settings['height']}"


def usage():
    """Nothing is counted."""
    return {"input_tokens": 0, "output_tokens": 0, "total_tokens": 0,
            "input_tokens_details": {"text_tokens": 0, "image_tokens": 0}}


# ---- fields

def read_fields(found, catalogue):
    """{field: value} → Request, model's name, Led, what the answer is to be. UserError for what can't be followed."""
    prompt = found.get("prompt")
    if not isinstance(prompt, str) or len(prompt) > LONGEST_PROMPT:
        raise Refused(f"prompt: a text of at most {LONGEST_PROMPT} characters is needed", "prompt")
    settings = {name: value for name, value in found.items() if value is not None and name not in OWN and name not in IDLE}
    led = leading.take(settings)
    unknown = settings.keys() - SETTINGS.keys()
    if unknown:
        raise Refused(f"{min(unknown)[:60]!r} is unknown here", min(unknown)[:60])
    if found.get("response_format") not in (None, "b64_json"):
        raise Refused("response_format: b64_json is offered; a URL would need a second request", "response_format")
    if found.get("background") == "transparent":
        raise Refused("background: transparent ones are not offered", "background")
    settings |= {"prompt": prompt, "count": read_whole(found, "n", 1, MOST_PICTURES, 1)} | size(found.get("size"))
    request = reading.settings(settings, start(found))
    try:
        model = catalogue.model(found.get("model"))
    except UserError as mistake:
        raise Refused(str(mistake), "model", 404, "model_not_found") from None
    output = {"format": found.get("output_format") or "png", "stream": found.get("stream") or False,
              "compression": read_whole(found, "output_compression", 0, 100, 90),
              "partial_images": read_whole(found, "partial_images", 0, MOST_PARTIAL, 0)}
    if output["format"] not in FORMATS:
        raise Refused(f"output_format: {', '.join(FORMATS)} are offered", "output_format")
    if not isinstance(output["stream"], bool):
        raise Refused("stream: true or false is expected", "stream")
    return request, model, led, output


def read_whole(found, name, low, high, default):
    """A whole number, or its default; Refused for another value"""
    value = found.get(name)
    try:
        return default if value is None else Whole(low, high).check(name, value)
    except UserError as mistake:
        raise Refused(str(mistake), name) from None


def size(text):
    """"512x768" as width and height; None and "auto" leave them to the model"""
    if text in (None, "auto"):
        return {}
    sides = text.split("x") if isinstance(text, str) else []
    if len(sides) != 2 or not all(side.isdecimal() and len(side) < 6 for side in sides):
        raise Refused("size: auto, or a text like 512x768 is expected", "size")
    return {"width": int(sides[0]), "height": int(sides[1])}


def start(found):
    """The picture that is edited, and where: in a mask, or else in the picture, what is transparent"""
    files = [name for name in FILES if found.get(name) is not None]
    if not files:
        return {}
    if not all(isinstance(found[name], bytes) for name in files):
        raise Refused("image and mask are files in a form, for /v1/images/edits", "image")
    if "mask" in files and len(files) == 1:
        raise Refused("image is missing", "image")
    image = reading.from_file(found.get("image") or found["image[]"], "image")
    shown = reading.init_image(image)
    alpha = reading.from_file(found["mask"], "mask") if "mask" in files else image
    if "mask" in files and not has_alpha(alpha):
        raise Refused("mask: it has no transparent part, which is what would be painted", "mask")
    if not has_alpha(alpha):
        return {"init_image": shown}
    opacity = alpha.convert("RGBA").getchannel("A")
    return {"init_image": shown, "mask_image": opacity.point(lambda level: 255 - level)}


def has_alpha(image):
    """Whether some of a picture is transparent"""
    if "transparency" not in image.info and image.mode not in ("RGBA", "RGBa", "LA", "La", "PA"):
        return False
    return image.convert("RGBA").getchannel("A").getextrema()[0] < 255


def read_form(found):
    """{name: text or bytes} of a form → with the types that JSON would have"""
    values = {}
    for name, value in found.items():
        if isinstance(value, bytes) != (name in FILES):
            raise Refused(f"{name[:60]}: {'a file' if name in FILES else 'a text'} is expected", name[:60])
        values[name] = typed(name, value)
    return values


def typed(name, value):
    """A field of a form, by what the setting of that name takes"""
    kind = SETTINGS[name].kind if name in SETTINGS else KINDS.get(name)
    if kind is None or not isinstance(value, str) or isinstance(kind, (Choice, Sides)) or is_picture(name):
        return value
    try:
        return kind.read(value)
    except Unfit as mistake:
        raise Refused(f"{name}: {mistake}", name) from None


KINDS = {"n": Whole(1, MOST_PICTURES), "stream": Switch(), "partial_images": Whole(0, MOST_PARTIAL),
         "output_compression": Whole(0, 100)}


async def models(request):
    found = await apart(lambda: request.app.state.engine.catalogue.models)
    return JSONResponse({"object": "list", "data": [model_of(name) for name in found]})


async def one_model(request):
    name = request.path_params["name"]
    if name not in await apart(lambda: request.app.state.engine.catalogue.models):
        raise Refused(f"there is no model {name[:100]!r} here", "model", 404, "model_not_found")
    return JSONResponse(model_of(name))


def model_of(name):
    return {"id": name, "object": "model", "created": 0, "owned_by": "npdiffusion"}


def error(message, kind="invalid_request_error", param=None, code=None):
    """An error as it has it there"""
    return {"error": {"message": message, "type": kind, "param": param, "code": code}}


def refused(request, status, message, more=None, mistake=None):
    kind = "server_error" if status >= 500 else "invalid_request_error"
    found = error(message, kind, getattr(mistake, "param", None), getattr(mistake, "code", None))
    return JSONResponse(found, status, headers=more)


ROUTES = [Route("/v1/images/generations", generations, methods=["POST"]), Route("/v1/images/edits", edits, methods=["POST"]),
          Route("/v1/models", models), Route("/v1/models/{name:path}", one_model)]
