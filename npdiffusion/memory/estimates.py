"""Will a model fit? An estimate before anything is allocated, since a machine that runs out of memory helps no one.

    needed = 4 bytes (bfloat16: 2) · parameters + FEATURE_MAPS · largest feature map of the decoder, for a usual picture
"""
import os
import pathlib

from npdiffusion.errors import UserError
from npdiffusion.models import parameters

UNET_MAPS = 13        # of the first level's size, alive at once in its last blocks: skips, tokens, q, k, v, …
FEATURE_MAPS = 3      # alive at once in a residual block: its input, that normalised, and half as many channels convolved


def check(text_encoder, unet, vae, source, dtype="float32", kept=None):
    """UserError if the models, and what making a picture takes, need more memory than there is.

    kept: bytes of the weights, if not all of them stay in memory
    """
    size = vae.config.sample_size
    needed = sum(parameters.nbytes(model, dtype) for model in (text_encoder, unet, vae)) if kept is None else kept
    require(needed + picture(vae.config, size, size), str(source))


def step(config, width, height, images):
    """Bytes that the UNet's feature maps take; width, height: latent pixels; images: 2 with guidance for each picture"""
    return UNET_MAPS * 4 * images * width * height * config.block_out_channels[0]


def picture(config, width, height, tile=None):
    """Bytes that decoding a picture of width × height pixels takes; config: the VAE's; tile: see tiles.py"""
    channels = config.block_out_channels
    width, height = min(width, tile or width), min(height, tile or height)
    return FEATURE_MAPS * 4 * width * height * channels[min(1, len(channels) - 1)]


def require(needed, what):
    """UserError unless that many bytes are available, as far as the system tells."""
    there = available()
    if there is not None and needed > there:
        raise UserError(f"{what}: needs about {needed / 1e9:.1f} GB of memory, {there / 1e9:.1f} GB are available")


def available():
    """Bytes that this process can still take without swapping, as far as the system tells; None if it doesn't."""
    amounts = [amount for amount in (_meminfo(), *_control_groups()) if amount is not None]
    if not amounts and "SC_AVPHYS_PAGES" in getattr(os, "sysconf_names", ()):
        amounts = [os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")]
    return min(amounts, default=None)


def _meminfo():
    for line in _lines("/proc/meminfo"):
        if line.startswith("MemAvailable:"):
            return int(line.split()[1]) * 1024
    return None


def _control_groups(root="/sys/fs/cgroup", own="/proc/self/cgroup"):
    """What is left below the limit of each group that the process is in; containers and batch systems set them.

    Pages of files count as used there, but the kernel gives those that were not used lately back when memory is short.
    """
    for line in _lines(own):
        _, controllers, path = line.split(":", 2)
        if controllers == "":                                                                   # version 2: one tree
            folder, names = pathlib.Path(root), ("memory.max", "memory.current", "inactive_file")
        elif "memory" in controllers.split(","):
            folder, names = pathlib.Path(root, "memory"), (
                "memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")
        else:
            continue
        parts = pathlib.PurePosixPath(path).parts[1:]
        for group in (folder.joinpath(*parts[:depth]) for depth in range(len(parts) + 1)):
            limit, used = (next(_lines(group / name), "") for name in names[:2])
            if limit.isdigit() and used.isdigit():
                files = [line.split()[1] for line in _lines(group / "memory.stat") if line.split()[0] == names[2]]
                yield max(0, int(limit) - int(used) + int(*files))


def _lines(path):
    try:
        yield from pathlib.Path(path).read_text().splitlines()
    except OSError:
        return
