"""The models that are here: the embedded one, those in a folder of models, and those in Hugging Face's cache.

A file is called by its path within the folder, without .safetensors; a folder in diffusers layout by its own; a model
in the cache by its id. Names and shapes in a file's table of contents alone show what it is, so that many
of gigabytes are listed at once. The folder of models is the one that is given, or what NPDIFFUSION_MODELS names.
"""
import math
import os
import pathlib
import warnings
from dataclasses import dataclass

from npdiffusion.checkpoints import families, files, hub, safetensors_file, whole_model
from npdiffusion.checkpoints.folder_walk import TooMany, walk
from npdiffusion.checkpoints.text_files import read_json
from npdiffusion.checkpoints.tokenizers import find_tokenizer
from npdiffusion.errors import UserError, nearest

VARIABLE = "NPDIFFUSION_MODELS"
EMBEDDED = "embedded"
SUFFIXES = (".safetensors", ".gguf", *safetensors_file.PICKLES)
DEEPEST = 4                           # folders within folders that are looked through
PRECISIONS = {"F32": "float32", "F16": "float16", "BF16": "bfloat16", "F8_E4M3": "float8", "F8_E5M2": "float8"}
# That the UNet takes
CHANNELS = {5: ", with a depth map", 7: ", for enlarging", 8: ", for editing as told", 9: ", for inpainting"}


@dataclass(frozen=True)
class Entry:
    """A model, or a file that is something else: then `family` says what, or what is wrong with it."""
    name: str
    path: pathlib.Path
    family: str
    precision: str = ""
    size: int = 0                     # bytes of weights
    usable: bool = False              # whether it is a model that can be loaded


# ---- names

def folder_of_models(folder=None):
    """The folder of models, or None; UserError if it is none."""
    given = folder or os.environ.get(VARIABLE)
    if not given:
        return None
    path = pathlib.Path(given).expanduser()
    if not path.is_dir():
        raise UserError(f"{'--model-dir' if folder else VARIABLE}: there is no folder {given}")
    return path


def names(folder=None):
    """{name: path} of all that is listed, in the order of the list"""
    return in_folder(folder) | in_cache()


def in_folder(folder=None):
    """{name: path} of the embedded model and of those in the folder of models"""
    import npdiffusion.weights
    found = {EMBEDDED: pathlib.Path(npdiffusion.weights.__file__).parent}
    models = folder_of_models(folder)
    for path in models_below(models) if models else ():
        found.setdefault(path.relative_to(models).as_posix().removesuffix(".safetensors"), path)
    return found


def in_cache():
    """{id: folder} of the repositories in Hugging Face's cache"""
    return {"/".join(path.parent.parent.name.split("--")[1:]): path for path in hub.everything_cached()}


def models_below(folder):
    """Models and files of weights in a folder and below it, in the order of their names, with a warning if there is more."""
    try:
        for path in walk(folder, DEEPEST, lambda path: (path / "model_index.json").is_file()):
            if path.is_dir() or path.suffix.lower() in SUFFIXES:
                yield path
    except TooMany as ended:
        warnings.warn(f"{ended}: the list of models ends there, choose a folder with fewer", stacklevel=2)


def path_of(name, folder=None):
    """The path or id of the model of that name, or None; folders before it may be missing, or .safetensors behind."""
    here = in_folder(folder)
    known, name = here | in_cache(), name.removesuffix(".safetensors")
    same = [name] if name in known else [other for other in known if other.split("/")[-1] == name]
    return str(here.get(same[0], same[0])) if len(same) == 1 else None


def resolve(model, folder=None):
    """What `--model` means: None for the embedded one, a path or an id as it is, else the path of what is listed.

    UserError with the nearest known name if it is nothing of these.
    """
    if model is None or os.path.exists(os.path.expanduser(model)):
        return model
    if model == EMBEDDED:
        return None
    if not isinstance(model, str) or model.startswith((".", "/", "~")):
        raise UserError(f"{model}: no such file or folder")
    found = path_of(model, folder)
    if found is not None:
        return found
    if hub.ID.fullmatch(model) and not model.endswith(SUFFIXES):
        return model
    hint = nearest(model.removesuffix(".safetensors"), names(folder), "; did you mean {}?")
    raise UserError(f"{model}: no such file or folder, and no model of that name{hint} (npdiffusion models lists them)")


# ---- what they are

def entries(folder=None):
    """An Entry for each, one at a time, in the order of the list."""
    for name, path in names(folder).items():
        yield describe(name, path)


def describe(name, path):
    """The Entry of a file, or of a folder in diffusers layout. Never raises: what is wrong is in `family`."""
    try:
        if path.is_file():
            tensors = files.read_tensors(path)
            family, ours = file_family(tensors)
        else:
            family, ours = folder_family(path)
            tensors = folder_tensors(path)
        wrong = refusal(path) if ours else None
        return Entry(name, path, f"{family}: {wrong}" if wrong else family, precision(tensors.values()),
                     size(tensors.values()), ours and not wrong)
    except (UserError, OSError, ValueError, TypeError, AttributeError) as error:      # settings of any type
        return Entry(name, path, shortened(error, path), size=path.stat().st_size if path.is_file() else 0)


def refusal(path):
    """Why a model can't be loaded, or None if it can; only tables of contents and settings are read."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            model = whole_model.open_model(path)
            find_tokenizer(None, path, model.parts[model.family.text_encoders[0]].model.config, model.family)
    except UserError as error:
        return shortened(error, path)
    return None


def shortened(error, path):
    """The beginning of a message about that path, without its name"""
    wrong = str(error).removeprefix(f"{path}").lstrip("/: ").partition(";")[0]
    return " ".join(wrong.split())[:100]


def folder_tensors(folder):
    """All tensors of a model in diffusers layout, their names with their part's before them."""
    name, _, unet, there = folder_kind(folder)
    family = families.of_class(name, unet, there) or families.FAMILIES[0]
    return {f"{part}.{name}": tensor for part, row in family.parts.items() if part in there
            for name, tensor in safetensors_file.read_folder(folder / part, row.stem)[0].items()}


def folder_family(folder):
    """→ family, whether it is a whole model of ours"""
    index = folder / "model_index.json"
    if not index.is_file():
        raise UserError(f"{folder}: no model in diffusers layout")
    name, _, unet, there = folder_kind(folder)
    other = families.other_class(name)
    if other:
        return other, False
    family = families.of_class(name, unet, there)
    if not family.is_told_by(unet or {}) or not {*family.parts} <= {*there}:
        return f"{family.name}, not complete", False
    return by_sizes(family, unet.get("cross_attention_dim"), unet.get("in_channels"))


def folder_kind(folder):
    """What `families.of_folder` wants to know of a folder in diffusers layout."""
    index, unet = folder / "model_index.json", folder / "unet" / "config.json"
    return (read_json(index).get("_class_name") if index.is_file() else None, folder,
            read_json(unet) if unet.is_file() else None, [path.name for path in folder.iterdir()])


def file_family(tensors):
    """→ family, whether it is a whole model of ours"""
    width = next((tensor.shape[1] for name, tensor in tensors.items()
                  if takes_context(name) and len(tensor.shape) == 2), None)
    other = families.other_names(tensors)
    if other:
        known = families.WIDTHS.get(width)
        return other.partition(",")[0] + (f" for {known}" if known and known != other else ""), False
    first = tensors.get("model.diffusion_model.input_blocks.0.0.weight")
    if width is None:
        return "no Stable Diffusion", False
    try:
        return by_sizes(families.of_names(tensors, "it"), width, first.shape[1] if first else 4)
    except UserError:                                      # parts are missing: `refusal` says which
        return families.WIDTHS.get(width, f"like {families.V1}, with a context {width} wide"), True


def takes_context(name):
    """Whether a tensor's second axis is the context: keys of cross-attention, and what a LoRA adds to them first."""
    return name.endswith(("attn2.to_k.weight", ".to_k_ip.weight", "attn2_to_k.lora_down.weight", "attn2_to_k.hada_w1_b",
                          "attn2.to_k.lora_A.weight",
                          "attn2.to_k.lora.down.weight", "attn2.processor.to_k_lora.down.weight"))


def by_sizes(family, width, channels):
    """→ what it is, whether it can be loaded, by its family, the width of the context and the channels that the UNet takes"""
    name = family.name if width in families.WIDTHS else f"like {family.name}, with a context {width} wide"
    return name + CHANNELS.get(channels, ""), channels not in families.OTHER_INPUTS


def precision(tensors):
    """What most weights are kept in, such as "float16"; two if both have more than a hundredth of all."""
    counts = {}
    for tensor in tensors:
        kind = PRECISIONS.get(tensor.dtype, tensor.dtype)
        counts[kind] = counts.get(kind, 0) + math.prod(tensor.shape)
    return " and ".join(sorted(kind for kind, count in counts.items() if count > sum(counts.values()) / 100))


def size(tensors):
    """Bytes of all weights."""
    return sum(tensor.stored for tensor in tensors)
