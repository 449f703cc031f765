"""What every layer does while a picture is made: shapes, arithmetic, time, and the numbers that come out of it.

    found = trace(pipeline, "a cat", steps=4, keep=["unet.mid_block.*"])
    print(found)                                         a line for each layer
    found.tensors["unet.mid_block.resnets.1.conv2"]      its results, one for each call
    found.chrome()                                       for chrome://tracing and ui.perfetto.dev

Time is measured from the end of the operation before to the end of this one, so what lies between (concatenation, a bias
that is shifted) is counted with it; what the looking takes is not.
"""
import fnmatch
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from time import perf_counter
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from npdiffusion.errors import UserError
from npdiffusion.study.making import Stopped, finished, make, resolved_for
from npdiffusion.study.names import Names

MOST_CALLS = 200_000           # that are kept one by one: 300 steps of Stable Diffusion v1, 60 MB
MOST_BYTES = 2 << 30           # of tensors that are kept


class Call(NamedTuple):
    """One operation: when it ended the one before, how long it took (seconds), in which step (0: before the first)."""
    name: str
    operation: str
    step: int
    start: float
    seconds: float


@dataclass
class Layer:
    """What a layer did in all of its calls. Shapes and `flop` are those of the latest call, the numbers are of all results."""
    name: str
    operation: str
    shape_in: tuple = ()
    shape_out: tuple = ()
    flop: int = 0                  # floating-point operations of a call, see `flop`
    calls: int = 0
    seconds: float = 0.0           # of all calls
    largest: float = 0.0           # absolute value
    count: int = 0
    total: float = 0.0
    squares: float = 0.0

    @property
    def mean(self) -> float:
        return self.total / max(self.count, 1)

    @property
    def deviation(self) -> float:
        return math.sqrt(max(self.squares / max(self.count, 1) - self.mean**2, 0.0))

    def as_dict(self) -> dict[str, Any]:
        """For JSON; milliseconds and GFLOP are those of one call on average"""
        calls = max(self.calls, 1)
        return {"name": self.name, "operation": self.operation, "in": list(self.shape_in), "out": list(self.shape_out),
                "gflop": self.flop / 1e9, "calls": self.calls, "ms": 1e3 * self.seconds / calls, "mean": self.mean,
                "deviation": self.deviation, "largest": self.largest}


@dataclass
class Trace:
    """What `trace` found. layers: {name: Layer}, in the order of the first call; tensors: {name: list of arrays}"""
    layers: dict[str, Layer] = field(default_factory=dict)
    calls: list[Call] = field(default_factory=list)
    tensors: dict[str, list[np.ndarray]] = field(default_factory=dict)
    images: list[Image.Image] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def rows(self) -> list[dict[str, Any]]:
        """A dictionary for each layer, for JSON"""
        return [layer.as_dict() for layer in self.layers.values()]

    def chrome(self) -> dict[str, Any]:
        """The calls in Chrome's trace format: a track for each part of the model, times in microseconds"""
        parts = list(dict.fromkeys(call.name.partition(".")[0] for call in self.calls))
        first = self.calls[0].start if self.calls else 0.0
        events = [{"name": "thread_name", "ph": "M", "pid": 1, "tid": number, "args": {"name": part}}
                  for number, part in enumerate(parts)]
        for call in self.calls:
            part, _, name = call.name.partition(".")
            events.append({"name": name, "cat": call.operation, "ph": "X", "pid": 1, "tid": parts.index(part),
                           "ts": round(1e6 * (call.start - first), 1), "dur": round(1e6 * call.seconds, 1),
                           "args": {"step": call.step, "out": list(self.layers[call.name].shape_out)}})
        return {"traceEvents": events, "displayTimeUnit": "ms"}

    def __str__(self):
        lines = [f"{'layer':<66}{'in':>20}{'out':>20}{'GFLOP':>9}{'ms':>9}{'mean':>9}{'deviation':>10}{'largest':>9}"]
        for row in self.rows():
            shapes = ("×".join(map(str, row[side])) for side in ("in", "out"))
            lines.append(f"{row['name']:<66}{next(shapes):>20}{next(shapes):>20}{row['gflop']:9.3f}{row['ms']:9.2f}"
                         f"{row['mean']:9.3f}{row['deviation']:10.3f}{row['largest']:9.3f}")
        return "\n".join(lines)


class Tracer:
    """Fills a `Trace`: `watch` is for kernels.watched, `step` for the pipeline's callback."""
    def __init__(self, pipeline: Any, keep: Sequence[str] = (), until: str | None = None) -> None:
        self.names, self.found, self.step_number = Names(pipeline), Trace(), 0
        self.keep, self.until = tuple(keep), until
        self.names.check([*self.keep, *filter(None, [until])])
        self.kept = 0
        self.before = perf_counter()

    def step(self, done: int, total: int, latents: np.ndarray) -> None:
        self.step_number = done
        self.before = perf_counter()

    def watch(self, operation: str, arguments: dict[str, Any], result: Any) -> None:
        now = perf_counter()
        if isinstance(result, np.ndarray):               # packing gives a weight
            self._note(operation, arguments, result, now)
        self.before = perf_counter()

    def _note(self, operation, arguments, result, now):
        name = self.names.of(operation, arguments)
        layer = self.found.layers.get(name)
        if layer is None:
            layer = self.found.layers[name] = Layer(name, operation)
        layer.shape_in, layer.shape_out = np.shape(next(iter(arguments.values()))), result.shape
        layer.flop = flop(operation, arguments, result)
        layer.calls += 1
        layer.seconds += now - self.before
        flat = result.reshape(-1)
        layer.count += flat.size
        layer.total += float(flat.sum(dtype=np.float64 if flat.size < 4096 else None))
        layer.squares += float(np.dot(flat, flat))
        layer.largest = max(layer.largest, float(flat.max()), -float(flat.min()))
        if len(self.found.calls) < MOST_CALLS:
            self.found.calls.append(Call(name, operation, self.step_number, self.before, now - self.before))
        elif not self.found.notes:
            self.found.notes.append(f"only the first {MOST_CALLS} operations are listed one by one; layers count all")
        if name == self.until or any(fnmatch.fnmatchcase(name, pattern) for pattern in self.keep):
            self._keep(name, result)
        if name == self.until:
            raise Stopped

    def _keep(self, name, result):
        self.kept += result.nbytes
        if self.kept > MOST_BYTES:
            raise UserError(f"the tensors that are to be kept take more than {MOST_BYTES >> 30} GB: name fewer, or take "
                            "fewer steps")
        self.found.tensors.setdefault(name, []).append(result.copy())


def trace(pipeline: Any, prompt: str, negative_prompt: str = "", *, keep: Sequence[str] = (), until: str | None = None,
          **settings: Any) -> Trace:
    """Make a picture and note what every layer does → Trace

    keep      names of layers whose results are kept, a list for each in `tensors`; `*` stands for anything
    until     the name of a layer: end at its first result, which is kept; there is no picture then
    settings  as for `generate`
    Raises UserError for a name that no layer has, or if tensors would take more than 2 GB.
    """
    tracer = Tracer(pipeline, [keep] if isinstance(keep, str) else keep, until)
    resolved = resolved_for(pipeline, prompt, negative_prompt, **settings)
    tracer.found.images = finished(pipeline, resolved, make(pipeline, resolved, [tracer.watch], tracer.step))
    return tracer.found


def flop(operation: str, arguments: dict[str, Any], result: np.ndarray) -> int:
    """Floating-point operations of a call, by the conventions of models/flops.py: products alone"""
    weight: tuple[int, ...] = getattr(arguments.get("weight"), "shape", ())
    if operation in ("linear", "conv2d", "upsample_conv2d"):
        return 2 * result.size * math.prod(weight[1:])
    if operation == "linear_geglu":
        return 4 * result.size * weight[1]
    if operation == "attention":
        return 4 * result.size * arguments["k"].shape[1]
    return 0
