"""The parity table: the largest error over the largest value, of every operation and every model, against torch.

    python bench/parity.py [--backend numpy|numba] [--tiny]

Operations are compared with torch in float64, models with diffusers and transformers in float32, with random weights on
which mistakes show (tests/references.py). Exit code 1 if a limit is exceeded.
"""
import argparse
import gc
import pathlib
import sys

import numpy as np

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent))          # run as a script, from anywhere

import torch
from diffusers.models.embeddings import get_timestep_embedding
from torch.nn import functional as F

from npdiffusion import kernels
from tests import references
from tests.references import channels_first, channels_last, relative_error, twin

OPERATION, MODEL, ANGLES = 1e-5, 1e-4, 1e-4


def normal(*shape, seed=0, scale=1.0):
    return (scale * np.random.default_rng(seed).standard_normal(shape)).astype(np.float32)


def double(array):
    return torch.from_numpy(np.ascontiguousarray(array)).double()


def pixels(array):
    """(N, H, W, C) → torch (N, C, H, W) in float64"""
    return double(array).permute(0, 3, 1, 2)


def operations():
    """Yield (name, result, torch's result in float64)."""
    x, w, b = normal(2, 77, 768), normal(3072, 768, seed=1, scale=0.05), normal(3072, seed=2)
    yield "linear 768 → 3072", kernels.linear(x, w, b), F.linear(double(x), double(w), double(b))
    value, gate = F.linear(double(x), double(w), double(b)).chunk(2, dim=-1)
    yield "linear + GEGLU", kernels.linear_geglu(x, w, b), value * F.gelu(gate)
    image = normal(2, 19, 23, 60)
    for name, kernel, stride, padding in (
            ("1×1", 1, 1, (0, 0, 0, 0)), ("3×3", 3, 1, (1, 1, 1, 1)),
            ("3×3, stride 2", 3, 2, (1, 1, 1, 1)), ("3×3, stride 2, one-sided", 3, 2, (0, 1, 0, 1))):
        w, b = normal(70, 60, kernel, kernel, seed=1, scale=0.1), normal(70, seed=2)
        top, bottom, left, right = padding
        padded = F.pad(pixels(image), (left, right, top, bottom))
        yield (f"convolution {name}", kernels.conv2d(image, w, b, stride, padding),
               F.conv2d(padded, double(w), double(b), stride).permute(0, 2, 3, 1))
    w, b = normal(60, seed=1), normal(60, seed=2)
    shifted = image + 30
    yield ("group norm", kernels.group_norm(shifted, w, b, 12, 1e-6),
           F.group_norm(pixels(shifted), 12, double(w), double(b), 1e-6).permute(0, 2, 3, 1))
    yield ("group norm + SiLU", kernels.group_norm_silu(image, w, b, 12, 1e-5),
           F.silu(F.group_norm(pixels(image), 12, double(w), double(b), 1e-5)).permute(0, 2, 3, 1))
    yield "layer norm", kernels.layer_norm(image, w, b, 1e-5), F.layer_norm(double(image), (60,), double(w), double(b), 1e-5)
    wide = 4 * image
    yield "SiLU", kernels.silu(wide), F.silu(double(wide))
    yield "GELU", kernels.gelu(wide), F.gelu(double(wide))
    yield "quick-GELU", kernels.quick_gelu(wide), double(wide) * torch.sigmoid(1.702 * double(wide))
    yield "softmax", kernels.softmax(wide), F.softmax(double(wide), dim=-1)
    for name, heads, width, keys, causal in (("self, 8 × 40", 8, 40, 300, False), ("cross, 8 × 80", 8, 80, 77, False),
                                             ("causal, 12 × 64", 12, 64, 77, True), ("VAE, 1 × 512", 1, 512, 200, False)):
        queries = keys if causal else 300
        sizes = (queries, 2), (keys, 1), (keys, 1)
        q, k, v = (normal(2, n, heads * width, seed=s, scale=g) for s, (n, g) in enumerate(sizes))
        split = (double(a).unflatten(-1, (heads, width)).transpose(1, 2) for a in (q, k, v))
        expected = F.scaled_dot_product_attention(*split, is_causal=causal).transpose(1, 2).flatten(2)
        yield f"attention {name}", kernels.attention(q, k, v, heads, causal), expected
    yield ("nearest ×2", kernels.upsample_nearest(image, 38, 46),
           F.interpolate(pixels(image), scale_factor=2, mode="nearest").permute(0, 2, 3, 1))
    table, ids = normal(100, 24), np.arange(60).reshape(4, 15)
    yield "embedding", kernels.embedding(ids, table), double(table)[torch.from_numpy(ids)]
    # frequencies near 1 are known to half an ulp, 6e-8, and meet t = 999: torch's own rounding is 6e-5 of an angle
    t = np.array([999, 41.625], np.float32)
    yield ("time embedding (diffusers, float32)", kernels.timestep_embedding(t, 320),
           get_timestep_embedding(torch.from_numpy(t), 320, flip_sin_to_cos=True, downscale_freq_shift=0))


def models(size, unet, vae, text, latent, image):
    """Yield (name, result, torch's result); `latent` and `image` are (height, width)."""
    with torch.no_grad():
        theirs = references.torch_text_encoder(**text)
        ids = np.random.default_rng(0).integers(0, text["vocab_size"], (2, 77))
        yield f"text encoder, {size}", twin(theirs)(ids), theirs(torch.from_numpy(ids)).last_hidden_state.double()

        theirs = references.torch_unet(**unet)
        x, context, t = normal(2, *latent, 4), normal(2, 77, unet["cross_attention_dim"], seed=1), [999.0, 41.625]
        expected = theirs(channels_first(x), torch.tensor(t), torch.from_numpy(context)).sample
        ours = twin(theirs)
        del theirs
        yield f"UNet, {size}", ours(x, t, context), torch.from_numpy(channels_last(expected))
        del ours
        gc.collect()

        theirs = references.torch_vae(**vae)
        pictures = np.tanh(normal(1, *image, 3))
        posterior = theirs.encode(channels_first(pictures)).latent_dist
        expected, ours = theirs.decode(posterior.mean).sample, twin(theirs)
        mean, _ = ours.encode(pictures)
        z = channels_last(posterior.mean)
        yield f"VAE encoder, {size}", mean, torch.from_numpy(z)
        yield f"VAE decoder, {size}", ours.decode(z * ours.config.scaling_factor), torch.from_numpy(channels_last(expected))


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--backend", choices=list(kernels.BACKENDS), default=kernels.backend())
    parser.add_argument("--tiny", action="store_true", help="leave out the models at full size")
    arguments = parser.parse_args()
    kernels.use_backend(arguments.backend)
    print(f"backend {arguments.backend}, torch {torch.__version__}\n\n{'':<42}{'error':>9}{'limit':>9}")

    def rows():
        for row in operations():
            yield *row, ANGLES if row[0].startswith("time") else OPERATION
        for row in models("tiny", references.TINY_UNET, references.TINY_VAE, references.TINY_TEXT, (9, 13), (24, 40)):
            yield *row, OPERATION
        if not arguments.tiny:
            for row in models("SD v1", references.FULL_UNET, references.FULL_VAE, references.FULL_TEXT, (32, 24), (256, 192)):
                yield *row, MODEL

    exceeded = 0
    for name, found, expected, limit in rows():
        error = relative_error(found, expected.numpy())
        exceeded += error > limit
        print(f"{name:<42}{error:9.1e}{limit:9.0e}{'  exceeded' if error > limit else ''}", flush=True)
    return 1 if exceeded else 0


if __name__ == "__main__":
    sys.exit(main())
