"""From a path or a name to a pipeline: the parts of a model are found, checked against each other, and filled.

    folder (diffusers layout)     text_encoder/  unet/  vae/  (config.json and weights)   tokenizer/   scheduler/
    one .safetensors file         all weights in the original names, see original_names.py
    org/name                      a folder from Hugging Face's cache or hub, see hub.py

Cheap things come first: settings, names and shapes of tensors, the tokenizer and memory are all checked before any of
the gigabytes are read. Nothing that is given as a local path touches the network.
"""
import functools
import math
import os
import pathlib
from collections.abc import Callable
from dataclasses import dataclass, field

from npdiffusion import kernels
from npdiffusion.adapters.merging import Adapters
from npdiffusion.checkpoints import autoencoders, families, hub, library, original_names, safetensors_file
from npdiffusion.diffusion.schedules import NoiseSchedule
from npdiffusion.errors import UserError
from npdiffusion.memory import budget as budgets
from npdiffusion.memory import estimates
from npdiffusion.models import parameters
from npdiffusion.models.clip import CLIPTextModel
from npdiffusion.models.configs import CLIPTextConfig, Reader, UNetConfig, VAEConfig, read_json
from npdiffusion.models.unet import UNet2DConditionModel
from npdiffusion.models.vae import AutoencoderKL
from npdiffusion.settings.kinds import Memory
from npdiffusion.text.tokenizer import END, CLIPTokenizer

MODELS = {"text_encoder": (CLIPTextConfig, CLIPTextModel), "unet": (UNetConfig, UNet2DConditionModel),
          "vae": (VAEConfig, AutoencoderKL)}

CLIP = "openai/clip-vit-large-patch14"                   # whose tokenizer is Stable Diffusion v1's


@dataclass
class Part:
    """A model that is still empty, the tensors that belong into it, and how the checkpoint spells their names.

    on_disk: names of parameters that are read when they are used, not when the model is filled, see on_disk.py
    """
    model: object
    tensors: dict
    source: object
    spelling: Callable = parameters.same_name
    on_disk: set = field(default_factory=set)

    def __post_init__(self):
        self.parameters = {name: (name, owner, attribute) for name, owner, attribute in parameters.walk(self.model)}
        self.shapes = parameters.shapes(self.model)

    def check(self):
        parameters.check(self.model, self.tensors, self.source, self.spelling)

    def fill(self, dtype="float32", names=None, tensors=None):
        """Give all parameters their weights, or those that are named new ones, from `tensors` or the checkpoint's."""
        places = [self.parameters[name] for name in (self.parameters if names is None else names)]
        parameters.fill(places, tensors or self.tensors, self.source, self.spelling, dtype, self.on_disk)

    def may_stay_on_disk(self, dtype):
        """{name: bytes of memory that it would take} of the parameters for which that is worth it"""
        return {name: (2 if parameters.kept_as(*place, dtype) == "bfloat16" else 4) * math.prod(self.shapes[name])
                for name, place in self.parameters.items() if parameters.is_large(*place[1:])}

    def bytes_on_disk(self, name):
        """Size of a parameter in its file."""
        return math.prod(self.shapes[name]) * safetensors_file.size_of(self.tensors[self.spelling(name)])

    def files(self):
        """Paths of the files that the tensors are in."""
        return {tensor.path for tensor in self.tensors.values()}


def load(path_or_id=None, dtype=None, threads=None, tokenizer=None, lora_dir=None, vae=None, embedding_dir=None,
         max_memory=None, size=None, vae_tiling="auto", images=2, preview_vae=None, model_dir=None, prompts=()):
    """A pipeline that makes pictures from prompts → npdiffusion.pipeline.StableDiffusionPipeline

    path_or_id: None (the embedded model), a folder in diffusers layout, a .safetensors file, a Hugging Face id, or a name
        in the folder of models (see library.py)
    model_dir: the folder of models; None is the one that NPDIFFUSION_MODELS names, if any
    dtype: of the weights of most products, "float32", or "bfloat16", which takes half the memory; all else is float32;
        None: what max_memory makes best, float32 without that
    threads: how many the kernels use; None leaves it as it is: the number of physical cores, if never set
    tokenizer: a folder with vocab.json and merges.txt, or the Hugging Face id of a model that has them, in place of the
        model's own; a single file has none: without this it is looked for beside the file and in Hugging Face's cache
    lora_dir: folder with the adapters that prompts name, as in "a cat <lora:ink:0.8>"
    vae: a file, a folder or a Hugging Face id with an autoencoder in place of the model's own, TAESD for example; see
        autoencoders.py
    embedding_dir: folder with learnt words (textual inversion), which prompts use by their files' names
    prompts: what pictures will be made of, pairs (prompt, negative prompt): the adapters and learnt words that they
        name are opened and checked before any weights are read
    max_memory: bytes, or a text like "4GB", that the process may take; decides about dtype, and which weights stay on
        disk, see budget.py; what was chosen is the pipeline's `budget`
    What max_memory shall allow for:
    size: (width, height) of the largest picture; None, for both or one of them, is that of the training; or a function
        of (width, height) of the training and the autoencoder's reduction that gives a list of all sizes
    vae_tiling: of the pictures, "auto", "on" or "off", as `generate` takes it
    images: how many the UNet computes in a step: two for each picture with guidance, one without
    preview_vae: an autoencoder beside the model's, for previews, or None
    Raises UserError, with one line that says what is wrong, for whatever can't be loaded.
    """
    from npdiffusion.kernels.threads import set_threads
    from npdiffusion.pipeline import StableDiffusionPipeline
    if dtype not in (None, *kernels.DTYPES):
        raise UserError(f"dtype {dtype!r} is not supported, only {', '.join(kernels.DTYPES)}")
    if threads is not None:
        if isinstance(threads, bool) or not isinstance(threads, int) or threads < 1:
            raise UserError(f"threads = {threads!r}, but a whole number from 1 on is needed")
        set_threads(threads)
    plan = None if max_memory is None else functools.partial(
        budgets.plan, limit=Memory.bytes(Memory().check("max_memory", max_memory)), size=size, dtype=dtype, images=images, mode=vae_tiling,
        preview_vae=preview_vae)

    def make(**parts):
        pipeline = StableDiffusionPipeline(**parts)
        pipeline.adapters.folder = lora_dir
        if embedding_dir is not None:
            pipeline.load_textual_inversion(embedding_dir)
        pipeline.check_prompts(prompts)
        return pipeline
    return load_parts(path_or_id, tokenizer, dtype, vae, plan, model_dir, make)


def load_parts(path_or_id=None, tokenizer=None, dtype=None, vae=None, plan=None, model_dir=None, make=dict):
    """What `load` makes a pipeline of: {tokenizer, text_encoder, unet, vae, schedule, source, …} and advice

    make: what is made of them, while the models are still empty, and returned when they have their weights
    plan: a function of the parts, checked but empty, that gives a `budget.Budget`; None: all weights are kept in memory
    """
    path = locate(path_or_id, model_dir)
    try:
        parts, schedule = open_folder(path) if path.is_dir() else open_file(path)
        if vae is not None:
            parts["vae"] = replacement(vae, parts["vae"])
        models = {name: part.model for name, part in parts.items()}
        check_widths(**models, source=path)
        for part in parts.values():
            part.check()
        budget = None
        if plan is not None:
            budget = plan(parts)
            dtype = budget.dtype
            for name, names in budget.on_disk.items():
                parts[name].on_disk = names
        dtype = dtype or "float32"
        estimates.check(**models, source=path, dtype=dtype, kept=budget and budget.kept)
        tokenizer = find_tokenizer(tokenizer, path, models["text_encoder"].config)
        made = make(tokenizer=tokenizer, **models, schedule=schedule, source=str(path_or_id or path),
                    adapters=Adapters(parts, dtype), budget=budget, **advice(path))
        for part in parts.values():
            part.fill(dtype)
    except MemoryError:
        raise UserError(f"{path}: not enough memory for this model") from None
    return made


def load_tokenizer(path_or_id=None, tokenizer=None, model_dir=None):
    """The tokenizer that `load` would take. Nothing else is read, nor downloaded."""
    path_or_id = library.resolve(path_or_id, model_dir)
    path = pathlib.Path(os.path.expanduser(path_or_id or locate(None)))
    if tokenizer is None and path.is_file():
        tensors = original_names.split(safetensors_file.read_file(path), path)
        config = CLIPTextConfig.from_dict(original_names.settings(tensors, path)["text_encoder"], path)
        return find_tokenizer(None, path, config)
    return find_tokenizer(tokenizer or str(path), path, None)


def locate(path_or_id, model_dir=None):
    """The file or folder that is meant; UserError if there is none."""
    model = library.resolve(path_or_id, model_dir)
    if model is None:
        import npdiffusion.weights
        return pathlib.Path(npdiffusion.weights.__file__).parent
    path = os.path.expanduser(model)
    return pathlib.Path(path) if os.path.exists(path) else hub.model(model)


def open_folder(folder):
    """A model in diffusers layout → {name: Part}, NoiseSchedule"""
    index = folder / "model_index.json"
    pipeline_class = read_json(index).get("_class_name") if index.exists() else None
    families.check_class(pipeline_class, folder)
    missing = [name for name in (*MODELS, "tokenizer", "scheduler") if not (folder / name).is_dir()]
    if missing:
        hint = ""
        files = sorted(path.name for path in folder.glob("*.safetensors"))
        if (folder / "config.json").exists():
            hint = "; it looks like one part of a model, so try the folder above it"
        elif files:
            hint = f"; to load a single file, name it: {folder / files[0]}"
        raise UserError(f"{folder}: not a model in diffusers layout, it has no {'/, '.join(missing)}/{hint}")
    settings = {name: read_json(folder / name / "config.json") for name in MODELS}
    check_family(settings, folder)
    scheduler_config = folder / "scheduler" / "scheduler_config.json"
    schedule = NoiseSchedule.from_config(read_json(scheduler_config), scheduler_config, pipeline_class)
    parts = {}
    for name, (config, model) in MODELS.items():
        if name == "vae":
            parts[name] = Part(*autoencoders.in_folder(folder / name))
            continue
        tensors, source = safetensors_file.read_folder(folder / name, safetensors_file.STEMS[name])
        tensors = {key: tensor for key, tensor in tensors.items() if not key.endswith(".position_ids")}
        empty = model(config.from_dict(settings[name], folder / name / "config.json"))
        older = any(key.startswith("text_model.") for key in tensors)          # how text encoders were saved at first
        parts[name] = Part(empty, tensors, source, "text_model.{}".format if older else parameters.same_name)
    return parts, schedule


def replacement(path_or_id, part):
    """The autoencoder to take the place of a model's own → Part; UserError unless its latents are of that kind"""
    new = Part(*autoencoders.find(path_or_id))
    for what, setting in ("channels in its latents", "latent_channels"), ("pixels to a latent pixel", "reduction"):
        wanted, found = (getattr(each.model.config, setting) for each in (part, new))
        if found != wanted:
            raise UserError(f"{path_or_id}: this VAE has {found} {what}, the model's own {wanted}: "
                            "it is of another family")
    return new


def advice(path):
    """What the makers of a checkpoint advise in its model_index.json → {default_guidance} or nothing

    A key of our own, "guidance_scale": diffusers, which has no place for it, mentions that it ignores it.
    """
    index = path / "model_index.json"                            # a single file has none
    read = Reader(read_json(index) if index.is_file() else {}, index)
    return {"default_guidance": read.number("guidance_scale", None)} if "guidance_scale" in read.settings else {}


def open_file(path):
    """A single file in the original names → {name: Part}, NoiseSchedule: Stable Diffusion v1's, or a marked fine-tune's"""
    everything = safetensors_file.read_file(path)
    tensors = original_names.split(everything, path)
    settings = original_names.settings(tensors, path)
    check_family(settings, path)
    parts = {}
    for name, (config, model) in MODELS.items():
        config = config.from_dict(settings[name], path)
        parts[name] = Part(model(config), tensors[name], path, original_names.spelling(name, config, tensors[name]))
    return parts, NoiseSchedule.from_config(original_names.scheduler(everything))


def check_family(settings, source):
    unet, vae = settings["unet"], settings["vae"]
    families.check_sizes(unet.get("cross_attention_dim"), unet.get("use_linear_projection"),
                         unet.get("in_channels", UNetConfig.in_channels),
                         vae.get("latent_channels", VAEConfig.latent_channels), source)


def check_widths(text_encoder, unet, vae, source):
    """UserError unless the parts fit together."""
    for what, found, wanted in (
            ("the UNet's context", unet.config.cross_attention_dim, text_encoder.config.hidden_size),
            ("the UNet's output", unet.config.out_channels, vae.config.latent_channels)):
        if found != wanted:
            other = "the text encoder" if "context" in what else "the VAE"
            raise UserError(f"{source}: its parts don't fit together: {what} is {found} wide, but {other} has {wanted}")


def find_tokenizer(given, path, config):
    """The tokenizer that `given` names, or the model's own, or, for a single file, one that is lying about.

    given: a folder, a Hugging Face id, or None; config: of the text encoder, which it must fit, or None
    """
    if given is not None:
        if os.path.isdir(os.path.expanduser(given)):
            folder = pathlib.Path(os.path.expanduser(given))
            folder = folder / "tokenizer" if (folder / "tokenizer").is_dir() else folder
        elif isinstance(given, str) and hub.ID.fullmatch(given) and not os.path.exists(given):
            folder = hub.tokenizer(given)
        else:
            raise UserError(f"{given}: a folder with vocab.json and merges.txt was expected, or a Hugging Face id")
        return read_tokenizer(folder, config)
    if path.is_dir():
        return read_tokenizer(path / "tokenizer", config)
    for folder in (path.parent / "tokenizer", path.parent):
        if (folder / "vocab.json").exists() and (folder / "merges.txt").exists():
            return read_tokenizer(folder, config)
    for folder in (hub.cached(CLIP), *(model / "tokenizer" for model in hub.everything_cached())):
        try:
            found = folder and CLIPTokenizer.from_folder(folder)
        except UserError:
            continue                                             # no tokenizer, or another kind
        if found and len(found.vocabulary) == config.vocab_size and found.padding == END:     # not Stable Diffusion 2's
            return found
    raise UserError(f"{path}: a single file has no tokenizer; put vocab.json and merges.txt of {CLIP} beside it, "
                    f"or name the folder that has them (--tokenizer FOLDER), or download them (--tokenizer {CLIP})")


def read_tokenizer(folder, config):
    """The tokenizer in a folder; UserError unless it fits the text encoder, if there is one."""
    tokenizer = CLIPTokenizer.from_folder(folder)
    if config is None:
        return tokenizer
    pieces = len(tokenizer.vocabulary)
    if not config.vocab_size / 2 < pieces <= config.vocab_size:          # a few rows more belong to words learnt later
        raise UserError(f"{folder}: has {pieces} pieces, but the text encoder knows {config.vocab_size}: "
                        "this is the tokenizer of another model")
    if tokenizer.length > config.max_position_embeddings:
        raise UserError(f"{folder}: makes {tokenizer.length} tokens, but the text encoder takes at most "
                        f"{config.max_position_embeddings}")
    return tokenizer
