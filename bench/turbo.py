"""SD-Turbo and XL-Turbo at full size: a picture in one step without guidance, ours beside OpenVINO.

    loading     ours: folder → pipeline      OpenVINO: its three or four models, converted before, → compiled
    a picture   prompt → text encoders → UNet, once → decoder → levels

Each system has a process of its own, for XL does not fit in memory twice; so turns are not taken, and a quiet machine is
needed. Weights are random, and each system's are its own: time does not depend on them. OpenVINO gets token ids.
"""
import contextlib
import multiprocessing
import pathlib
import resource
import tempfile
import time

import numpy as np

from bench import peers, turns, xl
from npdiffusion.checkpoints import families
from npdiffusion.checkpoints.config_json import config

FAMILIES = {"sd": families.V2, "xl": families.XL}
PROMPT = "a lighthouse at dawn"
REDUCTION = 8


def add_arguments(parser):
    turns.add_arguments(parser, dtypes=["int8"])
    parser.add_argument("--family", choices=FAMILIES, default="sd")
    parser.add_argument("--model", type=pathlib.Path, default=None,
                        help="folder that is written, or was (default: a temporary one)")
    parser.set_defaults(against=["openvino"], dtype="bfloat16")


def run(arguments, sizes=None):
    """SD-Turbo or XL-Turbo: one step without guidance, from prompt to levels, beside OpenVINO."""
    family = FAMILIES[arguments.family]
    sizes = sizes or xl.sizes(family)
    threads = turns.set_threads(arguments.threads)
    turns.describe(f"turbo, {family}, one step", threads, arguments)
    with contextlib.ExitStack() as stack:
        folder = arguments.model or pathlib.Path(stack.enter_context(tempfile.TemporaryDirectory()), "model")
        if not folder.exists():
            alone(xl.write_folder, folder, family)
        found = {turns.OURS: alone(ours, folder, arguments, threads)}
        if "openvino" in arguments.against:
            found["openvino"] = alone(on_openvino, sizes, arguments, threads)
    least = {name: min(each["pictures"]) for name, each in found.items()}
    turns.table([("loading s", ".1f"), ("least s", ".2f"), ("median s", ".2f"), ("ours ÷ it", ".2f"), ("GB at most", ".2f")],
                [(name, each["loading"], least[name], float(np.median(each["pictures"])), least[turns.OURS] / least[name],
                  each["memory"] / 1e9) for name, each in found.items()])
    for name, each in found.items():
        print(f"{name}: " + ", ".join(f"{stage} {seconds:.2f} s" for stage, seconds in each["stages"].items()))
    turns.last_line(benchmark="turbo", family=family, dtype=arguments.dtype, size=arguments.size, threads=threads,
                    seconds=least, loading={name: each["loading"] for name, each in found.items()},
                    versions=turns.versions(arguments.against))


def alone(function, *given):
    """What a function returns in a process of its own"""
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=_send, args=(theirs, function, given))
    process.start()
    theirs.close()
    try:
        return ours.recv()
    except EOFError:
        raise SystemExit(f"bench: {function.__name__} failed") from None
    finally:
        process.join()


def _send(connection, function, given):
    connection.send(function(*given))


def timed(load, draw, repeats):
    """What is found of a system: load() → what draw(it) → {stage: seconds} makes pictures with"""
    start = time.perf_counter()
    system = load()
    loading = time.perf_counter() - start
    draw(system)                                         # warms up
    runs = []
    for _ in range(repeats):
        start = time.perf_counter()
        stages = draw(system)
        runs.append((time.perf_counter() - start, stages))
    return {"loading": loading, "pictures": [seconds for seconds, _ in runs], "stages": min(runs, key=lambda run: run[0])[1],
            "memory": 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss}


def ours(folder, arguments, threads):
    """By `generate`"""
    import npdiffusion
    from npdiffusion.kernels import fast
    fast.warm_up(dtype=arguments.dtype)

    def draw(pipeline):
        pipeline.generate(PROMPT, steps=1, guidance_scale=1.0, seed=0, width=arguments.size, height=arguments.size,
                          progress=False)
        return dict(pipeline.timings)
    return timed(lambda: npdiffusion.load(folder, dtype=arguments.dtype, threads=threads), draw, arguments.repeats)


def on_openvino(sizes, arguments, threads):
    """Its models one after the other, a time step and noise given"""
    side = arguments.size // REDUCTION
    inputs = {"unet": [np.zeros((1, 4, side, side), np.float32), np.array([999.0], np.float32),
                       np.zeros((1, 77, sizes["unet"].cross_attention_dim), np.float32)],
              "vae": [np.zeros((1, 4, side, side), np.float32)]}
    if sizes["unet"].added_width:
        inputs["unet"] += [np.zeros((1, sizes["text_encoder_2"].projection_dim), np.float32), np.zeros((1, 6), np.float32)]
    texts = [name for name in sizes if name.startswith("text")]
    inputs |= {name: [np.zeros((1, 77), np.int64)] for name in texts}
    requests, loading = {}, 0.0
    for name in [*texts, "unet", "vae"]:                 # one at a time: a converted model is as large as a compiled one
        model = peers.converted(module(name, sizes), inputs[name])
        start = time.perf_counter()
        requests[name] = peers.compiled(model, "bfloat16" if arguments.dtype == "int8" else arguments.dtype, threads)
        loading += time.perf_counter() - start
        del model
    noise = np.random.default_rng(0).standard_normal(inputs["vae"][0].shape, np.float32)

    def draw(_):
        stages, states, pooled = {}, [], []
        for name in texts:
            stages[name], found = clocked(requests[name], inputs[name])
            states.append(found[0])
            pooled = [found[1]] if len(found) > 1 else pooled
        context = np.concatenate(states, axis=-1)
        stages["unet"], found = clocked(requests["unet"], [noise, inputs["unet"][1], context, *pooled, *inputs["unet"][4:]])
        stages["decoding"], found = clocked(requests["vae"], [noise - found[0]])
        np.clip(found[0] * 127.5 + 127.5, 0, 255).astype(np.uint8)
        return stages
    return timed(lambda: requests, draw, arguments.repeats) | {"loading": loading}


def clocked(request, arrays):
    """Seconds, [result]"""
    start = time.perf_counter()
    found = request.infer(arrays)
    return time.perf_counter() - start, [*found.values()]


def module(name, sizes):
    """A part as a torch module of random weights, which returns tensors alone; float16, half of float32's memory"""
    import torch
    import transformers

    from bench import models
    torch.set_default_dtype(torch.float16)
    try:
        if name == "unet":
            return peers.unet_module(models.torch_model(sizes[name]))
        if name == "vae":
            return peers.decoder_module(models.torch_model(sizes[name]))
        settings = transformers.CLIPTextConfig(**config(sizes[name]))
        if name == "text_encoder_2":
            return peers.text_module(transformers.CLIPTextModelWithProjection(settings).eval())
        return peers.text_module(transformers.CLIPTextModel(settings).eval())
    finally:
        torch.set_default_dtype(torch.float32)
