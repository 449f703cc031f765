"""SD-Turbo and XL-Turbo at full size: a picture in one step, ours beside OpenVINO and torch.

    loading     ours: folder → pipeline      OpenVINO: its three or four models, converted before, → compiled
    a picture   prompt → text encoders → UNet, once → decoder → levels

Without guidance, as these models are used; or --guided, as SD 2 and XL themselves are: two texts, which the UNet hears in
one batch. Each system has a process of its own, for XL does not fit in memory twice; so turns are not taken, and a quiet
machine is needed. Weights are random, and each system's are its own: time does not depend on them. Peers get token ids.
"""
import contextlib
import functools
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
SCALE = 7.5                            # of guidance
REDUCTION = 8


def add_arguments(parser):
    turns.add_arguments(parser, dtypes=["int8"])
    parser.add_argument("--family", choices=FAMILIES, default="sd")
    parser.add_argument("--model", type=pathlib.Path, default=None,
                        help="folder that is written, or was (default: a temporary one)")
    parser.add_argument("--guided", action="store_true", help="with guidance: the UNet hears two texts")
    parser.add_argument("--apart", action="store_true",
                        help="a process for each of a peer's models, where memory doesn't hold them all")
    parser.set_defaults(against=["openvino"], dtype="bfloat16")


def run(arguments, sizes=None):
    """SD-Turbo or XL-Turbo: one step, from prompt to levels, beside OpenVINO and torch."""
    family = FAMILIES[arguments.family]
    sizes = sizes or xl.sizes(family)
    threads = turns.set_threads(arguments.threads)
    turns.describe(f"turbo, {family}, one {'guided ' * arguments.guided}step", threads, arguments)
    with contextlib.ExitStack() as stack:
        folder = arguments.model or pathlib.Path(stack.enter_context(tempfile.TemporaryDirectory()), "model")
        if not folder.exists():
            alone(xl.write_folder, folder, family)
        found = {turns.OURS: alone(ours, folder, arguments, threads)}
        print(turns.OURS, written(found[turns.OURS]["stages"]), flush=True)
        found |= {name: peer(name, sizes, arguments, threads) for name in arguments.against}
    least = {name: min(each["pictures"]) for name, each in found.items()}
    turns.table([("loading s", ".1f"), ("least s", ".2f"), ("median s", ".2f"), ("ours ÷ it", ".2f"), ("GB at most", ".2f")],
                [(name, each["loading"], least[name], float(np.median(each["pictures"])), least[turns.OURS] / least[name],
                  each["memory"] / 1e9) for name, each in found.items()])
    for name, each in found.items():
        print(f"{name}: {written(each['stages'])}")
    turns.last_line(benchmark="turbo", family=family, dtype=arguments.dtype, size=arguments.size, guided=arguments.guided,
                    threads=threads, seconds=least, loading={name: each["loading"] for name, each in found.items()},
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
        pipeline.generate(PROMPT, steps=1, guidance_scale=SCALE if arguments.guided else 1.0, seed=0, width=arguments.size,
                          height=arguments.size, progress=False)
        return dict(pipeline.timings)
    return timed(lambda: npdiffusion.load(folder, dtype=arguments.dtype, threads=threads), draw, arguments.repeats)


def written(stages):
    return ", ".join(f"{stage} {seconds:.2f} s" for stage, seconds in stages.items())


def peer(name, sizes, arguments, threads):
    """By a peer; with --apart what its models take is added up."""
    groups = [[part] for part in sizes] if arguments.apart else [[*sizes]]
    found = []
    for group in groups:
        found.append(alone(on_peer, name, group, sizes, arguments, threads))
        print(name, written(found[-1]["stages"]), flush=True)
    return {"loading": sum(each["loading"] for each in found), "memory": sum(each["memory"] for each in found),
            "pictures": [sum(runs) for runs in zip(*(each["pictures"] for each in found))],
            "stages": {stage: seconds for each in found for stage, seconds in each["stages"].items()}}


def on_peer(name, parts, sizes, arguments, threads):
    """Some of its models one after the other, on zeros and noise"""
    side, texts = arguments.size // REDUCTION, 1 + arguments.guided
    rng = np.random.default_rng(0)

    def normal(*shape):
        return rng.standard_normal(shape, np.float32)
    unet = sizes["unet"]
    inputs = {part: [np.zeros((texts, 77), np.int64)] for part in parts}
    inputs |= {"unet": [normal(texts, 4, side, side), np.array([999.0], np.float32),
                        normal(texts, 77, unet.cross_attention_dim)], "vae": [normal(1, 4, side, side)]}
    if unet.added_width:
        inputs["unet"] += [normal(texts, sizes["text_encoder_2"].projection_dim), normal(texts, 6)]
    calls, loading = {}, 0.0
    for part in parts:                                   # one at a time: a converted model is as large as a compiled one
        calls[part], seconds = SYSTEMS[name](part, sizes, inputs[part], arguments.dtype, threads)
        loading += seconds

    def draw(_):
        return {part: turns.seconds(functools.partial(calls[part], inputs[part])) for part in parts}
    return timed(lambda: calls, draw, arguments.repeats) | {"loading": loading}


def on_openvino(part, sizes, arrays, dtype, threads):
    """→ call(arrays), seconds of compiling"""
    # to convert is to run it once in torch, whose convolutions of large pictures take minutes in float16
    model = peers.converted(module(part, sizes, "float32" if part == "vae" else "float16"), arrays)
    start = time.perf_counter()
    request = peers.compiled(model, "bfloat16" if dtype == "int8" else dtype, threads)
    return request.infer, time.perf_counter() - start


def on_torch(part, sizes, _, dtype, threads):
    """→ call(arrays), 0: there is nothing to compile. Channels last, which is faster in bfloat16"""
    import torch
    torch.set_num_threads(threads)
    dtype = torch.float32 if dtype == "float32" else torch.bfloat16
    model = module(part, sizes, str(dtype).removeprefix("torch.")).to(memory_format=torch.channels_last)

    def call(arrays):
        given = [torch.from_numpy(array) for array in arrays]
        with torch.inference_mode():
            model(*(each.to(dtype) if each.is_floating_point() else each for each in given))
    return call, 0.0


SYSTEMS = {"openvino": on_openvino, "torch": on_torch}


def module(name, sizes, dtype):
    """A part as a torch module of random weights, which returns tensors alone      dtype: of its weights, a name"""
    import torch
    import transformers

    from bench import models
    torch.set_default_dtype(getattr(torch, dtype))
    try:
        with torch.device("meta"):                       # to draw billions of numbers one by one takes minutes
            if name in ("unet", "vae"):
                model = models.torch_model(sizes[name])
            else:
                kind = transformers.CLIPTextModelWithProjection if name == "text_encoder_2" else transformers.CLIPTextModel
                model = kind(transformers.CLIPTextConfig(**config(sizes[name]))).eval()
        model = filled(model.to_empty(device="cpu"))
    finally:
        torch.set_default_dtype(torch.float32)
    return {"unet": peers.unet_module, "vae": peers.decoder_module}.get(name, peers.text_module)(model)


def filled(model):
    """A torch module whose memory is not set yet, with random weights, the same few over and over"""
    import torch
    some = torch.randn(1 << 16, dtype=torch.float32)
    for key, parameter in model.named_parameters():
        flat = parameter.data.view(-1)
        if parameter.ndim == 1:                          # as `models.RandomTensor`: norms 1, biases 0
            flat.fill_(float(key.endswith("weight")))
        else:                                            # of variance 1 / inputs, else numbers would dwindle to what is slow
            scaled = (some / parameter[0].numel() ** 0.5).to(flat.dtype)
            flat.copy_(scaled.repeat(-(-flat.numel() // some.numel()))[:flat.numel()])
    for key, buffer in model.named_buffers():
        if not key.endswith("position_ids"):
            raise ValueError(f"a buffer that nothing is known of: {key}")
        buffer.copy_(torch.arange(buffer.numel()).view(buffer.shape))
    return model
