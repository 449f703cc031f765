"""/api: the server's own interface, which the page speaks. Settings have the names of `settings.Request`.

    POST /api/jobs {"prompt": …, "steps": …}        → 202, a job         GET  /api/jobs/{id}         how far it is
    POST /api/jobs/{id}/cancel                                           GET  /api/jobs/{id}/events  the same, as it changes
    GET  /api/jobs            what waits, what was last                  GET  /api/pictures          what is in the folder
    GET  /api/pictures/{n}.png, /api/pictures/{n}/small                  GET  /api/info              what there is to choose
    POST /api/pictures/{n}/look, then GET: where its words were looked at         …/report: all of it, a page
    POST /api/tokens {"prompt"}   how a prompt is read                   POST /api/settings          those inside a picture

A job lives until it is over or cancelled, whoever sent it; it survives the server.
"""
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from npdiffusion.adapters import tags
from npdiffusion.diffusion import samplers
from npdiffusion.errors import UserError
from npdiffusion.server import leading, limits, looking, reading
from npdiffusion.server.job import QUEUED
from npdiffusion.server.notes import collected
from npdiffusion.server.reading import apart
from npdiffusion.server.slow_answers import Events
from npdiffusion.settings import SETTINGS, STEPS
from npdiffusion.text import editing, known_words
from npdiffusion.text.reading import read_prompt
from npdiffusion.version import __version__

LATEST = 30                           # jobs that are over, in the list
LONGEST_PROMPT = 5000                 # characters of which tokens are shown
FOREVER = {"cache-control": "private, max-age=31536000, immutable"}


async def make(request):
    """A new job"""
    async with reading.in_turn(request):
        found = await reading.an_object(request)
        engine, model = request.app.state.engine, found.pop("model", None)
        if not isinstance(model, (str, type(None))):
            raise UserError("model: a name is expected")
        led = leading.take(found)
        job = await apart(lambda: engine.submit(reading.settings(found), client(request), "api", model, led=led))
    return JSONResponse(view(engine, job), 202, headers={"location": f"/api/jobs/{job.id}"})


async def state(request):
    """How far a job is"""
    engine = request.app.state.engine
    return JSONResponse(view(engine, found_job(request)))


async def cancel(request):
    """End a job"""
    engine, job = request.app.state.engine, found_job(request)
    await apart(engine.cancel, job)
    return JSONResponse(view(engine, job))


async def events(request):
    """A job's state each time that it changes, with what the picture at work is going to be"""
    return Events(changes(request.app.state.engine, found_job(request)))


async def changes(engine, job):
    """Yields ("state", …) until the job is over"""
    while True:
        version = job.version
        preview = await apart(preview_url, engine, job)
        yield "state", view(engine, job) | ({"preview": preview} if preview else {})
        if job.over or engine.stopping:
            return
        await job.news(version, 2 if job.state == QUEUED else 5)


def preview_url(engine, job):
    """x̂₀ as a data: URL, or None"""
    image = engine.preview(job)
    return image and "data:image/webp;base64," + reading.encoded(image, "WEBP", quality=75, method=0)


async def everything(request):
    """Jobs that wait or are made, in their order, then those that were over last"""
    engine = request.app.state.engine
    active = [view(engine, job) for job in engine.active()]
    over = [view(engine, job) for job in await apart(engine.store.latest, LATEST)]
    return JSONResponse({"active": active, "over": over})


async def pictures(request):
    """The newest pictures of the folder"""
    before, count = (number(request.query_params.get(name)) for name in ("before", "count"))
    gallery = request.app.state.engine.gallery
    return JSONResponse({"pictures": await apart(gallery.latest, before, min(count or 60, 200))})


async def picture(request):
    """The file of a picture, its settings inside"""
    content = await apart(request.app.state.engine.gallery.read, request.path_params["number"])
    return Response(content, media_type="image/png", headers=FOREVER) if content else missing("picture")


async def small(request):
    """A thumbnail"""
    content = await apart(request.app.state.engine.gallery.small, request.path_params["number"])
    return Response(content, media_type="image/webp", headers=FOREVER) if content else missing("picture")


async def look(request):
    """A job that looks into a picture"""
    engine, number = request.app.state.engine, request.path_params["number"]
    if engine.gallery.path(number) is None:
        raise LookupError("picture")
    line = engine.gallery.manifest.lines[number]
    whole = request.url.path.endswith("/report")
    job = await apart(lambda: engine.submit(looking.request_of(line), client(request), "look", line.get("model"), False, number,
                                            whole=whole))
    return JSONResponse(view(engine, job), 202)


async def looked(request):
    """What a look into a picture has shown"""
    found = request.app.state.engine.looks.get(request.path_params["number"])
    return JSONResponse({"words": found}) if found is not None else missing("look into a picture")


async def report(request):
    """The report of a picture that was looked into, a page of its own"""
    found = request.app.state.engine.reports.get(request.path_params["number"])
    if found is None:
        missing("report of a picture")
    return Response(found, media_type="text/html", headers={"content-security-policy": looking.POLICY})


async def info(request):
    """What there is to choose from"""
    engine = request.app.state.engine
    return JSONResponse(await apart(choices, engine))


def choices(engine):
    catalogue, pipeline = engine.catalogue, engine.pipeline
    chosen = pipeline.defaults() if pipeline else None
    return {
        "version": __version__, "models": catalogue.models, "model": catalogue.default, "loaded": engine.loaded,
        "loras": catalogue.loras, "words": [*catalogue.words],
        "leaders": {name: [each.kind, each.family] for name, each in catalogue.leaders.items()},
        "samplers": {name: each.description for name, each in samplers.SAMPLERS.items()},
        "schedules": dict(samplers.SCHEDULES),
        "fitting": {name: list(each.schedules) for name, each in samplers.SAMPLERS.items()},
        "defaults": {"width": pipeline.size[0], "height": pipeline.size[1], "steps": chosen.steps,
                     "guidance_scale": chosen.guidance_scale, "sampler": pipeline.default_sampler} if pipeline else {},
        "help": {name: row.help for name, row in SETTINGS.items()},
        "most": {"side": limits.LARGEST_SIDE, "steps": limits.MOST_STEPS}}


async def tokens(request):
    """How a prompt is read: chunks of tokens, and words that the embedded model doesn't know"""
    found = await reading.an_object(request)
    prompt = found.get("prompt", "")
    if not isinstance(prompt, str) or len(prompt) > LONGEST_PROMPT:
        raise UserError(f"prompt: a text of at most {LONGEST_PROMPT} characters is expected")
    return JSONResponse(await apart(split, request.app.state.engine, prompt))


def split(engine, prompt):
    pipeline, notes = engine.pipeline, []
    if pipeline is None:
        raise UserError("a model is being loaded")
    with collected(notes):
        text, adapters = tags.take_tags(prompt)
        understood = read_prompt(text, editing.calls(None, STEPS), pipeline.tokenizer, "a1111", pipeline.words)
    first = next(iter(understood.chunks.values()))
    unknown = known_words.unknown(known_words.words(understood, pipeline.tokenizer)) if pipeline.embedded else {}
    return {"chunks": [[[pipeline.tokenizer.decode([each.id]) if each.word is None else each.word, round(each.weight, 4)]
                        for each in chunk] for chunk in first], "room": pipeline.tokenizer.room, "unknown": unknown,
            "adapters": [name for name, _ in adapters], "texts": len(understood.chunks), "notes": notes}


async def settings(request):
    """The settings inside a picture that is sent"""
    async with reading.in_turn(request):
        found, _, left, text = await apart(reading.inside, await request.body())
    for name in "vae", "refiner":
        found.pop(name, None)
    return JSONResponse({"settings": found, "not_followed": left, "text": text})


def view(engine, job):
    """What is told of a job"""
    ahead, seconds = engine.outlook(job)
    found = {name: getattr(job, name) for name in (
        "id", "api", "state", "model", "prompt", "seed", "count", "created", "started", "ended", "number", "step", "steps",
        "notes", "pictures")}
    found["error"] = job.error and reading.without_paths(job.error, engine.folders)
    return found | {"ahead": ahead, "seconds_left": round(seconds, 1)}


def found_job(request):
    """The job that a path names; UserError without one"""
    job = request.app.state.engine.find(request.path_params["id"])
    if job is None:
        raise LookupError("job")
    return job


def missing(what):
    raise LookupError(what)


def refused(request, status, message, more=None, mistake=None):
    """An error"""
    return JSONResponse({"error": message}, status, headers=more)


def number(text):
    return int(text) if text and text.isdecimal() and len(text) < 10 else None


def client(request, name=None):
    """Whom a request counts for: the name it gives itself, or else address and program"""
    name = request.headers.get("x-client") or name
    if isinstance(name, str) and name:
        return name[:64]
    peer = request.client.host if request.client else ""
    return f"{peer} {request.headers.get('user-agent', '')[:80]}"


ROUTES = [
    Route("/api/jobs", make, methods=["POST"]), Route("/api/jobs", everything),
    Route("/api/jobs/{id}", state), Route("/api/jobs/{id}/cancel", cancel, methods=["POST"]),
    Route("/api/jobs/{id}/events", events),
    Route("/api/pictures", pictures), Route("/api/pictures/{number:int}.png", picture),
    Route("/api/pictures/{number:int}/small", small),
    Route("/api/pictures/{number:int}/look", look, methods=["POST"]), Route("/api/pictures/{number:int}/look", looked),
    Route("/api/pictures/{number:int}/report", look, methods=["POST"]), Route("/api/pictures/{number:int}/report", report),
    Route("/api/info", info), Route("/api/tokens", tokens, methods=["POST"]),
    Route("/api/settings", settings, methods=["POST"]),
]
