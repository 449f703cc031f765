"""Attention maps: how much each place of the picture looks at each word.

    P = softmax(q kᵀ / √D)      (T, S) for each head of each cross-attention: T = h · w places, S positions of the prompt

Each row of P is a distribution over the prompt. P is computed beside the kernel, which never holds it as a whole, from
the q and k that the kernel was given; that P V is the kernel's result is checked each time. Maps of the layers of one
level of the UNet are averaged, and brought to at most SIDE × SIDE places as they are made, so that memory doesn't grow
with the picture: by the mean over the area of each place, which keeps sums over the words. Averaging the rest too, layers,
heads and steps, gives DAAM's map of a word (Tang et al. 2022, arXiv:2210.04885). Why P: docs/notes/09-attention.md
"""
import math
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from PIL import Image

from npdiffusion.errors import UserError
from npdiffusion.kernels import reference
from npdiffusion.models.attention import CrossAttention
from npdiffusion.study import words as prompts
from npdiffusion.study.making import finished, make, resolved_for
from npdiffusion.study.names import Names
from npdiffusion.study.words import Word, Words

SIDE = 32                     # of a map, at most: a level of 64 × 64 places is averaged over 2 × 2 of them
MOST_STEPS = 50               # maps of neighbouring steps are averaged until there are so many
MOST_BYTES = 256 << 20        # of all maps; more are averaged over more steps
BAND = 1 << 24                # numbers of P that are held at once, or those of one head if they are more


@dataclass
class AttentionMaps:
    """The maps of a picture's first row of the batch.

    levels    for each level of the UNet that has cross-attention, the largest first: (steps, heads, words, h, w), float32
    layers    of how many layers each of these is the mean
    words     what the columns are: the tokens, and start, end and padding; see words.py
    spans     (first, last) of the steps that each map is the mean of, from 1
    rows, values   the checks: the largest |Σ P − 1| of a row, the largest |P V − y| over (1 + max |score|) max |V|

    That is the scale of what float32 can say of P V: a score of size s is rounded by up to 6e-8 s, which changes P by as
    much of itself.
    """
    levels: list[np.ndarray]
    layers: list[int]
    words: list[Word]
    spans: list[tuple[int, int]]
    images: list[Image.Image] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    rows: float = 0.0
    values: float = 0.0

    @property
    def array(self) -> np.ndarray:
        """(steps, levels, heads, words, h, w), float32, all levels on the places of the largest; sums to 1 over the words"""
        h, w = self.levels[0].shape[-2:]
        return np.stack([resized(level, h, w) for level in self.levels], axis=1)

    def __array__(self, dtype=None, copy=None):
        return self.array if dtype is None else self.array.astype(dtype)

    def columns(self, word: str) -> list[int]:
        """Which words are meant; UserError, with the nearest one, if there is none such."""
        return prompts.find_word(self.words, word)

    def of(self, word: str) -> np.ndarray:
        """DAAM's map of a word: the mean over layers, heads and steps; parts of a word are summed      (h, w), from 0 to 1"""
        columns = self.columns(word)
        size = self.levels[0].shape[-2:]
        means = [resized(level[:, :, columns].sum(axis=2).mean(axis=(0, 1)), *size) for level in self.levels]
        return np.average(means, axis=0, weights=self.layers).astype(np.float32)

    def averages(self) -> np.ndarray:
        """DAAM's maps of all words      (words, h, w)"""
        size = self.levels[0].shape[-2:]
        means = [resized(level.mean(axis=(0, 1)), *size) for level in self.levels]
        return np.average(means, axis=0, weights=self.layers).astype(np.float32)


class Recorder:
    """Makes `AttentionMaps` of a `Resolved`: `watch` is for kernels.watched, `step` for the pipeline's callback."""
    def __init__(self, pipeline: Any, resolved: Any) -> None:
        config, canvas = pipeline.unet.config, resolved.canvas
        self.names, self.words, self.resolved = Names(pipeline), Words(pipeline, resolved), resolved
        self.cross = {f"{name}.to_q": level_of(name, config) for name, module in self.names.owners.items()
                      if isinstance(module, CrossAttention) and name.startswith("unet.")}
        self.numbers = sorted(set(self.cross.values()))                        # the largest level first
        self.heads = math.gcd(*(config.heads[level] for level in self.numbers))
        size = tuple(side // pipeline.vae.config.reduction for side in reversed(canvas.size))
        self.sizes = [size]
        for _ in config.block_out_channels:
            self.sizes.append(tuple((side + 1) // 2 for side in self.sizes[-1]))
        self.now = self.sizes                                                  # of the pass that is being made
        planned = resolved.planned
        self.bins = bins(planned, sum(4 * self.heads * len(self.words.list) * h * w for h, w in
                                      (pooled(self.sizes[level]) for level in self.numbers)))
        self.maps = {level: np.zeros((self.bins, self.heads, len(self.words.list), *pooled(self.sizes[level])), np.float32)
                     for level in self.numbers}
        self.counts = {level: np.zeros(self.bins, np.int64) for level in self.numbers}
        self.ends = np.cumsum([len(way.plan) for way in resolved.passes]).tolist()
        self.asking = ""                                                       # the layer whose queries are attended with next
        self.planned, self.done, self.call, self.rows, self.values = planned, 0, -1, 0.0, 0.0

    def step(self, done: int, total: int, latents: np.ndarray) -> None:
        self.done = done
        if done in self.ends:
            self.call = -1                                                     # calls are counted in each pass

    def watch(self, operation: str, arguments: dict[str, Any], result: Any) -> None:
        if operation == "attention" and self.asking in self.cross:
            self._record(self.cross[self.asking], arguments, result)
            self.asking = ""                                                   # the same queries may look at pictures beside
        elif "weight" in arguments:
            self.asking = self.names.of(operation, arguments)
            if self.asking == "unet.conv_in":                                  # a call of the UNet begins
                self.call += 1
                self.now = [arguments["x"].shape[1:3]]
                for _ in self.sizes[1:]:
                    self.now.append(tuple((side + 1) // 2 for side in self.now[-1]))

    def _record(self, level, arguments, result):
        q, k, v = (arguments[name] for name in ("q", "k", "v"))
        row = len(k) // 2 if self.resolved.guidance > 1 else 0                 # the negative prompt's half comes first
        heads, dtype = arguments["heads"], arguments["dtype"]
        q, k, v, y = (x[row].reshape(len(x[row]), heads, -1).swapaxes(0, 1) for x in (q, k, v, result))      # (heads, T, D)
        group = self.words.group(self.pass_number, self.call, k.shape[1])
        (h, w), target = self.now[level], self.maps[level].shape[-2:]
        found = np.empty((heads, len(self.words.list), *target), np.float32)
        band = max(1, BAND // (q.shape[1] * k.shape[1]))
        for start in range(0, heads, band):
            some = slice(start, start + band)
            p, used, score = probabilities(q[some], k[some], dtype)
            self.rows = max(self.rows, float(np.abs(p.sum(axis=-1) - 1).max()))
            difference = np.abs(used @ value(v[some], dtype) - y[some]).max()
            self.values = max(self.values, float(difference) / ((1 + score) * largest(v[some])))
            maps = np.moveaxis((p @ group).reshape(-1, h, w, len(self.words.list)), -1, 1)
            found[some] = resized(maps, *target)
        at = min(self.done, self.planned - 1) * self.bins // self.planned
        self.maps[level][at] += found.reshape(self.heads, -1, *found.shape[1:]).mean(axis=1)
        self.counts[level][at] += 1

    @property
    def pass_number(self) -> int:
        return next((number for number, end in enumerate(self.ends) if self.done < end), len(self.ends) - 1)

    def finish(self, images: Iterable[Image.Image] = ()) -> AttentionMaps:
        """→ AttentionMaps"""
        levels = [self.maps[level] / np.maximum(self.counts[level], 1)[:, None, None, None, None].astype(np.float32)
                  for level in self.numbers]
        spans = [(-(-at * self.planned // self.bins) + 1, -(-(at + 1) * self.planned // self.bins)) for at in range(self.bins)]
        notes = []
        if self.bins < self.planned:
            notes.append(f"maps of {self.planned} steps are averaged into {self.bins}, which keeps them within "
                         f"{MOST_BYTES >> 20} MB")
        side = max(self.sizes[self.numbers[0]])
        if side > SIDE:
            notes.append(f"maps of {side} places a side are averaged to {SIDE}")
        layers = [list(self.cross.values()).count(level) for level in self.numbers]
        return AttentionMaps(levels, layers, self.words.list, spans, list(images), notes, self.rows, self.values)


def attention_maps(pipeline: Any, prompt: str, negative_prompt: str = "", **settings: Any) -> AttentionMaps:
    """Make a picture and keep what each place looks at → AttentionMaps, whose `array` is (steps, levels, heads, words, h, w)

    settings: as for `generate`; of a batch, the first picture's maps are kept. Levels of different numbers of heads are
    brought to the same by averaging neighbouring heads.
    Memory: at most 256 MB for maps, and BAND numbers (or one head's) of P at once. Raises UserError if one step's maps
    would take more.
    """
    resolved = resolved_for(pipeline, prompt, negative_prompt, **settings)
    recorder = Recorder(pipeline, resolved)
    return recorder.finish(finished(pipeline, resolved, make(pipeline, resolved, [recorder.watch], recorder.step)))


def probabilities(q: np.ndarray, k: np.ndarray, dtype: str = "float32") -> tuple[np.ndarray, np.ndarray, float]:
    """softmax(q kᵀ / √D), as kernels.reference.attention has it      q: (..., T, D)   k: (..., S, D)   → (..., T, S)

    and, beside it, what the kernel multiplies V by (the same, or in bfloat16 that of rounded powers), and the largest |score|
    """
    scale = 1 / math.sqrt(q.shape[-1])
    if dtype == "bfloat16":
        q = np.float32(math.log2(math.e) * scale) * q
        scores = reference.rounded(q) @ reference.rounded(k).swapaxes(-1, -2)
        powers = np.exp2(scores - np.rint(scores.max(axis=-1, keepdims=True)))
        total = powers.sum(axis=-1, keepdims=True)
        return powers / total, reference.rounded(powers) / total, largest(scores)
    scores = (q * scale) @ k.swapaxes(-1, -2)
    p = reference.softmax(scores)
    return p, p, largest(scores)


def largest(x: np.ndarray) -> float:
    """max |x|, without a copy"""
    return max(float(x.max()), -float(x.min()))


def value(v: np.ndarray, dtype: str) -> np.ndarray:
    """V as the kernel multiplies it"""
    return reference.rounded(v) if dtype == "bfloat16" else v


def level_of(name: str, config: Any) -> int:
    """The level of the UNet that a block is on, 0 for the largest: "unet.up_blocks.0.…" is on the last one"""
    _, blocks, *rest = name.split(".")
    last = len(config.block_out_channels) - 1
    return {"down_blocks": lambda: int(rest[0]), "up_blocks": lambda: last - int(rest[0])}.get(blocks, lambda: last)()


def pooled(size: tuple[int, int]) -> tuple[int, int]:
    """(h, w) of the map of a level of that size"""
    h, w = size
    return min(SIDE, h), min(SIDE, w)


def bins(steps: int, each: int) -> int:
    """How many maps in time there are for so many steps, if one takes `each` bytes; UserError if that is too many already"""
    if each > MOST_BYTES:
        raise UserError(f"attention maps of this prompt would take {each / 1e6:.0f} MB for each step, more than "
                        f"{MOST_BYTES >> 20}: shorten the prompt")
    return max(1, min(steps, MOST_STEPS, MOST_BYTES // each))


def resized(maps: np.ndarray, h: int, w: int) -> np.ndarray:
    """Maps on another number of places, each the mean over its area      (..., h', w') → (..., h, w)"""
    if maps.shape[-2:] == (h, w):
        return maps
    return area(maps.shape[-2], h) @ maps @ area(maps.shape[-1], w).T


def area(n: int, m: int) -> np.ndarray:
    """(m, n), float32: row i averages n places over the i-th of m equal parts; rows sum to 1"""
    low = np.arange(m)[:, None] * n / m
    overlap = np.minimum(np.arange(1, n + 1), low + n / m) - np.maximum(np.arange(n), low)
    return (np.maximum(overlap, 0) * m / n).astype(np.float32)
