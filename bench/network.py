"""One guided step, or one decoding: this project and the peers in turn, on the same random weights and inputs.

    step      the UNet on N latents under 2 N prompts, as classifier-free guidance wants it      --images N
    decode    the VAE's decoder on N latents

Ours gets the N latents and remembers the prompts' keys and values, as `generate` does; the peers get a batch of 2 N, as
diffusers' pipeline does. Operations are those of a direct algorithm on the batch of 2 N, for everyone.

The memory of a system is what the process grew by while it was made and called for the first time; torch's has the
weights besides, which were there before. The difference is to the first system's result, over its largest value.
"""
import functools

import numpy as np

from bench import models, peers, turns
from bench.peak import Peak
from npdiffusion.models import flops
from npdiffusion.models.conditioning import Conditioning
from npdiffusion.models.configs import UNetConfig, VAEConfig

TIME, TIMES = 500.0, 1000
SAMPLES = 2                            # by which a peer's int8 is calibrated
REDUCTION = VAEConfig().reduction      # pixels that a latent pixel stands for


def add_arguments(parser):
    turns.add_arguments(parser, dtypes=["int8"], known=turns.PEERS)
    parser.add_argument("--images", type=int, default=1, help="how many at once (default 1)")


def run_step(arguments, sizes=UNetConfig()):
    """One call of the UNet for guided images."""
    run("step", arguments, sizes)


def run_decode(arguments, sizes=VAEConfig()):
    """One decoding of latents to images."""
    run("decode", arguments, sizes)


def run(what, arguments, sizes):
    threads = turns.set_threads(arguments.threads)
    if arguments.dtype == "int8":
        turns.leave_out_without_int8(arguments)
        if what == "decode":                             # of which nothing is int8, see models/parameters.py
            arguments.against = []
    turns.describe(f"{what} of {arguments.images} image{'s' * (arguments.images > 1)}", threads, arguments)
    calls, memory, difference = {}, {}, {}
    expected = None
    for name, call, grown in systems(what, arguments, sizes, threads):
        with turns.Growth() as growth:
            result = call()                              # warms up; kernels are compiled
        calls[name], memory[name] = call, grown + growth.bytes
        expected = result if expected is None else expected
        difference[name] = float(np.abs(result - expected).max() / np.abs(expected).max())
    peak = Peak(threads, arguments.dtype)
    times = turns.take(calls | {"peak": peak}, arguments.repeats, twice=calls)
    report(what, arguments, threads, operations(what, arguments, sizes), times, memory, difference, peak.flops)


def operations(what, arguments, sizes):
    """What a direct algorithm does for all images; a step has two halves."""
    side = arguments.size // REDUCTION
    count = flops.unet(sizes, side, side) if what == "step" else flops.decoder(sizes, side, side)
    return sum(count.values()) * arguments.images * (2 if what == "step" else 1)


def systems(what, arguments, sizes, threads):
    """Yield (name, call, bytes that making it took). Results are channels last."""
    side, n = arguments.size // REDUCTION, arguments.images
    latents = models.normal(n, side, side, sizes.in_channels if what == "step" else sizes.latent_channels)
    first = np.ascontiguousarray(latents.transpose(0, 3, 1, 2))
    if what == "step":
        context = models.normal(2 * n, flops.WORDS, sizes.cross_attention_dim)
        arrays = [np.concatenate([first, first]), np.array([TIME], np.float32), context]
    else:
        arrays = [first]

    ours = [(turns.OURS, arguments.dtype), ("in bfloat16", "bfloat16")]
    for name, dtype in ours if arguments.dtype == "int8" else ours[:1]:
        with turns.Growth() as growth:
            model = models.ours(sizes, dtype)
            if what == "step":
                call = functools.partial(model, latents, TIME, Conditioning(context))
            else:
                call = functools.partial(model.decode, latents * sizes.scaling_factor)
        yield name, call, growth.bytes

    if arguments.against:
        module = (peers.unet_module if what == "step" else peers.decoder_module)(models.theirs(sizes))
    make = {"onnxruntime": peers.on_onnxruntime, "openvino": peers.on_openvino, "torch": peers.on_torch,
            "torch.compile": peers.on_compiled_torch}
    for name in sorted(arguments.against):               # torch comes last: it may change the module
        with turns.Growth() as growth:
            peer = make[name](module, arrays, arguments.dtype, threads,
                              **{"samples": samples(*arrays)} if arguments.dtype == "int8" else {})
        weights = sum(p.nbytes for p in module.parameters()) if name.startswith("torch") else 0
        yield name, lambda peer=peer: peer().transpose(0, 2, 3, 1), weights or growth.bytes


def samples(latents, _, context):
    """Inputs like those of a step, random ones at random times, by which a peer's int8 is calibrated"""
    rng = np.random.default_rng(1)
    return [[rng.standard_normal(latents.shape, dtype=np.float32), rng.uniform(0, TIMES, 1).astype(np.float32),
             rng.standard_normal(context.shape, dtype=np.float32)] for _ in range(SAMPLES)]


def report(what, arguments, threads, flops, times, memory, difference, peak):
    """The table and the line of JSON."""
    median = turns.medians(times)
    del median["peak"]
    rows = [(name, 1e3 * t, 1e3 * min(times[name]), flops / t / 1e9, flops / t / peak, median[turns.OURS] / t,
             memory[name] / 1e9, difference[name]) for name, t in median.items()]
    rows.append(("peak", 1e3 * flops / peak, None, peak / 1e9, 1.0, None, None, None))
    turns.table([("median ms", ".0f"), ("least ms", ".0f"), ("GFLOP/s", ".0f"), ("of peak", ".2f"),
                 ("ours ÷ it", ".2f"), ("GB", ".2f"), ("difference", ".1e")], rows)
    turns.last_line(benchmark=what, dtype=arguments.dtype, size=arguments.size, images=arguments.images,
                    threads=threads, gflop=flops / 1e9, peak_gflops=peak / 1e9, seconds=median,
                    least={name: min(times[name]) for name in median},
                    ratios={name: median[turns.OURS] / t for name, t in median.items() if name != turns.OURS},
                    memory=memory, difference=difference,
                    versions=turns.versions(arguments.against, arguments.dtype))
