"""Fitting a model into a given amount of memory: --max-memory.

    resident = RUNTIME + weights kept + largest of (feature maps of the UNet, of the autoencoder) + a weight being read

From what is best for the picture to what needs least, the first that fits is taken:

    1  all weights in memory, float32
    2  the same in bfloat16: half the memory, and faster where the processor multiplies it
    3  the UNet alone in memory, all others stay on disk and are read when they are used (on_disk.py), once or twice a picture
    4  as 2, then as 3, with the UNet's weights in int8, a quarter of float32's
    5  as 3, in bfloat16, and what doesn't fit of the UNet's weights is read in each step

From 3 on the picture is decoded in tiles (models/tiling.py) if more weights stay in memory for it: of GOOD_TILE pixels or
more, and of fewer only where nothing else fits. A given dtype is kept to.

Attention never holds a matrix of all tokens by all tokens (kernels/products/flash_attention.py), so there is nothing to choose
for it; the plain NumPy definitions do, and are refused.
"""
import warnings
from dataclasses import dataclass, field

import numpy as np

from npdiffusion import kernels
from npdiffusion.errors import UserError
from npdiffusion.memory import estimates, seconds, tiles
from npdiffusion.models import on_disk as streaming
from npdiffusion.models import parameters

RUNTIME = 220e6                       # bytes: Python, NumPy, numba, compiled kernels and what they work in
SMALLEST_TILE = 128                   # pixels: in smaller ones the autoencoder sees too little of the picture,
GOOD_TILE = 512                       # in such ones as much as v1's was trained on
LONG = 100                            # seconds: from there on, minutes are said


@dataclass
class Budget:
    """What was chosen. on_disk: {part: names of parameters that are read when used}; kept: bytes of all others

    buffer: bytes that reading the largest of them takes; with an adapter, of which some are merged meanwhile, more: merging
    beside: {kind: bytes} of what was loaded later, of all that is kept      read: bytes of the file that a step reads
    maps: bytes of the largest feature maps of the planned picture
    tile: side in pixels of the tiles in which the planned picture is decoded, or None     images: that a step computes
    seconds: of a step, as `measure` finds them; None before that
    """
    limit: float | None
    dtype: str
    width: int = 0
    height: int = 0
    kept: float = 0
    buffer: float = 0
    maps: float = 0
    read: float = 0
    on_disk: dict = field(default_factory=dict)
    tile: int | None = None
    images: int = 2
    seconds: float | None = None
    merging: float = 0
    beside: dict = field(default_factory=dict)

    @property
    def foretold(self):
        """Bytes that are expected to be resident at most."""
        return RUNTIME + self.kept + self.buffer + self.maps

    def room(self):
        """Bytes that are left for feature maps."""
        return self.limit - RUNTIME - self.kept - self.buffer

    def choose(self, config, width, height, mode="auto"):
        """The tiles for a picture as by `tiles.choose`, or the largest smaller ones that fit; the smallest, if none do"""
        for tile in tile_sizes(config, width, height, mode):
            if estimates.picture(config, width, height, tile) <= self.room():
                break
        return tile

    def require(self, maps, what):
        """UserError unless there is room for feature maps of so many bytes."""
        if maps > self.room():
            needed = self.limit - self.room() + maps
            raise UserError(f"{what}: need about {needed / 1e9:.2f} GB with the weights as they were loaded, but max_memory "
                            f"is {self.limit / 1e9:.2f} GB")

    def count(self, what, parts):
        """Count the weights of [Part] among those that are kept, in place of others of that kind that were loaded later;
        UserError if there is no room for them beside the planned picture"""
        needed = sum(parameters.nbytes(part.model, self.dtype) for part in parts)
        more = needed - self.beside.get(what, 0)
        if more > 0 and self.foretold + more > self.limit:
            raise UserError(f"{what}: need about {(self.foretold + more) / 1e9:.2f} GB with the weights as they were loaded, "
                            f"but max_memory is {self.limit / 1e9:.2f} GB; named when the model is loaded, they are fitted in")
        self.kept += more
        self.beside[what] = needed

    def allow_merging(self):
        """Note that an adapter is merged into weights whenever they are read; a warning if no room was left for it"""
        if self.merging and self.foretold + self.merging > self.limit:
            warnings.warn(f"an adapter is merged into weights that stay on disk, which may take {self.merging / 1e9:.2f} GB "
                          f"more than max_memory; named in a prompt when the model is loaded, it is fitted in", stacklevel=4)
        self.merging = 0

    def measure(self, networks, reduction):
        """Find the seconds of a step of the planned picture: of the UNet and of ControlNets, [network]; see seconds.py"""
        self.seconds = seconds.of_step(networks, self.height // reduction, self.width // reduction, self.images, self.read)

    def __str__(self):
        """One line about it."""
        weights = self.dtype + " weights"
        if self.read:
            weights += f", {self.read / 1e9:.2f} GB of the UNet's read from disk in each step"
        elif self.on_disk:
            weights += ", those of text encoder and autoencoder read from disk when used"
        if self.tile and self.tile < max(self.width, self.height):
            weights += f", decoding in tiles of {self.tile} pixels"
        time = ""
        if self.seconds is not None:
            amount = f"{self.seconds:.2g} s" if self.seconds < LONG else f"{self.seconds / 60:.2g} minutes"
            time = f", about {amount} per step"
        return f"memory {self.limit / 1e9:.2f} GB: {weights}{time}"


def unlimited(parts, dtype):
    """The Budget of a model whose weights are all kept in memory, without a limit; parts: {name: checkpoints.part.Part}"""
    return Budget(None, dtype, kept=sum(parameters.nbytes(part.model, dtype) for part in parts.values()))


def require_reading(limit, requests):
    """Bytes that reading the largest picture takes that a request starts from; UserError if `limit` is too little for that"""
    most, pictures = 0, {id(request.init_image): request.init_image for request in requests}
    for given in pictures.values():
        needed = estimates.reading(given)
        if needed and RUNTIME + needed > limit:
            raise UserError(f"{given if isinstance(given, str) else 'init_image'}: reading this picture takes "
                            f"{needed / 1e9:.2f} GB beside {RUNTIME / 1e9:.2f} GB of the program, but max_memory is "
                            f"{limit / 1e9:.2f} GB; a smaller copy of it would do")
        most = max(most, needed)
    return most


def plan(parts, limit, sizes, dtype=None, images=2, mode="auto", preview_vae=None, reading=0, adapted=()):
    """How to fit the parts of a model, checked but empty, into `limit` bytes → Budget

    parts: {name: checkpoints.part.Part}     sizes: (width, height) of pictures, of which the one that needs most counts
    dtype: None leaves the choice     images: that the UNet computes in a step: two for each picture with guidance, one without
    mode: of tiling, as a request has it     preview_vae: an autoencoder beside the model's, for previews, or None
    reading: bytes that a picture to start from takes      adapted: names of parts whose weights an adapter changes
    UserError if they can't be made to fit.
    """
    if kernels.backend() == "numpy":
        raise UserError("max_memory: the numpy backend, made for reading, doesn't save memory; use the numba backend")
    controlnets = [name for name in parts if name.startswith("controlnet")]
    unets = [name for name in ("unet", "refiner unet") if name in parts]
    unet, vae = parts["unet"].model.config, parts["vae"].model.config
    f = vae.reduction
    width, height = largest(sizes, unet, vae, images, mode)
    step = max(estimates.step(parts[name].model.config, width // f, height // f, images) for name in unets)
    words = sum(estimates.words(parts[name].model.config, images) for name in (*unets, *controlnets))
    reading = max(reading, *(estimates.merging(parts[name].model, many=True) for name in adapted)) if adapted else reading
    step = max(reading, step + words + estimates.control(unet, width // f, height // f, images) * bool(controlnets))
    beside = 0
    if preview_vae is not None:                       # float32, all of it in memory, and without tiles
        beside = parameters.nbytes(preview_vae, "float32")
        step = max(step, estimates.picture(preview_vae.config, width, height))
    tile = tiles.choose(vae, width, height, mode)
    ordered = dict.fromkeys(("unet", *controlnets, *unets, "vae", *parts))                    # the UNet is used most
    on_disk = None
    for kept_as in (dtype,) if dtype else kernels.DTYPES:
        kept, maps = beside + unlimited(parts, kept_as).kept, max(step, estimates.picture(vae, width, height, tile))
        if RUNTIME + kept + maps <= limit:
            return Budget(limit, kept_as, width, height, kept, maps=maps, tile=tile, images=images)
        if dtype or kept_as != "float32":
            found = partly_on_disk({name: parts[name] for name in ordered}, limit, kept_as, (width, height), images, mode, step,
                                   beside, bool(adapted))
            if not found.read:
                return found
            on_disk = on_disk or found                        # bfloat16's, rather than int8's
    return on_disk


def partly_on_disk(parts, limit, dtype, size, images, mode, step, beside, adapted):
    """`plan` with weights on disk; parts: those that are used most come first     step, beside: bytes of feature maps of a
    step, and of what else is kept     adapted: whether there are adapters"""
    every_step = [name for name in parts if name.endswith("unet") or name.startswith("controlnet")]
    vae = parts["vae"].model.config
    streamable = {name: part.may_stay_on_disk(dtype) for name, part in parts.items()}
    fixed = beside + sum(parameters.nbytes(part.model, dtype) for part in parts.values()) - sum(
        sum(found.values()) for found in streamable.values())
    buffer = max((count + parts[part].bytes_to_read(name) for part in every_step
                  for name, count in streamable[part].items()), default=0)
    merging = estimates.merging(parts["unet"].model)
    if adapted:
        buffer, merging = buffer + merging, 0
    wanted = sum(sum(streamable[name].values()) for name in every_step)
    room = -1
    for side in tile_sizes(vae, *size, mode):
        picture = max(step, estimates.picture(vae, *size, side))
        left = limit - RUNTIME - fixed - buffer - picture
        if left >= 0:
            tile, maps, room = side, picture, left
            if room >= wanted or (tile or max(size)) <= GOOD_TILE:
                break
    if room < 0:
        least = np.ceil((limit - left) / 1e7) / 100
        raise UserError(f"max_memory is {limit / 1e9:.2f} GB: too little for {size[0]}×{size[1]} pixels, which need at least "
                        f"{least:.2f} GB; smaller pictures need less")
    on_disk, kept = {}, fixed
    for name in parts:
        names, taken = streaming.keep(streamable[name], room - (kept - fixed))
        on_disk[name] = streamable[name].keys() - names
        kept += taken
    read = sum(parts[part].bytes_in_file(name) for part in every_step if part != "refiner unet" for name in on_disk[part])
    return Budget(limit, dtype, *size, kept, buffer, maps, read, on_disk, tile, images, merging=merging)


def largest(sizes, unet, vae, images, mode):
    """The size that needs most memory."""
    f = vae.reduction
    return max(sizes, key=lambda size: (max(estimates.step(unet, size[0] // f, size[1] // f, images), estimates.picture(
        vae, *size, tiles.choose(vae, *size, mode))), size[0] * size[1]))


def tile_sizes(config, width, height, mode):
    """The tiles to be tried: what `tiles.choose` says, then, unless tiles are ruled out, smaller and smaller ones."""
    first = tiles.choose(config, width, height, mode)
    yield first
    if mode != "off":
        step = 4 * config.reduction
        side = (first or max(width, height)) - 1
        yield from range(side // step * step, min(SMALLEST_TILE, config.sample_size) - 1, -step)
