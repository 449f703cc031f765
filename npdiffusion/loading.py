"""From a path or a name to a pipeline, in three steps.

    opened = open_checkpoint(path)     names and sizes are known and fit together, nothing is read yet
    budget = opened.fit(max_memory)    precision, and what stays on disk
    opened.fill(budget)                weights are read into the models

Cheap things come first: settings, names and shapes of tensors, the tokenizer and memory are all checked before any of
the gigabytes are read. Nothing that is given as a local path touches the network.
"""
import os
import pathlib
import warnings
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from npdiffusion import kernels
from npdiffusion.adapters.image_prompts import ImagePrompts
from npdiffusion.adapters.merging import Adapters
from npdiffusion.adapters.picture_features import PictureFeatures
from npdiffusion.adapters.tags import take_tags
from npdiffusion.checkpoints import controlnets, families, files, hub, ip_adapters, library, t2i_adapters, unets, whole_model
from npdiffusion.checkpoints.part import Part
from npdiffusion.checkpoints.tokenizers import find_tokenizer, find_tokenizers
from npdiffusion.checkpoints.whole_model import WholeModel
from npdiffusion.errors import UserError
from npdiffusion.kernels import machine
from npdiffusion.kernels.threads import set_threads
from npdiffusion.memory import budget as budgets
from npdiffusion.memory import estimates
from npdiffusion.memory.budget import Budget
from npdiffusion.pipeline import Path, StableDiffusionPipeline
from npdiffusion.request import largest_size
from npdiffusion.settings import Request
from npdiffusion.settings.kinds import Memory
from npdiffusion.text.tokenizer import CLIPTokenizer


def load(path_or_id: Path | None = None, dtype: str | None = None, threads: int | None = None,
         tokenizer: Path | None = None, lora_dir: Path | None = None, vae: Path | None = None,
         embedding_dir: Path | None = None, max_memory: int | float | str | None = None, model_dir: Path | None = None,
         requests: Sequence[Request] = (), preview_vae: Any = None, control: Path | Iterable[Path] | None = None,
         unet: Path | None = None, refiner: Path | None = None, ip_adapter: Path | Iterable[Path] | None = None,
         image_encoder: Path | None = None, t2i_adapter: Path | None = None) -> StableDiffusionPipeline:
    """A pipeline that makes pictures from prompts → npdiffusion.pipeline.StableDiffusionPipeline

    path_or_id: None (the embedded model), a folder in diffusers layout, a .safetensors or .gguf file, a Hugging Face id, or
        a name in the folder of models (see library.py)
    model_dir: the folder of models; None is the one that NPDIFFUSION_MODELS names, if any
    dtype: of the weights of most products, "float32", "bfloat16", which takes half the memory, or "int8", see
        models/parameters.py; all else is float32;
        None: what max_memory makes best, float32 without that
    threads: how many the kernels use; None leaves it as it is: the number of physical cores, if never set
    tokenizer: a folder with vocab.json and merges.txt, or the Hugging Face id of a model that has them, in place of the
        model's own; a single file has none: without this it is looked for beside the file and in Hugging Face's cache
    lora_dir: folder with the adapters that prompts name, as in "a cat <lora:ink:0.8>"
    vae: a file, a folder or a Hugging Face id with an autoencoder in place of the model's own, TAESD for example; see
        autoencoders.py
    embedding_dir: folder with learnt words (textual inversion), which prompts use by their files' names
    max_memory: bytes, or a text like "4GB", that the process may take; decides about dtype, and which weights stay on
        disk, see budget.py; what was chosen is the pipeline's `budget`
    requests: `settings.Request` of the pictures that will be made: the adapters and learnt words that their prompts name
        are checked before any weights are read, and max_memory allows for the largest of them; without any, for one of
        the size of the training
    preview_vae: an autoencoder that max_memory shall allow for, too; or None
    control: a ControlNet, a folder or a file, which `control_image` leads, or several
    unet: a folder or a file with a UNet in place of the model's own, see unets.py
    refiner: a model, named as by path_or_id, that takes over the last steps, see painting/refining.py; the text encoder and the
        UNet are its own, the autoencoder is the first model's
    ip_adapter, image_encoder: an IP-Adapter's file, or several, and CLIP's image encoder, see
        StableDiffusionPipeline.load_ip_adapter
    t2i_adapter: a T2I-Adapter, a folder or a file, which pictures that have a `t2i_image` are led by
    Raises UserError, with one line that says what is wrong, for whatever can't be loaded.
    """
    if dtype not in (None, *kernels.DTYPES):
        raise UserError(f"dtype {dtype!r} is not supported, only {', '.join(kernels.DTYPES)}")
    if threads is not None:
        if isinstance(threads, bool) or not isinstance(threads, int) or threads < 1:
            raise UserError(f"threads = {threads!r}, but a whole number from 1 on is needed")
        set_threads(threads)
    try:
        opened = open_checkpoint(path_or_id, tokenizer, vae, model_dir, unet, refiner, control, ip_adapter, image_encoder,
                                 t2i_adapter)
        budget = opened.fit(max_memory, dtype, requests, preview_vae)
        pipeline = opened.pipeline(budget)
        pipeline.adapters.folder = lora_dir
        if embedding_dir is not None:
            pipeline.load_textual_inversion(embedding_dir)
        pipeline.check_prompts([(request.prompt, request.negative_prompt) for request in requests])
        opened.fill(budget)
    except MemoryError:
        raise UserError(f"{path_or_id or 'the embedded model'}: not enough memory for this model") from None
    return pipeline


@dataclass(frozen=True)
class Opened:
    """A checkpoint of which nothing has been read but tables of contents, settings and the vocabulary.

    path: its file or folder      source: what it was asked for as, for people      refiner: another checkpoint, or None
    controlnets, adapters: Parts that are none of the checkpoint's, the latter {name: Part} of pictures' adapters
    """
    path: pathlib.Path
    source: str
    model: WholeModel
    tokenizers: dict[str, CLIPTokenizer]
    refiner: "Opened | None" = None
    controlnets: tuple[Part, ...] = ()
    adapters: dict[str, Part] = field(default_factory=dict)

    @property
    def parts(self) -> dict[str, Any]:
        """{name: Part} of all that is read; a refiner's names begin with "refiner ", ControlNets have numbers"""
        beside = self.refiner.model.parts if self.refiner else {}
        return (self.model.parts | {f"refiner {name}": part for name, part in beside.items() if name != "vae"}
                | {f"controlnet {number}": part for number, part in enumerate(self.controlnets)} | self.adapters)

    def fit(self, max_memory: int | float | str | None = None, dtype: str | None = None, requests: Sequence[Request] = (),
            preview_vae: Any = None) -> Budget:
        """How the weights are kept → memory.budget.Budget; arguments as of `load`. UserError if they can't be made to fit."""
        parts = self.parts
        unet, vae = (parts[name].model.config for name in ("unet", "vae"))
        budget = budgets.unlimited(parts, dtype or "float32")
        if max_memory is None and kernels.backend() == "numba":
            max_memory = self._what_there_is(estimates.needed(vae, budget.kept))
        if max_memory is not None:
            limit = Memory.bytes(Memory().check("max_memory", max_memory))
            reading = budgets.require_reading(limit, requests)
            trained = (unet.sample_size * vae.reduction,) * 2
            sizes = [largest_size(request, trained, vae.reduction) for request in requests] or [trained]
            guided = not requests or any(request.guidance_scale is None or request.guidance_scale > 1 for request in requests)
            tiling = requests[0].vae_tiling if requests else "auto"
            adapted = self.model.family.adapted if any(take_tags(request.prompt)[1] for request in requests) else ()
            budget = budgets.plan(parts, limit, sizes, dtype, 2 if guided else 1, tiling, preview_vae, reading, adapted)
        estimates.check(vae, budget.kept, str(self.path))
        return budget

    def _what_there_is(self, needed):
        """None, or, if so many bytes are not available, the bytes that are: then the model is fitted into them, with a note"""
        there = machine.memory_available()
        if there is None or needed <= there or there < budgets.RUNTIME:
            return None
        warnings.warn(f"{self.path}: needs about {needed / 1e9:.1f} GB of memory, {there / 1e9:.1f} GB are available, so it is "
                      f"fitted into that, as by max_memory (--max-memory)", stacklevel=4)
        return there

    def pipeline(self, budget: Budget) -> StableDiffusionPipeline:
        """The pipeline, whose models are still empty."""
        family, parts, schedule, advised = self.model
        models, first = {name: part.model for name, part in parts.items()}, family.text_encoders[0]
        made = StableDiffusionPipeline(
            self.tokenizers[first], models.pop(first), models.pop("unet"), models.pop("vae"), schedule, self.source, advised,
            Adapters(parts, budget.dtype, family), budget if budget.limit else None, family, models, self.tokenizers)
        made.embedded = self.path.samefile(locate_model(None))
        made.controlnets = [part.model for part in self.controlnets]
        if "image_encoder" in self.adapters:
            made.ip_adapter = ImagePrompts(self.adapters, made.unet)
        if "t2i_adapter" in self.adapters:
            made.t2i_adapter = PictureFeatures(self.adapters["t2i_adapter"])
        if self.refiner:
            made.refiner = self.refiner.pipeline(budget)
            made.refiner.vae, made.refiner.words = made.vae, made.words
        return made

    def fill(self, budget: Budget) -> None:
        """Read the weights into the models. UserError if a tensor can't be read, or is not finite."""
        for name, part in self.parts.items():
            part.on_disk = budget.on_disk.get(name, set())
            part.fill(budget.dtype)


def open_checkpoint(path_or_id: Path | None = None, tokenizer: Path | None = None, vae: Path | None = None,
                    model_dir: Path | None = None, unet: Path | None = None, refiner: Path | None = None,
                    control: Path | Iterable[Path] | None = None, ip_adapter: Path | Iterable[Path] | None = None,
                    image_encoder: Path | None = None, t2i_adapter: Path | None = None) -> Opened:
    """A checkpoint, opened → Opened; arguments as of `load`. UserError for what is no model of a known family."""
    path = locate_model(path_or_id, model_dir, given=[name for name, part in (("vae", vae), ("tokenizer", tokenizer)) if part])
    model = whole_model.open_model(path, vae, tokenizer)
    if unet is not None:
        model.parts["unet"] = unets.open_unet(unet, model.parts["unet"].model.config, model.family)
    configs = {name: model.parts[name].model.config for name in model.family.text_encoders}
    beside = None if refiner is None else open_refiner(refiner, model_dir, model)
    network, family = model.parts["unet"].model, model.family
    adapters = {} if ip_adapter is None else ip_adapters.open_ip_adapters(ip_adapter, image_encoder, network, family, path)
    if t2i_adapter is not None:
        adapters["t2i_adapter"] = t2i_adapters.open_t2i_adapter(t2i_adapter, network.config, family)
    return Opened(path, str(path_or_id or library.EMBEDDED), model, find_tokenizers(tokenizer, path, configs, model.family),
                  beside, tuple(controlnets.open_controlnets(control, network.config, family)), adapters)


def open_refiner(path_or_id: Path, model_dir: Path | None, model: WholeModel) -> Opened:
    """Another checkpoint, opened → Opened; UserError unless its latents are of the same kind as those of a `WholeModel`"""
    found = open_checkpoint(path_or_id, model_dir=model_dir)
    for what, read in (("channels", lambda vae, family: vae.latent_channels), ("reduction", lambda vae, family: vae.reduction),
                       ("factor", lambda vae, family: getattr(vae, "scaling_factor", family.factor))):
        theirs, ours = (read(each.parts["vae"].model.config, each.family) for each in (found.model, model))
        if theirs != ours:
            raise UserError(f"{path_or_id}: this refiner is {found.model.family.name}, whose latents are of another kind than "
                            f"those of the model, which is {model.family.name} ({what} {theirs:g} and {ours:g})")
    return found


def load_tokenizer(path_or_id: Path | None = None, tokenizer: Path | None = None,
                   model_dir: Path | None = None) -> CLIPTokenizer:
    """The tokenizer that `load` would take. Nothing else is read, nor downloaded."""
    path_or_id = library.resolve(path_or_id, model_dir)
    path = pathlib.Path(os.path.expanduser(path_or_id or locate_model(None)))
    if tokenizer is None and path.is_file():
        family, tensors = whole_model.by_part(files.read_tensors(path), path, given=("unet", "vae"))
        name = family.text_encoders[0]
        config = family.parts[name].config.from_dict(whole_model.sizes(family, {name: tensors[name]}, path)[name], path)
        return find_tokenizer(None, path, config, family)
    return find_tokenizer(tokenizer or str(path), path, None, families.FAMILIES[0])


def locate_model(path_or_id: Path | None, model_dir: Path | None = None, given: Sequence[str] = ()) -> pathlib.Path:
    """The file or folder that is meant; UserError if there is none. given: parts that it may lack"""
    model = library.resolve(path_or_id, model_dir)
    if model is None:
        import npdiffusion.weights
        return pathlib.Path(npdiffusion.weights.__file__).parent
    path = os.path.expanduser(model)
    return pathlib.Path(path) if os.path.exists(path) else hub.fetch_model(model, given)
