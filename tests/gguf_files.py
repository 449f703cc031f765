"""GGUF files, written number by number: stable-diffusion.cpp's have no settings, which the package gguf can't write."""
import struct

import numpy as np

F32, F16, Q8_0, Q4_0, I32, BF16 = 0, 1, 8, 2, 26, 30
ALIGNMENT = 32


def text(value):
    return struct.pack("<Q", len(value.encode())) + value.encode()


def gguf(tensors, settings=(), version=3, alignment=ALIGNMENT):
    """bytes of a file      tensors: {name: (kind, shape, bytes of its numbers)}      settings: [(name, type, bytes)]"""
    table, data = b"", b""
    for name, (kind, shape, numbers) in tensors.items():
        data += bytes(-len(data) % alignment)
        table += text(name) + struct.pack(f"<I{len(shape)}QIQ", len(shape), *reversed(shape), kind, len(data))
        data += numbers
    head = b"GGUF" + struct.pack("<IQQ", version, len(tensors), len(settings))
    head += b"".join(text(name) + struct.pack("<I", kind) + value for name, kind, value in settings) + table
    return head + bytes(-len(head) % alignment) + data


def plain(array):
    """An array as float32 or float16 numbers → (kind, shape, bytes)"""
    return (F16 if array.dtype == np.float16 else F32), array.shape, array.tobytes()


def q8_0(array):
    """Rounded to 256 levels in blocks of 32 → (kind, shape, bytes)"""
    blocks = np.ascontiguousarray(array, np.float32).reshape(-1, 32)
    scale = (np.abs(blocks).max(axis=1, keepdims=True) / 127).astype(np.float16)
    levels = np.round(blocks / np.where(scale > 0, scale, 1).astype(np.float32)).clip(-127, 127).astype(np.int8)
    return Q8_0, array.shape, b"".join(d.tobytes() + q.tobytes() for d, q in zip(scale, levels))
