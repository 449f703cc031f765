"""/sdapi/v1: the interface of AUTOMATIC1111's web interface, for programs that speak it.

    POST txt2img, img2img {fields} → {"images": [base64], "parameters": {fields}, "info": JSON as a string}

Fields are read in sdapi_fields.py; how far it is, and how to end it, is in sdapi_progress.py. A picture is in the answer alone,
unless save_images asks for it to be kept.
"""
import base64
import json

from starlette.responses import JSONResponse
from starlette.routing import Route

from npdiffusion.diffusion import samplers
from npdiffusion.errors import UserError
from npdiffusion.kernels import machine
from npdiffusion.pictures import settings_text
from npdiffusion.server import reading
from npdiffusion.server.job import CANCELLED, FAILED
from npdiffusion.server.jobs_api import client
from npdiffusion.server.limits import LONGEST_NAME
from npdiffusion.server.notes import collected
from npdiffusion.server.reading import apart
from npdiffusion.server.sdapi_control import constant
from npdiffusion.server.sdapi_fields import NAME, read_fields
from npdiffusion.server.sdapi_progress import internal_progress, interrupt, pending_tasks, progress, skip, stamp
from npdiffusion.server.slow_answers import Waiting
from npdiffusion.settings import SETTINGS
from npdiffusion.version import __version__

UNKNOWN_HASH = ""


def fresh_options():
    """What GET options tells at first; requests without an own choice follow the first three."""
    return {"sd_model_checkpoint": None, "CLIP_stop_at_last_layers": 1, "randn_source": "GPU", "sd_vae": "Automatic",
            "samples_format": "png", "sd_checkpoint_hash": UNKNOWN_HASH, "eta_ddim": 0.0, "eta_ancestral": 1.0}


# ---- pictures

async def txt2img(request):
    return await make(request, False)


async def img2img(request):
    return await make(request, True)


async def make(request, image_to_image):
    """The answer with pictures"""
    engine, options = request.app.state.engine, request.app.state.options
    async with reading.in_turn(request):
        found, notes = await reading.an_object(request), []
        with collected(notes):
            asked, model, more, fields, led = await apart(read_fields, found, image_to_image, options, engine.catalogue.leaders)
            job = await apart(engine.submit, asked, client(request), NAME, model, bool(fields["save_images"]), None,
                              task_of(fields), led)
        job.notes[:0] = [*notes, *more]
    fields = {name: None if name in ("init_images", "mask") else value for name, value in fields.items()}
    fields["alwayson_scripts"] = {}                      # with their pictures

    async def finish(job):
        return await apart(answer, engine, job, fields, asked)
    return Waiting(engine, job, finish)


def answer(engine, job, fields, asked):
    """Status and answer for a job at its end"""
    if job.state == FAILED:
        return 500, error(500, reading.without_paths(job.error, engine.folders))
    made = job.results or [(engine.gallery.read(number), engine.gallery.manifest.lines[number]) for number in job.pictures]
    if job.state == CANCELLED:
        job.notes.append("interrupted")
    images = [base64.b64encode(content).decode("ascii") for content, _ in made] if fields["send_images"] else []
    return 200, {"images": images, "parameters": fields, "info": json.dumps(info(job, fields, asked, made))}


def info(job, fields, asked, made):
    """What is told of the pictures that were made, with the names that it has there"""
    records = [record for _, record in made]
    settings = records[0]["settings"] if records else {}
    texts = [reading.text_of(content) for content, _ in made]
    prompts, negatives = ([record[name] for record in records] for name in ("prompt", "negative_prompt"))
    subseeds = [record["settings"].get("subseed", record["seed"]) for record in records]
    return {
        "prompt": asked.prompt, "all_prompts": prompts, "negative_prompt": asked.negative_prompt,
        "all_negative_prompts": negatives, "seed": job.seed, "all_seeds": [record["seed"] for record in records],
        "subseed": subseeds[0] if subseeds else -1, "all_subseeds": subseeds,
        "subseed_strength": asked.subseed_strength or 0, "width": settings.get("width", asked.width or 0),
        "height": settings.get("height", asked.height or 0),
        "sampler_name": SETTINGS["sampler"].values[asked.sampler], "cfg_scale": asked.guidance_scale, "steps": asked.steps,
        "batch_size": fields["batch_size"], "restore_faces": False, "face_restoration_model": None,
        "sd_model_name": job.model, "sd_model_hash": UNKNOWN_HASH, "sd_vae_name": None, "sd_vae_hash": None,
        "seed_resize_from_w": -1, "seed_resize_from_h": -1, "denoising_strength": asked.strength or asked.hires_strength,
        "extra_generation_params": {}, "index_of_first_image": 0, "infotexts": texts, "styles": [],
        "job_timestamp": stamp(job.created), "clip_skip": (asked.clip_skip or 0) + 1,
        "is_using_inpainting_conditioning": False, "version": f"npdiffusion {__version__}", "comments": job.notes}


# ---- options

async def get_options(request):
    engine = request.app.state.engine
    return JSONResponse(request.app.state.options | {
        "sd_model_checkpoint": request.app.state.options["sd_model_checkpoint"] or engine.catalogue.default})


async def set_options(request):
    """Clients send back all that they were told, changed or not; what isn't an option here is passed over, as there."""
    found, options, catalogue = await reading.an_object(request), request.app.state.options, request.app.state.engine.catalogue
    if found.get("sd_model_checkpoint"):
        found["sd_model_checkpoint"] = await apart(catalogue.model, str(found["sd_model_checkpoint"]))
    layers = found.get("CLIP_stop_at_last_layers", 1)
    if not isinstance(layers, int) or not 1 <= layers <= 12:
        raise UserError("CLIP_stop_at_last_layers: a number from 1 to 12 is expected")
    if str(found.get("randn_source", "GPU")) not in ("GPU", "CPU", "NV"):
        raise UserError("randn_source: GPU, CPU and NV are offered")
    for name in ("sd_model_checkpoint", "CLIP_stop_at_last_layers", "randn_source"):
        if name in found:
            options[name] = found[name]
    return JSONResponse(None)


# ---- what there is

async def models(request):
    found = await apart(lambda: request.app.state.engine.catalogue.models)
    return JSONResponse([{"title": name, "model_name": name, "hash": None, "sha256": None, "filename": name, "config": None}
                         for name in found])


async def loras(request):
    found = await apart(lambda: request.app.state.engine.catalogue.loras)
    return JSONResponse([{"name": name, "alias": name, "path": name, "metadata": {}} for name in found])


async def embeddings(request):
    found = await apart(lambda: request.app.state.engine.catalogue.words)
    return JSONResponse({"skipped": {}, "loaded": {word: {
        "step": None, "sd_checkpoint": None, "sd_checkpoint_name": None, "shape": shape and shape[1],
        "vectors": shape and shape[0]} for word, shape in found.items()}})


async def sampler_list(request):
    return JSONResponse([{"name": theirs, "aliases": [ours], "options": {}}
                         for ours, theirs in SETTINGS["sampler"].values.items()])


async def scheduler_list(request):
    named = {"automatic": "Automatic"} | {
        "uniform" if name == "discrete" else name: SETTINGS["schedule"].values[name] for name in samplers.SCHEDULES}
    return JSONResponse([{"name": name, "label": label, "aliases": None, "default_rho": -1.0, "need_inner_model": False}
                         for name, label in named.items()])


async def upscalers(request):
    return JSONResponse([{"name": name, "model_name": None, "model_path": None, "model_url": None, "scale": 4}
                         for name in ("None", "Lanczos")])


async def png_info(request):
    """The settings inside a picture"""
    async with reading.in_turn(request):
        found = await reading.an_object(request)
        content = reading.content(found.get("image"), "image")
        text = await apart(reading.text_of, content)
    if not text:
        return JSONResponse({"info": "", "items": {}, "parameters": {}})
    prompt, negative_prompt, pairs = settings_text.parse_parameters(text)
    return JSONResponse({"info": text, "items": {"parameters": text},
                         "parameters": {"Prompt": prompt, "Negative prompt": negative_prompt} | pairs})


async def memory(request):
    total, free = machine.memory() or 0, machine.memory_available() or 0
    return JSONResponse({"ram": {"free": free, "used": total - free, "total": total}, "cuda": {"error": "unavailable"}})


async def refresh(request):
    request.app.state.engine.catalogue.forget()
    return JSONResponse(None)


def task_of(fields):
    """What a client calls its request, or None"""
    task = fields.get("force_task_id")
    if not isinstance(task, (str, type(None))) or len(task or "") > LONGEST_NAME:
        raise UserError(f"force_task_id: a text of at most {LONGEST_NAME} characters is expected")
    return task or None


async def scripts(request):
    """The extensions that are here, by their names there"""
    names = ["controlnet"] * (request.app.state.engine.catalogue.control_dir is not None)
    return JSONResponse({"txt2img": names, "img2img": names})


def error(status, message, kind="HTTPException"):
    """The body of a refusal, as it has it there"""
    return {"error": kind, "detail": message, "body": "", "errors": message if status >= 500 else ""}


def refused(request, status, message, more=None, mistake=None):
    return JSONResponse(error(status, message), status, headers=more)


EMPTY = ("sd-vae", "hypernetworks", "face-restorers", "realesrgan-models", "prompt-styles", "script-info")
GET = {"progress": progress, "options": get_options, "sd-models": models, "loras": loras, "embeddings": embeddings,
       "samplers": sampler_list, "schedulers": scheduler_list, "upscalers": upscalers, "memory": memory,
       "latent-upscale-modes": constant([{"name": "Latent"}]), "scripts": scripts,
       "cmd-flags": constant({}), **dict.fromkeys(EMPTY, constant([]))}
POST = {"txt2img": txt2img, "img2img": img2img, "interrupt": interrupt, "skip": skip, "options": set_options,
        "png-info": png_info, **dict.fromkeys(("refresh-checkpoints", "refresh-loras", "refresh-vae", "refresh-embeddings"),
                                              refresh)}
ROUTES = [Route(f"/sdapi/v1/{name}", endpoint, methods=[method])
          for method, endpoints in (("GET", GET), ("POST", POST)) for name, endpoint in endpoints.items()]
ROUTES += [Route("/internal/progress", internal_progress, methods=["POST"]), Route("/internal/pending-tasks", pending_tasks)]
