"""Reading safetensors files, the form in which weights are shared: a table of contents, then numbers.

    8 bytes: n     n bytes: JSON {name: {"dtype", "shape", "data_offsets": [start, end]}}     the numbers, back to back

A pickle (.ckpt, .bin, .pt) is a program that rebuilds its tensors, and may do anything else; it is never opened.
The safetensors library checks the table. Numbers are read when a tensor is called (tensors.py); nothing stays of the file
in memory.
"""
import json
import logging
import pathlib
import shlex

import safetensors

from npdiffusion.checkpoints.tensors import Tensor
from npdiffusion.checkpoints.text_files import read_json
from npdiffusion.errors import UserError

LARGEST_HEADER = 16 << 20     # bytes; all of Stable Diffusion v1 needs 0.2 MB
MOST_AXES, LONGEST_AXIS = 8, 1 << 31      # of a tensor; weights have 4, and NumPy takes 64 of some product
MOST_SHARDS = 64
PICKLES = (".ckpt", ".bin", ".pt", ".pth")

_log = logging.getLogger("npdiffusion")


def read_file(path):
    """The tensors of a safetensors file: {name: Tensor}; no numbers are read yet.

    Raises UserError for a file that is missing, damaged, cut short or of another format (named, if it is well known).
    """
    path = pathlib.Path(path)
    try:
        if not path.is_file():
            raise UserError(f"{path}: {'a file was expected, not a folder' if path.is_dir() else 'no such file'}")
        with path.open("rb") as file:
            first = file.read(512)
            name_foreign(path, first)
            length = int.from_bytes(first[:8], "little")
            if length > LARGEST_HEADER and length < path.stat().st_size:
                raise UserError(f"{path}: its table of contents has {length} bytes, far more than any such model needs")
            with safetensors.safe_open(path, framework="np"):       # raises if the table and the file don't agree
                file.seek(8)
                table = json.loads(file.read(length))
    except OSError as error:
        raise UserError(f"{path}: {error.strerror or error}") from None
    except safetensors.SafetensorError as error:
        raise UserError(f"{path}: not a safetensors file, damaged or cut short ({error})") from None
    table.pop("__metadata__", None)
    if not table:
        raise UserError(f"{path}: there are no tensors in it")
    for name, entry in table.items():
        if len(entry["shape"]) > MOST_AXES or max(entry["shape"], default=0) > LONGEST_AXIS:
            raise UserError(f"{path}: {name[:200]!a} has the shape {str(entry['shape'])[:100]}, but at most {MOST_AXES} axes "
                            f"are read, none longer than {LONGEST_AXIS}")
    return {name: Tensor(path, name, entry["dtype"], tuple(entry["shape"]), 8 + length + entry["data_offsets"][0])
            for name, entry in table.items()}


def stamp(path):
    """What changes when a file does: its size and the time of its last change; None if it is not there"""
    try:
        status = path.stat()
    except OSError:
        return None
    return status.st_size, status.st_mtime_ns


def name_foreign(path, first):
    """UserError if the first bytes of a file tell that it is something else than safetensors."""
    if first[5:9] == b"\0\0\0{":             # a length below 2⁴⁰, then JSON: safetensors, whatever the suffix
        return
    if first.startswith((b"PK", b"\x80")) or path.suffix in PICKLES:
        raise UserError(pickle_message(path))
    text = first.lstrip()[:20].lower()
    for mark, meaning in (
            (b"version https://git", "a pointer of git-lfs; fetch the file itself with: git lfs pull"),
            (b"<", "a web page; the download went wrong (a login or a licence to be accepted, perhaps)"),
            (b"{", "a JSON file; the weights are in a .safetensors file"),
            (b"gguf", "a GGUF file, in which only models and autoencoders are read")):
        if text.startswith(mark):
            raise UserError(f"{path}: not a safetensors file but {meaning}")
    if not first:
        raise UserError(f"{path}: the file is empty")


ALL_TENSORS = "{k: v.clone().contiguous() for k, v in d.get('state_dict', d).items() if torch.is_tensor(v)}"


def pickle_message(path, result=None, tensors=ALL_TENSORS):
    """What to do about a pickle: one line that converts it where torch and safetensors are installed.

    tensors: Python text, which is only shown, for what is to be saved of the pickle's contents `d`
    """
    result = str(result or path.with_suffix(".safetensors"))
    program = (f"import torch, safetensors.torch as s; "
               f"d = torch.load({str(path)!r}, map_location='cpu', weights_only=True); "
               f"s.save_file({tensors}, {result!r})")
    return (f"{path}: a pickle, which can run any program, so it is not opened; "
            f"convert it to safetensors: python -c {shlex.quote(program)}")


def read_folder(folder, stem):
    """The tensors of one part of a model in diffusers layout → ({name: Tensor}, path of the file they came from)

    stem: what its files are called, see families.py. The weights are in one file or in shards that
    a JSON index lists; where there is only a half-precision variant (.fp16), that is taken.
    """
    folder = pathlib.Path(folder)
    try:
        names = [path.name for path in folder.iterdir()]
    except OSError as error:
        raise UserError(f"{folder}: {error.strerror or error}") from None
    name = choose(names, stem)
    if name is None:
        pickles = sorted(name for name in names if name.endswith(PICKLES))
        if pickles:
            raise UserError(pickle_message(folder / pickles[0], folder / f"{stem}.safetensors"))
        raise UserError(f"{folder}: no {stem}.safetensors in it")
    if ".fp16" in name:
        _log.info("%s: taking the half-precision variant, the only one there", folder / name)
    if name.endswith(".json"):
        return read_shards(folder / name), folder / name
    return read_file(folder / name), folder / name


def choose(names, stem):
    """Of the file names in a folder, the one to read weights from (safetensors, or an index of shards), or None."""
    for name in (f"{stem}.safetensors", f"{stem}.safetensors.index.json", f"{stem}.fp16.safetensors",
                 f"{stem}.safetensors.index.fp16.json", f"{stem}.fp16.safetensors.index.json"):
        if name in names:
            return name
    return None


def shards(index):
    """{tensor: file name} from an index; UserError unless all are safetensors files of the same folder."""
    weight_map = read_json(index, largest=LARGEST_HEADER).get("weight_map")
    if not isinstance(weight_map, dict) or not all(isinstance(name, str) for name in weight_map.values()):
        raise UserError(f"{index}: weight_map should say for each tensor which file it is in")
    files = sorted(set(weight_map.values()))
    if not 1 <= len(files) <= MOST_SHARDS:
        raise UserError(f"{index}: lists {len(files)} files, 1 to {MOST_SHARDS} are possible")
    for name in files:
        if not name.endswith(".safetensors") or name.startswith(".") or any(c in name for c in "/\\:\0"):
            raise UserError(f"{index}: {name[:200]!a} is not the name of a safetensors file in the same folder")
    return weight_map


def read_shards(index):
    """The tensors of all files in an index: {name: Tensor}"""
    tensors = {}
    weight_map = shards(index)
    for name in sorted(set(weight_map.values())):
        found = read_file(index.parent / name)
        listed = {tensor for tensor, file in weight_map.items() if file == name}
        if listed != found.keys():
            wrong = sorted(listed ^ found.keys())
            raise UserError(f"{index}: it doesn't fit {name}; they differ in {len(wrong)} tensors, "
                            f"the first is {wrong[0][:200]!a}")
        tensors |= found
    return tensors
