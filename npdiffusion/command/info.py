"""What `--info` prints: versions, processor, backend and model. Nothing is loaded for it but tables of
contents, and numba where it is the backend."""
import importlib.metadata
import math
import pathlib
import platform

from npdiffusion import kernels, weights
from npdiffusion.checkpoints import bundled, families, files, library, safetensors_file, whole_model
from npdiffusion.checkpoints.text_files import read_json
from npdiffusion.kernels import machine
from npdiffusion.models.configs import UNetConfig, VAEConfig
from npdiffusion.text import known_words
from npdiffusion.version import __version__


def report(model, threads):
    """Lines of text about the installation, then about the model; UserError, after the former, if it can't be read."""
    total, free = machine.memory(), machine.memory_available()
    yield line("npdiffusion", __version__)
    yield line("python", f"{platform.python_version()}, {platform.system()} {platform.machine()}")
    for package in ("numpy", "numba"):
        yield line(package, installed(package))
    yield line("processor", machine.cpu_name())
    yield line("features", ", ".join(machine.cpu_features()) or "not known")
    yield line("cores", f"{machine.physical_cores()} physical, {machine.logical_cores()} logical")
    amounts = [f"{amount / 1e9:.1f} GB {word}" for amount, word in ((total, "in all"), (free, "available")) if amount]
    yield line("memory", ", ".join(amounts) or "not known")
    yield line("backend", kernels.backend())
    if kernels.backend() == "numba":
        yield from compiled()
    else:
        yield from small_numbers(machine.multiplies_bfloat16(), machine.multiplies_bytes())
    yield line("threads", threads)
    yield from describe(model)


def compiled():
    """Lines about kernels: what numba compiles for, where machine code is kept, and whether it is there already."""
    try:
        from npdiffusion.kernels import environment, fast
        from npdiffusion.kernels.codegen import cache
        from npdiffusion.kernels.codegen.bfloat16 import HAS_DOT
        from npdiffusion.kernels.products import amx_tile, int8_tile
    except kernels.BackendError as error:
        yield line("compiled for", f"nothing: {error}")
        return
    chosen = " (by NUMBA_CPU_NAME or NUMBA_CPU_FEATURES)" if environment.is_chosen() else ""
    yield line("compiled for", environment.target()[0] + chosen)
    yield line("kernels", f"in {cache.folder()}")
    there = [dtype for dtype in kernels.DTYPES if fast.is_cached(dtype)]
    yield line("", f"those for {' and '.join(there)} are there" if there else "not there yet: the first picture compiles them")
    yield from small_numbers(HAS_DOT, int8_tile.HAS_DOT, [each for each in kernels.DTYPES if amx_tile.multiplies(each)])


def small_numbers(bfloat16, int8, tiles=()):
    """The lines about bfloat16 and int8; whether each is multiplied by the processor, and which of them in tile registers"""
    for name, multiplied, gain in (("bfloat16", bfloat16, "halves the memory of weights"),
                                   ("int8", int8, "makes most of the UNet's weights bytes")):
        yield line(name, "multiplied by the processor" + " in tiles (AMX)" * (name in tiles) if multiplied else
                   f"{gain}; products widen them, which takes the time of float32")


def line(name, value):
    """One entry; the names make a column."""
    return f"{name:<16}{value}"


def installed(package):
    """Version of an installed package, found without importing it."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"


def describe(model):
    """Lines about a model (None: the embedded one): where it is, its parts with parameters, precision and size."""
    folder = pathlib.Path(weights.__file__).parent if model is None else pathlib.Path(model).expanduser()
    if not folder.exists():
        yield line("model", f"{model}, no file or folder here; as an id it is looked up when a picture is made")
        return
    yield line("model", f"{'embedded, in ' if model is None else ''}{folder}")
    if folder.is_dir():
        family = families.of_folder(*library.folder_kind(folder))
        parts = {part: safetensors_file.read_folder(folder / part, row.stem)[0] for part, row in family.parts.items()}
        unet = UNetConfig.from_dict(read_json(folder / "unet" / "config.json"), folder / "unet" / "config.json")
        vae = VAEConfig.from_dict(read_json(folder / "vae" / "config.json"), folder / "vae" / "config.json")
        side = unet.sample_size * vae.reduction
        yield line("  pictures", f"{side}x{side} pixels if not told otherwise")
        if model is None:
            subjects, grounds = len(known_words.subjects()), len(known_words.vocabulary()["grounds"])
            yield line("  draws", f"{subjects} subjects on {grounds} grounds, and nothing else: "
                       "npdiffusion subjects lists them")
    else:
        _, parts = whole_model.by_part(files.read_tensors(folder), folder)
    for part, tensors in parts.items():
        yield line(f"  {part}", amount(tensors))
    for name, place in bundled.CONTROLNETS.items() if model is None else ():
        tensors, _ = safetensors_file.read_folder(place, families.FAMILIES[0].parts["unet"].stem)
        yield line(f"  {name}", f"{amount(tensors)}, a ControlNet: --control {name}")
    for name, place in bundled.LORAS.items() if model is None else ():
        yield line(f"  {name}", f"{amount(files.read_tensors(place))}, a LoRA: <lora:{name}> in the prompt, --sampler {name}")


def amount(tensors):
    """How large a part is, by its {name: tensor}"""
    count = sum(math.prod(tensor.shape) for tensor in tensors.values())
    kinds, size = library.precision(tensors.values()), library.size(tensors.values())
    return f"{count / 1e6:.1f} million parameters, {kinds}, {size / 1e6:.1f} MB"
