"""By which factor a file scales its changes: α / R, or α / √R where PEFT says so.

kohya and LyCORIS keep α with each layer. PEFT keeps it beside, in adapter_config.json, and diffusers as text
in the file's header; both know exceptions for single layers. Where nothing is said the factor is 1.
"""
import contextlib
import functools
import json
import math

import numpy as np
import safetensors

from npdiffusion.adapters import patterns
from npdiffusion.checkpoints.tensors import STORED_AS
from npdiffusion.checkpoints.text_files import read_json
from npdiffusion.errors import UserError
from npdiffusion.kernels.arrays import as_float32
from npdiffusion.models.configs import Reader

SCALARS = STORED_AS | {"F64": "<f8", "I64": "<i8", "I32": "<i4"}     # what α is found as
PEFT_FILE, PEFT_CONFIG = "adapter_model.safetensors", "adapter_config.json"
IN_HEADER = "lora_adapter_metadata"


def alpha(layer):
    """The number α of a layer."""
    tensor = layer.tensors["alpha"]
    if tensor.dtype not in SCALARS or math.prod(tensor.shape) != 1:
        layer.fail(f"alpha is {tensor.shape} of type {tensor.dtype}, but one number is needed")
    try:
        stored = np.fromfile(tensor.path, SCALARS[tensor.dtype], 1, offset=tensor.start)
    except OSError as error:
        raise UserError(f"{layer.source}: {error.strerror or error}") from None
    value = float(as_float32(stored)[0]) if stored.size else math.nan
    if not math.isfinite(value):
        layer.fail("alpha is not a finite number")
    return value


def beside(path):
    """A function (part, layer) → function from R to the factor, or None where neither folder nor header has α"""
    configs, source = {}, path.parent / PEFT_CONFIG
    if path.name == PEFT_FILE and source.exists():
        whole = read_json(source)                                                    # of one part, whichever it is
        config_of = lambda part: whole
    else:
        source = f"{path}: {IN_HEADER}"
        with safetensors.safe_open(path, framework="np") as file:
            text = (file.metadata() or {}).get(IN_HEADER, "{}")
        try:
            for key, value in json.loads(text).items():
                part, _, name = key.partition(".")
                configs.setdefault(part, {})[name] = value
        except (ValueError, RecursionError, AttributeError):
            raise UserError(f"{source} is not a dictionary in JSON") from None
        config_of = lambda part: configs.get(part, {})

    allowance = patterns.Allowance()
    exceptions = functools.cache(lambda part, name: Exceptions(config_of(part), name, source, allowance))

    def factor(part, layer):
        read = Reader(config_of(part), source)
        name = "lora_alpha" if "lora_alpha" in read.settings else "alpha"            # of LoHa and LoKr
        if name not in read.settings:
            return None
        alpha = exceptions(part, "alpha_pattern").of(layer) or read.number(name, None)
        root = read.settings.get("use_rslora") is True

        def scale(found):
            rank = found or exceptions(part, "rank_pattern").of(layer) or read.number("r", None)
            return alpha / (math.sqrt(rank) if root else rank)
        return scale
    return factor


class Exceptions:
    """A dictionary {regular expression: number} of what is otherwise for some layers, as PEFT looks it up"""
    def __init__(self, config, name, source, allowance):
        read = Reader(config, source)
        given = read.settings.get(name, {})
        if not isinstance(given, dict):
            read.fail(name, "a dictionary is needed")
        self.numbers, self.name = Reader(given, f"{source}: {name}"), f"{source}: {name}"
        with self.named():
            self.patterns = patterns.Patterns(self.numbers.settings, allowance)

    def of(self, layer):
        """The number of the first expression that fits a layer, or None"""
        with self.named():
            key = self.patterns.find(layer, f"text_model.{layer}")       # transformers left this prefix out later
        return None if key is None else self.numbers.number(key, None)

    @contextlib.contextmanager
    def named(self):
        try:
            yield
        except ValueError as error:
            raise UserError(f"{self.name}: {error}") from None
