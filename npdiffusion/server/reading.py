"""What a request brings: JSON, pictures in base64 or as files, the settings inside a picture. Nothing here opens a path."""
import asyncio
import base64
import binascii
import concurrent.futures
import contextlib
import contextvars
import io
import json
import re

from PIL import ImageOps

from npdiffusion.errors import UserError, nearest
from npdiffusion.painting import masks
from npdiffusion.pictures import images, settings_text, text_inside
from npdiffusion.server import limits
from npdiffusion.settings import SETTINGS, Request, check_typed, is_picture
from npdiffusion.settings.kinds import Listed, Unfit

DATA = re.compile(r"data:[\w.+/-]{1,60};base64,", re.ASCII)
THREADS = concurrent.futures.ThreadPoolExecutor(2, "requests")
ABSOLUTE = re.compile(r"(?<![\w/.:<])(?:~?/|[A-Za-z]:[\\/])(?:[^\s:,;'\"()]+[\\/])+")       # of a path, all but its last part


class Refused(UserError):
    """A request that isn't followed, with the status that tells so."""
    def __init__(self, message, status):
        super().__init__(message)
        self.status = status


@contextlib.asynccontextmanager
async def in_turn(request):
    """Within, the body of a request may be read and understood: of large ones a few at a time, so that memory holds."""
    length = request.headers.get("content-length")
    if length is not None and int(length) <= limits.LARGE_BODY:
        yield
    else:
        async with request.app.state.large:
            yield


async def an_object(request):
    """A request's JSON, a dictionary. UserError if it is anything else."""
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != "application/json":
        raise UserError("JSON is expected, with Content-Type: application/json")
    content = await request.body()
    try:
        found = json.loads(content or b"{}", parse_constant=no_number)
    except (ValueError, RecursionError):
        raise UserError("the body is no JSON") from None
    if found is None:
        return {}
    if not isinstance(found, dict):
        raise UserError(f"an object in JSON is expected, not a {type(found).__name__}")
    return found


def no_number(word):
    raise ValueError(word)


def picture(text, name):
    """A file in base64, perhaps as a data: URL → PIL image, upright; UserError, which calls it by `name`, if it is none."""
    return from_file(content(text, name), name)


def content(text, name):
    """A file in base64, perhaps as a data: URL → bytes"""
    if not isinstance(text, str):
        raise UserError(f"{name}: a picture in base64 is expected")
    match = DATA.match(text)
    try:
        return base64.b64decode(text[match.end():] if match else text, validate=True)
    except (binascii.Error, ValueError):
        raise UserError(f"{name}: a picture in base64 is expected; paths and addresses are not followed") from None


def from_file(content, name):
    """A file's content → PIL image, upright"""
    return ImageOps.exif_transpose(images.from_bytes(content, name, limits.LARGEST_PICTURE))


def init_image(image):
    """A PIL image as `Request.init_image` takes it: what the command makes of its file"""
    return images.rgb(image)


def mask_image(image):
    """A PIL image as `Request.mask_image` takes it"""
    try:
        return masks.to_grey(image)
    except ValueError as error:
        raise UserError(f"mask_image: {error}") from None


def settings(found, pictures=None):
    """{name: JSON value} by our names → `settings.Request`. UserError for a name that there isn't, or what can't be.

    Pictures are in base64: a path is never opened. None is as if it weren't there, and a seed of -1 is a random one.
    pictures: {"init_image": PIL image, …} that came another way
    """
    values = dict(pictures or {})
    for name, value in found.items():
        if name not in SETTINGS:
            raise UserError(f"{name[:60]!r} is no setting of a picture{nearest(name, SETTINGS, ', did you mean {}?')}")
        if value is None or (name in ("seed", "subseed") and value == -1):
            continue
        if is_picture(name):
            made = mask_image if name == "mask_image" else init_image
            several = value if isinstance(value, list) else [value]
            if len(several) > limits.MOST_LEADING:
                raise limits.TooMuch(f"{name}: {len(several)} pictures are given, at most {limits.MOST_LEADING} are taken")
            value = tuple(made(picture(each, name)) for each in several)
            value = value if isinstance(SETTINGS[name].kind, Listed) else one(value, name)
        values[name] = value
    if not isinstance(values.get("outpaint", ""), (str, dict)):
        raise UserError("outpaint: a text like left=64,right=64 is expected")
    request = Request(**{"prompt": ""} | values)
    check_typed(request, values)
    return request


def one(values, name):
    """The only one of some values; UserError if there are more, or none"""
    if len(values) != 1:
        raise UserError(f"{name}: one picture is expected")
    return values[0]


def inside(content, name="picture"):
    """The settings inside a picture's file → {name: value} by our names, {key: text} as they stand, lines that say what
    can't be followed, the whole text

    UserError if there are none.
    """
    text = text_inside.from_file(io.BytesIO(content), name)
    prompt, negative_prompt, pairs = settings_text.parse_parameters(text)
    texts, unknown = settings_text.to_options(pairs)
    found, left = {"prompt": prompt, "negative_prompt": negative_prompt}, []
    left += [f"{key}: {value}"[:100] for key, value in unknown.items()]
    for key, value in texts.items():
        try:
            found[key] = SETTINGS[key].kind.read(value) if key in SETTINGS else value
        except Unfit as error:
            left.append(f"{settings_text.key_of(key)}: {error}")
    return {key: value for key, value in found.items() if value is not None}, pairs, left, text


def text_of(content):
    """The text of settings inside a picture's file, or "" """
    try:
        return text_inside.from_file(io.BytesIO(content), "picture")
    except UserError:
        return ""


def without_paths(message, folders=()):
    """A message for people on this machine as one for a client: names of files without the folders that they are in"""
    text = str(message)
    for folder in folders:
        text = text.replace(folder.rstrip("/") + "/", "").replace(folder, "…")
    return ABSOLUTE.sub("", " ".join(text.split()))[:500]


def encoded(image, format="PNG", **options):
    """A PIL image as a file in base64"""
    file = io.BytesIO()
    image.save(file, format=format, **options)
    return base64.b64encode(file.getvalue()).decode("ascii")


async def apart(function, *arguments):
    """Call what takes its time in another thread. Few of them: more would only wait for one another, and for Python's lock."""
    inside = contextvars.copy_context().run
    return await asyncio.get_running_loop().run_in_executor(THREADS, inside, function, *arguments)
