"""/openapi.json: what can be asked for, made from the routes and from the tables that requests are read by."""
from dataclasses import replace

from starlette.responses import JSONResponse
from starlette.routing import Route

from npdiffusion.server import openai_api, sdapi_fields
from npdiffusion.server.limits import LARGEST_SIDE
from npdiffusion.settings import SETTINGS
from npdiffusion.settings.kinds import Choice, ClipSkip, Listed, Number, Picture, Seed, Side, Switch, Whole
from npdiffusion.version import __version__

TYPES = {str: "string", int: "integer", float: "number", bool: "boolean", list: "array", dict: "object"}
BASE64 = {"type": "string", "contentEncoding": "base64"}


def describe(routes):
    """Routes → the description, OpenAPI 3.1"""
    paths = {}
    for route in routes:
        path = route.path.replace(":int", "").replace(":path", "")
        for method in sorted(route.methods - {"HEAD"}):
            paths.setdefault(path, {})[method.lower()] = operation(route, path)
    return {"openapi": "3.1.0", "info": {"title": "npdiffusion", "version": __version__},
            "components": {"securitySchemes": {"bearer": {"type": "http", "scheme": "bearer"},
                                               "basic": {"type": "http", "scheme": "basic"}}},
            "security": [{}, {"bearer": []}, {"basic": []}], "paths": paths}


def operation(route, path):
    """One way to ask"""
    found = {"summary": (route.endpoint.__doc__ or path.rpartition("/")[2]).strip().partition("\n")[0],
             "responses": {"200": {"description": "the answer"}, "400": {"description": "what is wrong, in one line"}}}
    parameters = [{"name": name, "in": "path", "required": True,
                   "schema": {"type": "integer" if convertor.__class__.__name__.startswith("Int") else "string"}}
                  for name, convertor in route.param_convertors.items()]
    if parameters:
        found["parameters"] = parameters
    kind, schema = BODIES.get(path, (None, None)) if "POST" in route.methods else (None, None)
    if kind:
        found["requestBody"] = {"required": True, "content": {kind: {"schema": schema}}}
    return found


def setting(row):
    """The schema of a setting of a picture"""
    kind, found = row.kind, {"description": row.help}
    if isinstance(kind, Listed):
        return found | {"type": "array", "items": setting(replace(row, kind=kind.kind, help=""))}
    if isinstance(kind, Switch):
        found["type"] = "boolean"
    elif isinstance(kind, Picture):
        found |= BASE64
    elif isinstance(kind, Choice):
        found |= {"type": "string", "enum": list(kind.names)}
    elif isinstance(kind, Side):
        found |= {"type": "integer", "multipleOf": 8, "minimum": 8, "maximum": LARGEST_SIDE}
    elif isinstance(kind, Whole):
        found |= {"type": "integer", "minimum": kind.low, "maximum": kind.high}
    elif isinstance(kind, Number):
        found |= {"type": "number", "exclusiveMinimum" if kind.above else "minimum": kind.low, "maximum": kind.high}
    else:
        found["type"] = "integer" if isinstance(kind, (Seed, ClipSkip)) else "string"
    if row.default is not None:
        found["default"] = row.default
    return found


def theirs(fields):
    """The schema of fields with defaults, as AUTOMATIC1111's web interface has them"""
    return an_object({name: {"default": value} | ({} if value is None else {"type": TYPES[type(value)]})
                      for name, value in fields.items()})


def an_object(properties, required=(), more=True):
    return {"type": "object", "properties": properties, "required": list(required), "additionalProperties": more}


OURS = {name: setting(row) for name, row in SETTINGS.items()}
LED = {"control": {"type": "array", "items": {"type": "string"}, "description": "names of ControlNets, for control_image"},
       "ip_adapter": {"type": "array", "items": {"type": "string"}, "description": "names of IP-Adapters, for ip_image"},
       "t2i_adapter": {"type": "string", "description": "name of a T2I-Adapter, for t2i_image"}}
IMAGES = {"prompt": {"type": "string", "maxLength": openai_api.LONGEST_PROMPT}, "model": {"type": "string"},
          "n": {"type": "integer", "minimum": 1, "maximum": openai_api.MOST_PICTURES, "default": 1},
          "size": {"type": "string", "default": "auto"}, "output_format": {"type": "string", "enum": [*openai_api.FORMATS]},
          "output_compression": {"type": "integer", "minimum": 0, "maximum": 100}, "stream": {"type": "boolean"},
          "partial_images": {"type": "integer", "minimum": 0, "maximum": openai_api.MOST_PARTIAL},
          "response_format": {"type": "string", "enum": ["b64_json"]}, "user": {"type": "string"}}
FILES = {name: {"type": "string", "format": "binary"} for name in openai_api.FILES}
JSON = "application/json"
BODIES = {
    "/api/jobs": (JSON, an_object({"model": {"type": "string"}} | LED | OURS, ["prompt"], False)),
    "/api/tokens": (JSON, an_object({"prompt": {"type": "string"}}, ["prompt"])),
    "/api/settings": ("image/png", {}),
    "/sdapi/v1/txt2img": (JSON, theirs(sdapi_fields.TEXT_TO_IMAGE)),
    "/sdapi/v1/img2img": (JSON, theirs(sdapi_fields.IMAGE_TO_IMAGE)),
    "/controlnet/detect": (JSON, an_object({"controlnet_module": {"type": "string"}, "controlnet_input_images": {
        "type": "array", "items": BASE64}}, ["controlnet_input_images"])),
    "/sdapi/v1/png-info": (JSON, an_object({"image": BASE64}, ["image"])),
    "/sdapi/v1/options": (JSON, an_object({})),
    "/v1/images/generations": (JSON, an_object(IMAGES | LED | {name: row for name, row in OURS.items() if name not in IMAGES},
                                               ["prompt"], False)),
    "/v1/images/edits": ("multipart/form-data", an_object(FILES | IMAGES | {
        name: row for name, row in OURS.items() if name not in IMAGES and "image" not in name}, ["prompt"], False)),
}


async def show(request):
    """This description"""
    return JSONResponse(describe(request.app.routes))


ROUTES = [Route("/openapi.json", show)]
