"""How large the tiles are in which the autoencoder takes a picture, if it takes it in tiles at all (models/tiling.py)."""
from npdiffusion.errors import UserError, nearest
from npdiffusion.kernels import machine
from npdiffusion.memory import estimates
from npdiffusion.settings import TILING

LARGEST_WHOLE = 2e9                   # bytes that coding a picture in one piece may take if nobody asks for tiles


def choose(config, width, height, mode="auto"):
    """The side of the tiles, in pixels, for a picture of width × height; None: it is coded in one piece.

    config: the autoencoder's     mode: "on": tiles as large as the pictures it was trained on, as in diffusers; "off";
    "auto": such tiles where one piece would take more than LARGEST_WHOLE, or more than there is.
    UserError for another mode.
    """
    if mode not in TILING:
        raise UserError(f"vae_tiling is {mode!r}: {nearest(mode, TILING)}known are {', '.join(TILING)}")
    step = 4 * config.reduction
    tile = max(step, config.sample_size // step * step)
    if mode == "auto":
        there = machine.memory_available()
        limit = LARGEST_WHOLE if there is None else min(LARGEST_WHOLE, there)
        return None if estimates.picture(config, width, height) <= limit else tile
    return tile if mode == "on" else None
