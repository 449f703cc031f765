"""A large picture in overlapping tiles, each through the autoencoder by itself, so that memory doesn't grow with it.

    |←──── size ────→|            tiles begin every `stride` = ¾ size; the overlap fades linearly from one to the next,
    ┌───────────┬────┐
    │  tile 0   │    │                 y = (1 − k/n) · previous + k/n · next       k = 0 … n − 1, n = ¼ size
    └──────┬────┴────┴──────┐
           │    │  tile 1   │     first down, onto the tile above, then across, onto the tile to the left
           └────┴───────────┘

This is the rule of diffusers' `enable_vae_tiling`, so the same pictures come out. They are not quite those of the whole
picture: group norms and the attention of the autoencoder see one tile at a time. memory/tiles.py chooses the size.
"""
import itertools

import numpy as np

OVERLAP = 0.25                        # of a tile's side


def tiled(function, x, size, result_size):
    """function(x), tile by tile where x is larger than a tile      (N, H, W, C) → (N, H', W', C')

    size, result_size: sides of a tile and of what the function makes of it, multiples of 4; None for size: in one piece
    """
    if size is None or max(x.shape[1:3]) <= size:
        return function(x)
    stride, blend = int(size * (1 - OVERLAP)), int(result_size * OVERLAP)
    kept = result_size - blend
    whole, above = None, []                       # above: the last rows of each tile in the row of tiles before
    for top, y in zip(range(0, x.shape[1], stride), itertools.count(0, kept)):
        row, left = [], None
        for start, z in zip(range(0, x.shape[2], stride), itertools.count(0, kept)):
            tile = function(x[:, top:top + size, start:start + size])
            if above:
                _fade(above[len(row)], tile, blend)
            if left is not None:
                _fade(left.swapaxes(1, 2), tile.swapaxes(1, 2), blend)
            if whole is None:
                height, width = (side * result_size // size for side in x.shape[1:3])
                whole = np.empty((len(x), height, width, tile.shape[-1]), np.float32)
            whole[:, y:y + kept, z:z + kept] = tile[:, :kept, :kept]
            left = tile
            row.append(tile[:, max(0, tile.shape[1] - blend):].copy())
        above = row
    return whole


def _fade(previous, following, length):
    """The first `length` rows of `following`, in place: from the last rows of `previous` to its own."""
    length = min(length, previous.shape[1], following.shape[1])
    share = (np.arange(length, dtype=np.float32) / length)[:, None, None]
    following[:, :length] = previous[:, previous.shape[1] - length:] * (1 - share) + following[:, :length] * share
