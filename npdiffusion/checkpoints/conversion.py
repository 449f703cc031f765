"""A model written anew: as a folder in diffusers layout, or as one safetensors file in original names.

A tensor at a time is read, changed if something is merged in, rounded and written, so that memory for the largest is
enough. What is written appears under its name when it is complete, and replaces nothing.
"""
import contextlib
import json
import math
import os
import pathlib
import shutil

import numpy as np

from npdiffusion.checkpoints import families, files, whole_model
from npdiffusion.checkpoints.config_json import config
from npdiffusion.checkpoints.text_files import read_json
from npdiffusion.errors import UserError
from npdiffusion.kernels.arrays import as_float32
from npdiffusion.kernels.reference import to_bfloat16
from npdiffusion.models.configs import CLIPTextConfig, VAEConfig
from npdiffusion.text.tokenizer import END, START

KINDS = {"float32": "F32", "float16": "F16", "bfloat16": "BF16"}
NAMES = {kind: dtype for dtype, kind in KINDS.items()} | {"F8_E4M3": "float16", "F8_E5M2": "float16"}    # exactly
SIZES = {"F32": 4, "F16": 2, "BF16": 2}


def convert(opened, path, dtype=None, changed=()):
    """Write a model and return the path: a .safetensors file, or else a folder.

    opened: loading.Opened      dtype: "float32", "float16", "bfloat16"; None keeps each tensor as it is, or exactly what it
    is decoded to      changed: {(part, parameter): tensor} that take the place of the model's own
    UserError if something is there already, can't be written, or can't be rounded so.
    """
    path, changed = pathlib.Path(path).expanduser(), dict(changed)
    if path.exists() or path.is_symlink():
        raise UserError(f"{path}: there is something of that name already, nothing is overwritten")
    beside = path.parent / f".npdiffusion-{os.getpid()}-{os.urandom(4).hex()}.part"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.suffix == ".safetensors":
            write_tensors(beside, original(opened, changed, path), dtype)
            move(beside, path)
        else:
            write_folder(beside, opened, dtype, changed)
            os.rename(beside, path)
    except OSError as error:
        raise UserError(f"{path}: can't be written ({error.strerror or error})") from None
    finally:
        with contextlib.suppress(OSError):
            shutil.rmtree(beside) if beside.is_dir() else beside.unlink()
    return path


def move(beside, path):
    """Rename a file; FileExistsError if something of that name is there by now, as far as the file system can tell."""
    try:
        os.link(beside, path)
    except FileExistsError:
        raise
    except OSError:                                        # no second names for a file here
        os.rename(beside, path)


def original(opened, changed, path):
    """{name: (tensor, shape)} of all parts in original names; UserError if one is of a kind that has none (TAESD)"""
    model, found = opened.model, {}
    for name, part in model.parts.items():
        row = model.family.parts[name]
        if not isinstance(part.model, row.model):
            raise UserError(f"{path}: {model.family.name} with this {name} can't be written as a single file, only as a "
                            "folder (a name without .safetensors)")
        spell, own = row.name(part.model.config, [f"{row.prefix}text_model."], row.prefix), {}
        for parameter, shape in part.shapes.items():
            attention = row.config is VAEConfig and ".attentions." in parameter and len(shape) == 2
            tensor = changed.get((name, parameter), part.tensors[parameter])
            own[spell(parameter)] = tensor, (*shape, 1, 1) if attention else shape         # a 1×1 convolution there
        found |= row.join(own)
    return found | marks(opened, found)


class Mark:
    """An empty tensor, which says something by its name"""
    def __init__(self, path, name):
        self.path, self.name, self.dtype = path, name, "F32"

    def __call__(self):
        return np.zeros(0, np.float32)


def marks(opened, tensors):
    """The marks that tell a single file's noise schedule where it isn't taken for that without them: {name: (tensor, shape)}

    tensors: all others of the file
    """
    family, settings = opened.model.family, scheduler(opened.path, opened.model.family)
    taken_for = family.scheduler | family.decide({name: tensor for name, (tensor, _) in tensors.items()}).get("scheduler", {})
    told = {mark: next(iter(says.items())) for mark, says in family.marks.items()}
    return {mark: (Mark(opened.path, mark), (0,)) for mark, (setting, value) in told.items()
            if settings.get(setting) == value != taken_for.get(setting)}


def write_folder(folder, opened, dtype, changed):
    """A folder in diffusers layout, with config.json for each part, tokenizer and noise schedule."""
    family, parts = opened.model.family, opened.model.parts
    index = {"_class_name": pipeline_class(family, parts["unet"].model.config), "scheduler": None}
    for name, part in parts.items():
        sizes, row = part.model.config, family.parts[name]
        text = isinstance(sizes, CLIPTextConfig)
        architecture = {"architectures": [type(part.model).__name__]} if text else {}
        write_json(folder / name / "config.json", config(sizes) | architecture)
        before = "text_model." if text else ""         # as transformers named them up to 5.5; later ones read both
        tensors = {parameter if parameter.startswith("text_projection.") else before + parameter:
                   (changed.get((name, parameter), part.tensors[parameter]), shape)
                   for parameter, shape in part.shapes.items()}
        write_tensors(folder / name / f"{row.stem}.safetensors", tensors, dtype)
        index[name] = ["transformers" if text else "diffusers", type(part.model).__name__]
    for name, tokenizer in opened.tokenizers.items():
        write_tokenizer(folder / families.tokenizer_of(name), tokenizer)
        index[families.tokenizer_of(name)] = ["transformers", "CLIPTokenizer"]
    settings = scheduler(opened.path, family)
    write_json(folder / "scheduler" / "scheduler_config.json", settings)
    index["scheduler"] = ["diffusers", settings.get("_class_name", "PNDMScheduler")]
    if opened.model.guidance_scale is not None:
        index["guidance_scale"] = opened.model.guidance_scale
    if family.added:
        index["force_zeros_for_empty_prompt"] = family.zeros
    nothing = {name: [None, None] for name in ("safety_checker", "feature_extractor")}
    write_json(folder / "model_index.json", index | nothing)


def pipeline_class(family, unet):
    """The class for model_index.json: the family's first, or that for inpainting if the UNet takes a mask"""
    paints = unet.in_channels == 2 * unet.out_channels + 1
    return next((name for name in family.classes if ("Inpaint" in name) == paints), family.classes[0])


def scheduler(path, family):
    """scheduler_config.json of a model: its own, or what a single file's marks say"""
    if path.is_dir():
        return read_json(path / "scheduler" / "scheduler_config.json")
    return whole_model.scheduler(family, files.read_tensors(path))


def write_tokenizer(folder, tokenizer):
    """vocab.json, merges.txt, tokenizer_config.json, special_tokens_map.json"""
    write_json(folder / "vocab.json", tokenizer.vocabulary)
    merges = "".join(f"{left} {right}\n" for left, right in tokenizer.ranks)
    (folder / "merges.txt").write_text("#version: 0.2\n" + merges, encoding="utf-8", newline="\n")
    frame = {role: dict(content=name, lstrip=False, normalized=name in tokenizer.folded, rstrip=False, single_word=False)
             for role, name in (("bos_token", START), ("eos_token", END), ("unk_token", END))}
    write_json(folder / "special_tokens_map.json", frame | {"pad_token": tokenizer.padding})
    write_json(folder / "tokenizer_config.json", {"tokenizer_class": "CLIPTokenizer", "model_max_length": tokenizer.length,
                                                  "do_lower_case": True, "pad_token": tokenizer.padding})


def write_json(path, content):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content, indent=2, ensure_ascii=False), encoding="utf-8")


def write_tensors(path, tensors, dtype=None):
    """A safetensors file (see safetensors_file.py) of {name: (tensor, shape)}, which are read one after the other."""
    path.parent.mkdir(parents=True, exist_ok=True)
    table, end = {"__metadata__": {"format": "pt"}}, 0
    for name, (tensor, shape) in tensors.items():
        kind = KINDS[dtype or NAMES.get(tensor.dtype, "float32")]
        start, end = end, end + SIZES[kind] * math.prod(shape)
        table[name] = {"dtype": kind, "shape": shape, "data_offsets": [start, end]}
    header = json.dumps(table, separators=(",", ":")).encode()
    header += b" " * (-len(header) % 8)
    with path.open("xb") as file:
        file.write(len(header).to_bytes(8, "little") + header)
        for name, (tensor, _) in tensors.items():
            file.write(np.ascontiguousarray(rounded(tensor, table[name]["dtype"])).data.cast("B"))
        file.flush()
        os.fsync(file.fileno())


def rounded(tensor, kind):
    """A tensor's numbers as that kind of number; UserError if one is not finite, or becomes so"""
    array = tensor()
    if kind == "BF16":
        array = array if array.dtype == np.uint16 else to_bfloat16(as_float32(array))
    else:
        with np.errstate(over="ignore"):
            array = as_float32(array).astype(np.float16 if kind == "F16" else np.float32, copy=False)
    if not np.isfinite(as_float32(array)).all():
        raise UserError(f"{tensor.path}: {tensor.name[:200]!a} holds numbers that are not finite, or too large for "
                        f"{NAMES[kind]}")
    return array
