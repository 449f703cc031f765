"""The ControlNet extension of AUTOMATIC1111's web interface: its part of requests, and its own /controlnet.

    alwayson_scripts.controlnet.args  [{image, module, model, weight, resize_mode, threshold_a, guidance_end, …}, …]
    POST /controlnet/detect           the map of a module, alone        GET model_list, module_list, control_types

A unit's model may be a ControlNet, a T2I-Adapter or an IP-Adapter, as there. Older names of fields are taken as well.
Modules are the maps that are made here without a network; maps are made at the size of the picture, as with pixel_perfect. What
would make another picture is refused by name. The maps are not sent after the pictures: /controlnet/detect gives them.
"""
import numpy as np
from PIL import Image
from starlette.responses import JSONResponse
from starlette.routing import Route

from npdiffusion.errors import UserError, nearest
from npdiffusion.pictures import maps
from npdiffusion.server import leading, reading
from npdiffusion.server.limits import MOST_LEADING
from npdiffusion.server.reading import Refused, apart

OLDER = {"input_image": "image", "guidance": "guidance_end", "lowvram": "low_vram", "guessmode": "control_mode",
         "mask_image": "mask", "input_mask": "mask"}         # names of fields → those since
FIELDS = {"enabled": True, "image": None, "mask": None, "module": "none", "model": "None", "weight": 1.0,
          "resize_mode": "Crop and Resize", "processor_res": -1, "threshold_a": -1, "threshold_b": -1, "guidance_start": 0.0,
          "guidance_end": 1.0, "control_mode": "Balanced", "pixel_perfect": False, "hr_option": "Both"}
SILENT = {"low_vram", "is_ui", "input_mode", "save_detected_map", "use_preview_as_input", "output_dir", "loopback",
          "batch_images", "generated_image", "inpaint_crop_input_image", "pulid_mode", "union_control_type"}     # nothing here
CHANGING = {"advanced_weighting", "effective_region_mask", "ipadapter_input", "mask"}     # that the picture would depend on
MODULES = {                           # theirs → ours, then [name, default, least, largest] of their thresholds
    "none": ("none",), "canny": ("canny", ["Low Threshold", 100, 1, 255], ["High Threshold", 200, 1, 255]),
    "scribble_xdog": ("scribble", ["XDoG Threshold", 32, 1, 64]), "tile_resample": ("tile", ["Down Sampling Rate", 1, 1, 8]),
    "blur_gaussian": ("blur", ["Sigma", 9, 1, 64]), "invert (from white bg & black line)": ("invert",)}
ALIASES = {"invert": "invert (from white bg & black line)", "scribble": "scribble_xdog", "tile": "tile_resample",
           "blur": "blur_gaussian"}
IP_MODULES = ("none", "ip-adapter-auto", "ip-adapter_clip_sd15", "ip-adapter_clip_sdxl", "ip-adapter_clip_sdxl_plus_vith",
              "clip_vision", "ip-adapter_clip_h", "ip-adapter_clip_g", "clip-vit-h (ipadapter)", "clip-vit-bigg (ipadapter)")
STRETCH, CUT, FILL = RESIZE_MODES = "Just Resize", "Crop and Resize", "Resize and Fill"
OLDER_MODES = {"scale to fit (inner fit)": CUT, "inner fit (scale to fit)": CUT, "envelope (outer fit)": FILL,
               "outer fit (shrink to fit)": FILL}
CONTROL_MODES = "Balanced", "My prompt is more important", "ControlNet is more important"
LARGEST = 1e9                         # of a threshold that is looked at; whole numbers may have thousands of digits
TYPES = {"Canny": ("canny", "canny"), "Scribble": ("scribble_xdog", "scribble"), "Tile": ("tile_resample", "tile"),
         "Blur": ("blur_gaussian", "blur")}        # control type → its module, and what is in names of its models


def read_units(arguments, known, size, picture, hires, notes):
    """args of the script, which may be one unit → settings of `Request`, Led; notes are added to

    known: catalogue's leaders      size: (width, height), or None      picture: that is started from, in base64, or None
    Raises Refused for what isn't offered.
    """
    units = arguments if isinstance(arguments, list) else [arguments]
    units = [unit for unit in (read(unit, notes) for unit in units if not isinstance(unit, bool)) if unit["enabled"]]
    if not units:
        return {}, leading.NONE
    if len(units) > MOST_LEADING:
        raise Refused(f"ControlNet: {len(units)} units are enabled, at most {MOST_LEADING} are taken", 422)
    led, modes = {kind: [] for kind in leading.KINDS}, set()
    for unit in units:
        if unit["model"] in (None, "", "None", "none"):
            raise Refused("ControlNet: a unit without a model; GET /controlnet/model_list lists them", 422)
        name = named(unit["model"], known)
        content = unit["image"] or picture
        if not content:
            raise Refused("ControlNet: a unit without an image", 422)
        if hires and unit["hr_option"] not in ("Both", "HiResFixOption.BOTH"):
            raise Refused(f"ControlNet: hr_option {unit['hr_option']!r:.40} isn't offered, a unit leads both passes", 422)
        led[known[name].kind].append((name, unit, reading.init_image(reading.picture(first(content), "image"))))
        modes.add(one_of(CONTROL_MODES, unit["control_mode"], "control_mode"))
    found = controlnets(led["control"], size, notes) if led["control"] else {}
    if CONTROL_MODES[1] in modes or len(modes) > 1:
        raise Refused("ControlNet: control_mode is offered as Balanced, or as ControlNet is more important, for all units", 422)
    if CONTROL_MODES[2] in modes:
        found["guess_mode"] = True
        notes.append("control_mode: the blocks' weights fall from 1 to 0.1 towards the first, as in diffusers' guess mode")
    if len(led["t2i_adapter"]) > 1:
        raise Refused(f"ControlNet: {len(led['t2i_adapter'])} units with a T2I-Adapter, there can be one", 422)
    for kind in "ip_adapter", "t2i_adapter":
        for _, unit, _ in led[kind]:
            check_adapter(kind, unit)
    if led["ip_adapter"]:
        found |= {"ip_image": tuple(image for *_, image in led["ip_adapter"]),
                  "ip_scale": tuple(unit["weight"] for _, unit, _ in led["ip_adapter"])}
    for _, unit, image in led["t2i_adapter"]:
        found |= {"t2i_image": image, "t2i_scale": unit["weight"], "t2i_end": unit["guidance_end"]}
    names = {kind: tuple(name for name, *_ in each) for kind, each in led.items()}
    return found, leading.Led(names["control"], names["ip_adapter"], next(iter(names["t2i_adapter"]), None))


def read(unit, notes):
    """A unit with today's names of its fields and the defaults of those that aren't there"""
    if not isinstance(unit, dict):
        raise Refused("ControlNet: args is a list of objects, one for each unit", 422)
    found = {OLDER.get(name, name): value for name, value in unit.items() if value is not None}
    if isinstance(found.get("image"), dict):                        # {"image": …, "mask": …}
        found |= {name: value for name, value in found["image"].items() if name in ("image", "mask") and value is not None}
    if isinstance(found.get("control_mode"), bool):                 # it was guessmode
        found["control_mode"] = CONTROL_MODES[2 * found["control_mode"]]
    unit = FIELDS | found
    if unit["enabled"]:
        for name, value in unit.items():
            if name in CHANGING and value not in (None, "", [], {}):
                raise Refused(f"ControlNet: {name} isn't offered", 422)
        notes += [f"ControlNet: {name} has no effect here" for name in found if name not in {*FIELDS, *SILENT, *CHANGING}]
    return unit


def first(image):
    """Of a list of pictures the only one"""
    if isinstance(image, list) and len(image) == 1:
        image = image[0]
    return image.get("image") if isinstance(image, dict) else image


def named(name, known):
    """The listed name of a unit's model, which may have a hash behind it: "canny [d14c016b]" """
    try:
        return leading.find(str(name).partition(" [")[0], None, known)
    except UserError as error:
        raise Refused(f"ControlNet: model: {error}", 422) from None


def one_of(names, value, field):
    """A choice by its name or number"""
    if isinstance(value, (int, float)) and not isinstance(value, bool) and value in range(len(names)):
        return names[int(value)]
    found = [name for name in names if str(value).casefold() == name.casefold()]
    if not found:
        raise Refused(f"ControlNet: {field} {value!r:.60}: {', '.join(names)} are known", 422)
    return found[0]


def controlnets(led, size, notes):
    """Settings of ControlNets: [(name, unit, picture)] in their order"""
    found = {"control_image": [], "control_from": [], "control_scale": [], "control_start": [], "control_end": []}
    for _, unit, image in led:
        made = made_from(unit, notes)
        mode = one_of(RESIZE_MODES, OLDER_MODES.get(str(unit["resize_mode"]).lower(), unit["resize_mode"]), "resize_mode")
        image, made = resized(image, made, mode, size)
        for name, value in zip(found, (image, made, unit["weight"], unit["guidance_start"], unit["guidance_end"])):
            found[name].append(value)
    return {name: tuple(values) for name, values in found.items()}


def made_from(unit, notes):
    """The map of a unit's module, as `control_from` has it; thresholds that there can't be are the default, as there"""
    module = str(unit["module"] or "none").lower()
    module = ALIASES.get(module, module)
    if module not in MODULES:
        raise Refused(f"ControlNet: module {module[:40]!r} isn't here{nearest(module, MODULES, ', did you mean {}?')}; GET "
                      "/controlnet/module_list lists those that are, and maps of other programs go with module none", 422)
    ours, *thresholds = MODULES[module]
    numbers = []
    for field, (_, default, low, high) in zip(("threshold_a", "threshold_b"), thresholds):
        value = unit[field]
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not abs(value) < LARGEST:
            raise Refused(f"ControlNet: {field}: a number is expected", 422)
        value = value if low <= value <= high else default
        if value != round(value):
            notes.append(f"ControlNet: {field}: {round(value)} in place of {value:g}")
        numbers.append(round(value))
    if ours != "none" and not unit["pixel_perfect"] and unit["processor_res"] not in (-1, 0, 512):
        notes.append("ControlNet: processor_res has no effect here: maps are made at the picture's size, as with pixel_perfect")
    return ours + (":" + "-".join(map(str, numbers)) if numbers else "")


def resized(image, made, mode, size):
    """A picture, and its map's name, so that `Crop and Resize`, which is ours, does what another mode would"""
    width, height = size
    sides = isinstance(width, int) and isinstance(height, int) and 0 < width <= 8192 and 0 < height <= 8192
    if mode == CUT or not sides or image.width * height == image.height * width:
        return image, made
    if mode == STRETCH:
        return image.resize(size, Image.Resampling.LANCZOS), made
    scale = min(width / image.width, height / image.height)
    inner = [max(1, round(side * scale)) for side in image.size]
    map_of = maps.make(made, image.resize(inner, Image.Resampling.LANCZOS))         # as there: the border is the map's
    levels = np.asarray(map_of)
    border = np.concatenate([levels[0], levels[-1], levels[:, 0], levels[:, -1]])
    filled = Image.new("RGB", size, tuple(int(level) for level in np.median(border, axis=0)))
    filled.paste(map_of, ((width - inner[0]) // 2, (height - inner[1]) // 2))
    return filled, "none"


def check_adapter(kind, unit):
    """Refused for what isn't offered of an IP- or T2I-Adapter."""
    module = str(unit["module"] or "none").lower()
    if module not in (IP_MODULES if kind == "ip_adapter" else ("none",)):
        raise Refused(f"ControlNet: module {module[:40]!r} with {leading.KINDS[kind]} isn't offered, only none: "
                      "/controlnet/detect makes maps", 422)
    if unit["guidance_start"] or (kind == "ip_adapter" and unit["guidance_end"] != 1):
        raise Refused(f"ControlNet: guidance_start and guidance_end with {leading.KINDS[kind]} aren't offered", 422)


# ---- /controlnet

async def model_list(request):
    """Names of ControlNets and adapters"""
    return JSONResponse({"model_list": [*(await apart(leaders, request))]})


def leaders(request):
    """{name: Leader} of what is there"""
    return request.app.state.engine.catalogue.leaders


async def module_list(request):
    """Maps that are made here, with their numbers"""
    return JSONResponse({"module_list": [*MODULES], "module_detail": {name: {"model_free": False, "sliders": sliders(name)}
                                                                      for name in MODULES}})


def sliders(module):
    """What a client shows of a module's numbers"""
    return [{"name": name, "value": default, "min": low, "max": high, "step": 1}
            for name, default, low, high in MODULES[module][1:]]


async def control_types(request):
    """Modules and models by what they are for, as far as their names say it"""
    known = [*(await apart(leaders, request))]
    found = {"All": typed([*MODULES], ["None", *known], "none")}
    for name, (module, part) in TYPES.items():
        found[name] = typed(["none", module], ["None", *(each for each in known if part in each.lower())], module)
    return JSONResponse({"control_types": found})


def typed(modules, models, module):
    return {"module_list": modules, "model_list": models, "default_option": module, "default_model": models[len(models) > 1]}


async def detect(request):
    """The map of pictures, alone"""
    async with reading.in_turn(request):
        found = await reading.an_object(request)
        return JSONResponse({"images": await apart(detected, found), "info": "Success"})


def detected(found):
    """Maps in base64"""
    pictures = found.get("controlnet_input_images") or found.get("controlnet_images") or []
    if not isinstance(pictures, list) or not 1 <= len(pictures) <= MOST_LEADING:
        raise Refused(f"No image selected: controlnet_input_images has 1 to {MOST_LEADING} of them", 422)
    unit = {name: found.get(f"controlnet_{name}", FIELDS[name]) for name in ("module", "threshold_a", "threshold_b")}
    made = made_from(FIELDS | unit, [])
    images = (reading.init_image(reading.picture(each, "controlnet_input_images")) for each in pictures)
    return [reading.encoded(maps.make(made, image)) for image in images]


def constant(value):
    """An endpoint that always answers the same"""
    async def get(request):
        return JSONResponse(value)
    return get


GET = {"model_list": model_list, "module_list": module_list, "control_types": control_types,
       "version": constant({"version": 3}), "settings": constant({"control_net_unit_count": MOST_LEADING})}
ROUTES = [Route(f"/controlnet/{name}", endpoint) for name, endpoint in GET.items()]
ROUTES += [Route("/controlnet/detect", detect, methods=["POST"])]
