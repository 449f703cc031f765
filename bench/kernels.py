"""Time every kernel at the shapes that Stable Diffusion v1 really has, beside its NumPy twin and torch.

The shapes come from the models' configurations, for a guided step (a batch of 2) at the given picture size. All systems
take turns (`bench.turns`). The last line is one JSON object.
"""
import numpy as np

from bench import turns
from npdiffusion import kernels
from npdiffusion.kernels import machine
from npdiffusion.models.configs import UNetConfig, VAEConfig

BATCH = 2          # the two halves of classifier-free guidance
WORDS = 77


def shapes(size):
    """Yield (name, kind, sizes) for a picture of size × size pixels."""
    unet, vae = UNetConfig(), VAEConfig()
    side = size // vae.reduction
    for level, channels in enumerate(unet.block_out_channels):
        pixels = side >> level
        yield f"conv 3×3       {pixels}² {channels}", "conv", (BATCH, pixels, channels, channels, 3)
        if unet.cross_attention[level]:
            tokens, heads = pixels * pixels, unet.heads[level]
            yield f"linear         {tokens} {channels}", "linear", (BATCH * tokens, channels, channels)
            yield f"linear GEGLU   {tokens} {channels}", "geglu", (BATCH * tokens, channels, 4 * channels)
            for name, keys in (("self", tokens), ("cross", WORDS)):
                yield (f"{name}-attention {tokens} {heads}×{channels // heads}", "attention",
                       (BATCH, tokens, keys, channels, heads))
        yield f"group norm SiLU {pixels}² {channels}", "norm", (BATCH, pixels, channels, unet.norm_num_groups)
    for level, channels in enumerate(vae.block_out_channels):
        yield f"VAE conv 3×3   {size >> level}² {channels}", "conv", (1, size >> level, channels, channels, 3)


def normal(*shape):
    return np.random.default_rng(0).standard_normal(shape, dtype=np.float32)


def work(kind, sizes):
    """→ (call on packed or plain weights, weights' packing, arguments, floating-point operations, the same in torch)"""
    if kind == "conv":
        n, side, inputs, outputs, kernel = sizes
        x, w, b = normal(n, side, side, inputs), normal(outputs, inputs, kernel, kernel), normal(outputs)
        flops = 2 * n * side * side * inputs * outputs * kernel * kernel
        return (lambda w: kernels.conv2d(x, w, b, 1, (1, 1, 1, 1))), "pack_conv2d", w, flops, torch_convolution(x, w, b)
    if kind in ("linear", "geglu"):
        rows, inputs, outputs = sizes
        outputs *= 2 if kind == "geglu" else 1
        x, w, b = normal(rows, inputs), normal(outputs, inputs), normal(outputs)
        call = kernels.linear_geglu if kind == "geglu" else kernels.linear
        name = call.__name__
        return ((lambda w: getattr(kernels, name)(x, w, b)), "pack_linear", w, 2 * rows * inputs * outputs,
                torch_linear(x, w, b, kind == "geglu"))
    if kind == "attention":
        n, queries, keys, channels, heads = sizes
        q, k, v = normal(n, queries, channels), normal(n, keys, channels), normal(n, keys, channels)
        flops = 4 * n * queries * keys * channels
        return (lambda _: kernels.attention(q, k, v, heads)), None, None, flops, torch_attention(q, k, v, heads)
    n, side, channels, groups = sizes
    x, w, b = normal(n, side, side, channels), normal(channels), normal(channels)
    call = lambda _: kernels.group_norm_silu(x, w, b, groups, 1e-5)
    return call, None, None, 10 * x.size, torch_norm(x, w, b, groups)


def torch_convolution(x, w, b):
    def make(torch):
        image = torch.from_numpy(x).permute(0, 3, 1, 2)
        weight, bias = torch.from_numpy(w).to(memory_format=torch.channels_last), torch.from_numpy(b)
        return lambda: torch.conv2d(image, weight, bias, padding=1)
    return make


def torch_linear(x, w, b, gated):
    def make(torch):
        rows, weight, bias = torch.from_numpy(x), torch.from_numpy(w), torch.from_numpy(b)

        def call():
            y = torch.nn.functional.linear(rows, weight, bias)
            if gated:
                value, gate = y.chunk(2, dim=-1)
                y = value * torch.nn.functional.gelu(gate)
            return y
        return call
    return make


def torch_attention(q, k, v, heads):
    def make(torch):
        split = [torch.from_numpy(a).unflatten(-1, (heads, -1)).transpose(1, 2) for a in (q, k, v)]
        return lambda: torch.nn.functional.scaled_dot_product_attention(*split)
    return make


def torch_norm(x, w, b, groups):
    def make(torch):
        image, weight, bias = torch.from_numpy(x).permute(0, 3, 1, 2), torch.from_numpy(w), torch.from_numpy(b)
        return lambda: torch.nn.functional.silu(torch.nn.functional.group_norm(image, groups, weight, bias, 1e-5))
    return make


def contender(system, kind, sizes):
    """A callable without arguments that does the work once on `system`."""
    call, packing, weight, _, torch_version = work(kind, sizes)
    if system == "torch":
        import torch
        return torch_version(torch)
    kernels.use_backend(system)
    packed = getattr(kernels, packing)(weight) if packing else None

    def once():
        kernels.use_backend(system)
        return call(packed)
    return once


def systems(text):
    """"numpy,torch" → ["numpy", "torch"]; ValueError for any other name"""
    return turns.names(text, ("numpy", "torch"))


def add_arguments(parser):
    parser.add_argument("--size", type=int, default=512, help="pixels, of a square picture (default 512)")
    parser.add_argument("--threads", type=int, default=None, help="default: physical cores")
    parser.add_argument("--against", type=systems, default=["numpy", "torch"],
                        help="other systems, of numpy and torch (default both; '' is none)")
    parser.add_argument("--repeats", type=int, default=5, help="turns of each system (default 5)")


def run(arguments):
    """Every kernel at the shapes of Stable Diffusion v1, beside its NumPy twin and torch."""
    count = turns.set_threads(arguments.threads)
    taking_part = ["numba", *arguments.against]
    if "torch" in taking_part:
        import torch
        torch.set_num_threads(count)
    print(f"{machine.cpu_name()}, {count} threads, {arguments.size}×{arguments.size}, medians of {arguments.repeats}\n")
    print(f"{'':<34}" + "".join(f"{name + ' ms':>11}{'GFLOP/s':>9}" for name in taking_part)
          + "".join(f"{'÷ ' + name:>9}" for name in taking_part[1:]))
    results = []
    for name, kind, sizes in shapes(arguments.size):
        calls = {system: contender(system, kind, sizes) for system in taking_part}
        turns.take(calls, 1)                                         # warms up and compiles
        median = turns.medians(turns.take(calls, arguments.repeats))
        flops = work(kind, sizes)[3]
        print(f"{name:<34}" + "".join(f"{1e3 * t:11.2f}{flops / t / 1e9:9.0f}" for t in median.values())
              + "".join(f"{median['numba'] / median[other]:9.2f}" for other in taking_part[1:]), flush=True)
        results.append({"kernel": " ".join(name.split()), "milliseconds": {s: 1e3 * t for s, t in median.items()}})
    turns.last_line(benchmark="kernels", size=arguments.size, threads=count, results=results)
