"""Models by their Hugging Face id, "org/name": first in the cache, as it is, and only then from the network.

The cache is a folder that Hugging Face programs share, HF_HUB_CACHE, or else hub/ in HF_HOME (~/.cache/huggingface):

    models--org--name/refs/main            the commit that "main" stood for when it was last fetched
    models--org--name/snapshots/COMMIT/    its files

Looking there takes no network and no other package. Downloading needs huggingface_hub (the extra `hub`) and takes only
the files that are read; HF_HUB_OFFLINE=1 forbids it. What is in the cache is not compared with the hub again.
"""
import functools
import os
import pathlib
import re

from npdiffusion.checkpoints import families, safetensors_file, text_files
from npdiffusion.errors import UserError

ID = re.compile(r"[A-Za-z0-9][\w-]*(\.[\w-]+)*/[A-Za-z0-9][\w-]*(\.[\w-]+)*", re.ASCII)
TOKENIZER_FILES = ("vocab.json", "merges.txt", "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json")


def cache():
    """The folder of the cache, whether it exists or not."""
    home = os.environ.get("HF_HOME") or os.path.join(os.environ.get("XDG_CACHE_HOME") or "~/.cache", "huggingface")
    folder = (os.environ.get("HF_HUB_CACHE") or os.environ.get("HUGGINGFACE_HUB_CACHE") or os.path.join(home, "hub"))
    return pathlib.Path(os.path.expandvars(os.path.expanduser(folder)))


def offline():
    """Whether HF_HUB_OFFLINE forbids the network."""
    return os.environ.get("HF_HUB_OFFLINE", "").upper() in ("1", "ON", "YES", "TRUE")


def cached(repository):
    """The folder with the files of a repository that are in the cache, or None."""
    folder = cache() / f"models--{repository.replace('/', '--')}"
    try:
        commit = text_files.read_text(folder / "refs" / "main", 100).strip()
    except UserError:
        return None
    snapshot = folder / "snapshots" / commit
    return snapshot if re.fullmatch(r"[0-9a-zA-Z_-]+", commit) and snapshot.is_dir() else None


def everything_cached():
    """The folders of all repositories in the cache, in the order of their names."""
    names = [path.name.split("--") for path in sorted(cache().glob("models--*--*"))]
    return [folder for _, *name in names if (folder := cached("/".join(name)))]


def fetch_model(repository, given=()):
    """The folder, in diffusers layout, of a model; UserError if it can't be had. given: parts that it may lack"""
    return fetch(repository, functools.partial(model_files, given=given))


def fetch_autoencoder(repository):
    """The folder of an autoencoder, or of a model with its autoencoder in vae/; UserError if it can't be had."""
    return fetch(repository, autoencoder_files)


def fetch_tokenizer(repository):
    """The folder with the tokenizer of a model, or of a repository that has no other part; UserError without one."""
    folder = fetch(repository, tokenizer_files)
    return folder / "tokenizer" if (folder / "tokenizer").is_dir() else folder


def fetch(repository, select):
    """The repository's folder, from the cache if what `select` asks for is all there, else downloaded.

    select: from a repository's file names to those that are needed; UserError if it doesn't have them
    """
    folder = cached(repository)
    if folder:
        try:
            names = [path.relative_to(folder).as_posix() for path in folder.glob("**/*") if path.is_file()]
            if all((folder / name).is_file() for name in shards(folder, select(repository, names))):
                return folder
        except UserError:
            pass                                       # the cache has only some of the files; the hub may have the rest
    state = "only in part" if folder else "not"
    if offline():
        raise UserError(f"{repository}: no such file or folder, {state} in the cache ({cache()}), "
                        "and HF_HUB_OFFLINE is set")
    try:
        import huggingface_hub
    except ImportError:
        raise UserError(f"{repository}: no such file or folder, and {state} in the cache ({cache()}); to download it, "
                        "first: pip install huggingface_hub") from None
    try:
        names = [file.rfilename for file in huggingface_hub.HfApi().model_info(repository).siblings]
        return pathlib.Path(huggingface_hub.snapshot_download(
            repository, allow_patterns=select(repository, names), cache_dir=str(cache())))
    except UserError:
        raise
    except Exception as error:              # noqa: BLE001, whatever comes up from the network, the server or the disk
        reason = " ".join(str(error).split())[:300]
        raise UserError(f"{repository}: no such file or folder, {state} in the cache, and the download failed: "
                        f"{type(error).__name__}: {reason}") from None


def model_files(repository, names, given=()):
    """Of a repository's file names, those that loading a model reads: one of the family whose parts it has, or the first.

    given: parts, or "tokenizer", that come from elsewhere
    """
    settings = {family.name: ["model_index.json", "scheduler/scheduler_config.json",
                              *(f"{part}/config.json" for part in family.parts if part not in given)]
                for family in families.FAMILIES}
    fitting = [family for family in families.FAMILIES if {*settings[family.name]} <= {*names}]
    family = max(fitting, key=lambda family: len(family.parts), default=families.FAMILIES[0])
    settings = settings[family.name]
    missing = [name for name in settings if name not in names]
    if missing:
        raise UserError(f"{repository}: not a model in diffusers layout, it has no {', '.join(missing)}")
    needed = settings.copy()
    for encoder in family.text_encoders if "tokenizer" not in given else ():
        needed += tokenizer_files(repository, names, families.tokenizer_of(encoder))
    for part, stem in ((part, row.stem) for part, row in family.parts.items() if part not in given):
        there = [name.removeprefix(f"{part}/") for name in names if name.startswith(f"{part}/")]
        weights = safetensors_file.choose(there, stem)
        if weights is None:
            pickles = [name for name in there if name.endswith(safetensors_file.PICKLES)]
            raise UserError(f"{repository}: no {part}/{stem}.safetensors in it" + (
                f", only the pickle {part}/{pickles[0]}, which is not read" if pickles else ""))
        needed.append(f"{part}/{weights}")
        if weights.endswith(".json"):
            needed += [f"{part}/{name}" for name in there if name.startswith(stem) and "-of-" in name
                       and name.endswith(".safetensors") and (".fp16" in name) == (".fp16" in weights)]
    return needed


def autoencoder_files(repository, names):
    """Of a repository's file names, those that loading an autoencoder reads."""
    stem = families.FAMILIES[0].parts["vae"].stem
    for folder in "vae/", "":
        weights = safetensors_file.choose([name.removeprefix(folder) for name in names if name.startswith(folder)], stem)
        if f"{folder}config.json" in names and weights and not weights.endswith(".json"):
            return [f"{folder}config.json", folder + weights]
    raise UserError(f"{repository}: no VAE in it (config.json and {stem}.safetensors)")


def tokenizer_files(repository, names, where="tokenizer"):
    """Of a repository's file names, those of its tokenizer in that folder, or beside all else."""
    for folder in f"{where}/", "":
        needed = [folder + name for name in TOKENIZER_FILES if folder + name in names]
        if {folder + "vocab.json", folder + "merges.txt"} <= {*needed} or folder + "tokenizer.json" in needed:
            return needed
    raise UserError(f"{repository}: no tokenizer in it (vocab.json and merges.txt)")


def shards(folder, files):
    """Paths, relative to `folder`, of what the indices among `files` list."""
    for name in files:
        if ".index." in name:
            yield from (f"{name.split('/')[0]}/{shard}" for shard in safetensors_file.shards(folder / name).values())
