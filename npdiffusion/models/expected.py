"""What models are given, looked at before they compute: a mistake is answered by a line that says what was expected.

Only kinds and shapes are read, never the numbers, so it costs about a microsecond, and a Variable of a tape passes as the
array that it stands for. Each function returns nothing, or raises

    TypeError     for another kind of thing (a list, a text) or of numbers (float64)
    ValueError    for another shape
"""
import numpy as np

FLOATS = np.dtype(np.float32), np.dtype(np.float16)      # which widens exactly


def pictures(x, what, channels):
    """Images or latents: (N, H, W, channels), float32 or float16      what: their name, in the plural"""
    wanted = f"(N, H, W, {channels})"
    _floats(x, what, wanted)
    if x.ndim == 4 and x.shape[-1] == channels:
        return
    first = x.ndim in (3, 4) and x.shape[-3] == channels != x.shape[-1]
    hint = {3: ": the batch axis is missing, " + ("and channels come last, x.transpose(1, 2, 0)[None]" if first else "x[None]"),
            4: ": channels come last, x.transpose(0, 2, 3, 1)" if first else ""}.get(x.ndim, "")
    raise ValueError(f"{what} are {x.shape}, but {wanted} is expected{hint}")


def states(x, width):
    """Hidden states of prompts: (N, S, width), float32 or float16"""
    wanted = f"(N, S, {width})"
    _floats(x, "hidden states of prompts", wanted, hint="text_encoder(tokenizer.encode(text)[None]) gives them")
    if x.ndim == 3 and x.shape[-1] == width:
        return
    hint = ": the batch axis is missing, x[None]" if x.ndim == 2 and x.shape[-1] == width else (
        ": they are of a text encoder of another width" if x.ndim == 3 else "")
    raise ValueError(f"hidden states of prompts are {x.shape}, but {wanted} is expected{hint}")


def ids(x, positions):
    """Token ids of prompts: (N, T), integers, T ≤ positions"""
    wanted = f"(N, T) of integers, T at most {positions},"
    if not _is_array(x):
        hint = "tokenizer.encode(text)[None]" if isinstance(x, str) else "np.stack([tokenizer.encode(text), ...])"
        raise TypeError(f"ids are {_kind(x)}, but an array {wanted} is expected: {hint}")
    if x.dtype.kind not in "iu":
        raise TypeError(f"ids are {x.dtype}, but {wanted} is expected")
    if x.ndim != 2 or x.shape[1] > positions:
        hint = ": the batch axis is missing, x[None]" if x.ndim == 1 else ""
        raise ValueError(f"ids are {x.shape}, but {wanted} is expected{hint}")


def _floats(x, what, wanted, hint=""):
    if not _is_array(x):
        raise TypeError(f"{what} are {_kind(x)}, but an array {wanted} of float32 is expected" + (f": {hint}" if hint else ""))
    if x.dtype not in FLOATS:
        hint = "x.astype(np.float32)" if x.dtype.kind == "f" else hint
        raise TypeError(f"{what} are {x.dtype}, but {wanted} of float32 is expected" + (f": {hint}" if hint else ""))


def _is_array(x):
    """Whether it is an array of NumPy or stands for one"""
    return isinstance(getattr(x, "dtype", None), np.dtype)


def _kind(x):
    return {str: "a text", list: "a list", tuple: "a tuple"}.get(type(x), f"of type {type(x).__name__}")
