"""The fields of AUTOMATIC1111's /sdapi/v1/txt2img and img2img, with its defaults, as a `settings.Request`.

What its field asks for here is asked for; what isn't offered is refused by name where the picture would be another thing
(scripts, unknown samplers), or noted in the answer where the web interface passes over it, too. A field at its default, null
or empty asks for nothing: clients send all of them.

Seeds are those of a GPU there, so random numbers are "a1111" here, unless randn_source says otherwise. Width and height that
aren't given are those of the model: 512 there is what Stable Diffusion v1 was trained on.
"""
from PIL import Image

from npdiffusion.diffusion import samplers
from npdiffusion.errors import UserError
from npdiffusion.pictures import settings_text
from npdiffusion.server import reading, sdapi_control
from npdiffusion.server.reading import Refused
from npdiffusion.settings import SETTINGS, Request

NAME = "sdapi"                        # of this interface, in jobs
BOTH = {
    "prompt": "", "negative_prompt": "", "seed": -1, "subseed": -1, "subseed_strength": 0, "steps": 50, "cfg_scale": 7.0,
    "width": None, "height": None, "batch_size": 1, "n_iter": 1, "sampler_name": None, "sampler_index": "Euler",
    "scheduler": None, "eta": None, "denoising_strength": 0.75, "override_settings": {}, "send_images": True,
    "save_images": False, "script_name": None, "script_args": [], "alwayson_scripts": {},
    "infotext": None, "force_task_id": None}
TEXT_TO_IMAGE = BOTH | {
    "enable_hr": False, "hr_scale": 2.0, "hr_upscaler": None, "hr_second_pass_steps": 0, "hr_resize_x": 0, "hr_resize_y": 0}
IMAGE_TO_IMAGE = BOTH | {
    "init_images": None, "mask": None, "mask_blur": 4, "inpaint_full_res": True, "inpaint_full_res_padding": 0,
    "inpainting_mask_invert": 0, "resize_mode": 0, "include_init_images": False}
# Without effect here, with the values beside null and empty ones at which they ask for nothing.
IDLE = {
    "restore_faces": (False,), "tiling": (False,), "s_churn": (0,), "s_tmin": (0,), "s_tmax": (0,), "s_noise": (1,),
    "s_min_uncond": (0,), "seed_resize_from_w": (0, -1), "seed_resize_from_h": (0, -1), "initial_noise_multiplier": (1,),
    "firstphase_width": (0,), "firstphase_height": (0,), "image_cfg_scale": (1.5,), "inpainting_fill": (1,),
    "refiner_switch_at": (0, 0.8), "disable_extra_networks": (False,), "mask_round": (True,), "mask_blur_x": (4,),
    "mask_blur_y": (4,), "include_init_images": (False,)}
SILENT = {"do_not_save_samples", "do_not_save_grid", "override_settings_restore_afterwards", "comments", "hr_upscaler",
          "hr_scale", "hr_second_pass_steps", "hr_resize_x", "hr_resize_y", "hr_scheduler", "hr_sampler_name",
          "hr_prompt", "hr_negative_prompt", "hr_checkpoint_name", "hr_cfg", "hr_distilled_cfg", "hr_additional_modules",
          "distilled_cfg_scale"}      # nothing about the picture, or hires fix's, which is noted where that is on
NAMES = {"guidance_scale": "cfg_scale", "count": "batch_size × n_iter", "strength": "denoising_strength", "sampler":
         "sampler_name", "schedule": "scheduler", "hires": "hr_scale", "hires_strength": "denoising_strength",
         "hires_steps": "hr_second_pass_steps", "padding_mask_crop": "inpaint_full_res_padding",
         "control_scale": "weight", "control_start": "guidance_start", "control_end": "guidance_end"}        # ours → theirs
INFOTEXT = {                          # key of the text inside a picture → field that it fills
    "Steps": "steps", "Sampler": "sampler_name", "Schedule type": "scheduler", "CFG scale": "cfg_scale", "Seed": "seed",
    "Variation seed": "subseed", "Variation seed strength": "subseed_strength", "Eta DDIM": "eta", "Mask blur": "mask_blur",
    "Denoising strength": "denoising_strength", "Masked area padding": "inpaint_full_res_padding", "Hires upscale": "hr_scale",
    "Hires upscaler": "hr_upscaler", "Hires steps": "hr_second_pass_steps", "Clip skip": "CLIP_stop_at_last_layers",
    "RNG": "randn_source"}
OVERRIDES = {"sd_model_checkpoint", "CLIP_stop_at_last_layers", "randn_source"}


def read_fields(found, image_to_image, options, leaders=None):
    """{field: JSON value}, and the options that the server keeps → Request, model's name or None, notes, all fields, Led

    leaders: {name: leading.Leader} of what ControlNet's units may name

    UserError for what isn't offered. Warnings are the caller's to collect.
    """
    known = IMAGE_TO_IMAGE if image_to_image else TEXT_TO_IMAGE
    told, left = infotext(found.get("infotext"), known)
    found = told | {name: value for name, value in found.items() if value is not None and name != "infotext"}
    found["override_settings"] = told["override_settings"] | check_type("override_settings", found["override_settings"], dict)
    fields = known | found
    notes = left + [f"{name} has no effect here" for name, value in found.items()
             if name not in known and name not in SILENT and asks(value) and value not in IDLE.get(name, ())]
    overrides = options | fields["override_settings"]
    notes += [f"override_settings: {name} has no effect here" for name, value in fields["override_settings"].items()
              if name not in OVERRIDES and not (name == "sd_vae" and value in (None, "None", "Automatic", "")) and asks(value)]
    units = scripts(fields)
    settings = sampling(fields, overrides, notes)
    settings |= {"prompt": fields["prompt"], "negative_prompt": fields["negative_prompt"], "steps": whole(fields["steps"]),
                 "guidance_scale": fields["cfg_scale"], "width": whole(fields["width"]), "height": whole(fields["height"]),
                 "count": product(fields)}
    settings |= seeds(fields)
    layers = whole(overrides.get("CLIP_stop_at_last_layers"))
    if layers is not None:
        settings["clip_skip"] = check_type("CLIP_stop_at_last_layers", layers, int) - 1
    if image_to_image:
        settings |= start(fields, notes)
    elif fields["enable_hr"]:
        settings |= hires(fields, notes)
    picture = next(iter(fields["init_images"] or ()), None) if image_to_image else None
    sides = settings["width"], settings["height"]
    leads, led = sdapi_control.read_units(units, leaders or {}, sides, picture, bool(fields.get("enable_hr")), notes)
    settings |= leads
    try:
        request = Request(**{name: value for name, value in settings.items() if value is not None})
    except UserError as error:
        raise UserError(renamed(str(error))) from None
    return request, overrides.get("sd_model_checkpoint"), notes, fields, led


def infotext(text, known):
    """The text inside a picture, or None → {field: value} for fields that aren't given, lines about what has no effect"""
    if text is None:
        return {"override_settings": {}}, []
    if not isinstance(text, str):
        raise Refused("infotext: a text is expected", 422)
    prompt, negative_prompt, pairs = settings_text.parse_parameters(text)
    found, overrides = {"prompt": prompt, "negative_prompt": negative_prompt}, {}
    width, _, height = pairs.pop("Size", "").partition("x")
    for key, value in (("width", width), ("height", height)):
        found |= {key: number(value)} if value else {}
    for key in pairs.keys() & INFOTEXT.keys():
        field, value = INFOTEXT[key], number(pairs[key])
        if field in OVERRIDES:
            overrides[field] = value
        elif field in known:
            found[field] = value
    if "hr_scale" in found:
        found["enable_hr"] = True
    left = [f"infotext: {key} has no effect here" for key in pairs
            if INFOTEXT.get(key) not in {*known, *OVERRIDES} and key not in settings_text.WITHOUT_INFLUENCE]
    return found | {"override_settings": overrides}, left


def number(text):
    """A text as the number that it spells, or as it is"""
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            pass
    return text


def asks(value):
    """Whether a value asks for anything"""
    return value not in (None, "", "None", 0, False, [], {})


def whole(value):
    """20.0 as 20"""
    return int(value) if isinstance(value, float) and value.is_integer() else value


def check_type(name, value, kind):
    """The value; UserError unless it is of a type"""
    if not isinstance(value, kind) or isinstance(value, bool):
        raise Refused(f"{name} is {value!r:.60}: it must be {'an object' if kind is dict else 'a whole number'}", 422)
    return value


def product(fields):
    """Pictures: batches one after the other"""
    size, batches = (check_type(name, whole(fields[name]), int) for name in ("batch_size", "n_iter"))
    if size < 1 or batches < 1:
        raise Refused("batch_size and n_iter must be at least 1", 422)
    return size * batches


def seeds(fields):
    """Seeds; -1 and "" are random"""
    found = {name: None if fields[name] in (-1, "") else whole(fields[name]) for name in ("seed", "subseed")}
    return found | {"subseed_strength": fields["subseed_strength"]} if fields["subseed_strength"] else {"seed": found["seed"]}


def sampling(fields, overrides, notes):
    """Sampler, schedule and whose random numbers, as the text inside a picture of theirs would say it"""
    name, schedule = fields["sampler_name"] or fields["sampler_index"], fields["scheduler"] or ""
    if not isinstance(name, str) or not isinstance(schedule, str):
        raise Refused("Sampler not found", 400)
    automatic = schedule.casefold() in ("", "automatic")
    name, behind = settings_text.split_sampler(name)             # "DPM++ 2M Karras", as older clients have it
    texts, _ = settings_text.to_options({
        "Sampler": name, "Schedule type": behind or "Automatic" if automatic else schedule,
        "RNG": str(overrides.get("randn_source") or "")})
    sampler, kind = (SETTINGS[each].kind.named(texts[each]) for each in ("sampler", "schedule"))
    if sampler is None:
        raise Refused(f"Sampler not found: {name[:60]!r}; GET /sdapi/v1/samplers lists them", 400)
    if kind is None:
        raise Refused(f"Scheduler not found: {schedule[:60]!r}; GET /sdapi/v1/schedulers lists them", 400)
    found = {"sampler": sampler, "schedule": kind, "rng": texts["rng"], "timestep_spacing": texts.get("timestep_spacing")}
    if kind not in samplers.SAMPLERS[sampler].schedules:
        if not automatic and schedule.casefold() != "uniform":
            notes.append(f"scheduler has no effect with {name}")
        found["schedule"] = None
    eta = fields["eta"]
    if eta is not None and samplers.SAMPLERS[sampler].takes_eta:
        found["eta"] = eta
    elif eta not in (None, 0, 1):
        notes.append(f"eta has no effect with {name}")
    return found


def scripts(fields):
    """What is asked of ControlNet, a list. Refused, if any other script is asked for that isn't switched off."""
    if fields["script_name"]:
        raise Refused(f"Script not found: {str(fields['script_name'])[:60]!r}; there are no scripts here", 422)
    units = []
    for name, script in check_type("alwayson_scripts", fields["alwayson_scripts"], dict).items():
        arguments = script.get("args") if isinstance(script, dict) else script
        if name.casefold() == "controlnet":
            units += arguments if isinstance(arguments, list) else [arguments or {"enabled": False}]
        elif arguments and not (isinstance(arguments, list) and arguments[0] is False):
            raise Refused(f"always on script {name[:60]!r} not found; ControlNet is the only one here", 422)
    return units


def hires(fields, notes):
    """Hires fix"""
    scale, upscaler = fields["hr_scale"], fields["hr_upscaler"] or "Latent"
    if fields["hr_resize_x"] or fields["hr_resize_y"]:
        size = f"{fields['width']}x{fields['height']}"
        texts, _ = settings_text.to_options({"Size": size, "Hires resize": f"{fields['hr_resize_x']}x{fields['hr_resize_y']}"})
        if "hires" not in texts:
            raise UserError("hr_resize_x, hr_resize_y: both sides have to grow alike, beside a width and height that are given")
        scale = float(texts["hires"])
    kind = SETTINGS["hires_upscaler"].kind.named(str(upscaler))
    if kind is None:
        raise Refused(f"could not find upscaler named {str(upscaler)[:60]!r}; GET /sdapi/v1/upscalers and latent-upscale-modes "
                      "list them", 400)
    for name in ("hr_prompt", "hr_negative_prompt", "hr_checkpoint_name", "hr_sampler_name", "hr_scheduler"):
        if fields.get(name) not in (None, "", "Use same sampler", "Use same scheduler", "Use same checkpoint", "automatic"):
            notes.append(f"{name} has no effect here")
    return {"hires": scale, "hires_strength": fields["denoising_strength"], "hires_upscaler": kind,
            "hires_steps": whole(fields["hr_second_pass_steps"]) or None}


def start(fields, notes):
    """The picture to start from, and the mask"""
    pictures = fields["init_images"]
    if not pictures:
        raise Refused("Init image not found", 404)
    if not isinstance(pictures, list) or len(pictures) > 1:
        raise UserError("init_images: a list with one picture is expected")
    image = reading.init_image(reading.picture(pictures[0], "init_images"))
    found = {"init_image": image, "strength": fields["denoising_strength"]}
    part = fields["mask"] is not None and bool(fields["inpaint_full_res"])
    if fields["mask"] is not None:
        found |= {"mask_image": reading.mask_image(reading.picture(fields["mask"], "mask")), "mask_blur": fields["mask_blur"],
                  "invert_mask": bool(fields["inpainting_mask_invert"]),
                  "padding_mask_crop": whole(fields["inpaint_full_res_padding"]) if part else None}
        if fields.get("inpainting_fill", 0) != 1:
            notes.append("inpainting_fill: what is masked begins as it is in the picture, as with 1")
    width, height = whole(fields["width"]), whole(fields["height"])
    if part or width is None or height is None or image.width * height == image.height * width:
        return found
    if fields["resize_mode"] not in (0, 1):
        raise UserError("resize_mode: 0 (stretched) and 1 (scaled and cut) are offered")
    if fields["resize_mode"] == 0 and all(isinstance(side, int) and 0 < side <= 8192 for side in (width, height)):
        for name in ("init_image", "mask_image"):
            if name in found:
                found[name] = found[name].resize((width, height), Image.Resampling.LANCZOS)
    return found


def renamed(message):
    """A message about our setting, with the name of their field"""
    for ours, theirs in NAMES.items():
        for end in (" is ", ": ", " has "):
            if message.startswith(ours + end):
                return theirs + message.removeprefix(ours)
    return message
