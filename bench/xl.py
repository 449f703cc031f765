"""Stable Diffusion XL at full size within a limit of memory, random weights: what it takes, and what was foretold.

Weights are written as bfloat16, a tensor at a time: 6.9 GB on disk, which --model names, or that are gone afterwards.
"""
import contextlib
import multiprocessing
import pathlib
import resource
import tempfile
import time

from bench import models
from npdiffusion import kernels
from npdiffusion.checkpoints import families
from npdiffusion.checkpoints.config_json import config
from npdiffusion.checkpoints.conversion import write_tensors

UNET = dict(
    block_out_channels=(320, 640, 1280), layers_per_block=2, cross_attention_dim=2048, attention_head_dim=(5, 10, 20),
    use_linear_projection=True, transformer_layers_per_block=(1, 2, 10), addition_embed_type="text_time",
    addition_time_embed_dim=256, projection_class_embeddings_input_dim=2816, sample_size=128,
    down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
    up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"))
SECOND = dict(vocab_size=49408, hidden_size=1280, intermediate_size=5120, num_attention_heads=20, num_hidden_layers=32,
              hidden_act="gelu", projection_dim=1280, eos_token_id=2)
V2_UNET = dict(cross_attention_dim=1024, attention_head_dim=(5, 10, 20, 20), use_linear_projection=True)
V2_TEXT = dict(hidden_size=1024, intermediate_size=4096, num_attention_heads=16, num_hidden_layers=23, hidden_act="gelu")
SETTINGS = {families.XL: {"text_encoder": {}, "text_encoder_2": SECOND, "unet": UNET, "vae": {"sample_size": 1024}},
            families.V2: {"text_encoder": V2_TEXT, "unet": V2_UNET, "vae": {}}}
PROMPT = "a lighthouse at dawn"


def add_arguments(parser):
    parser.add_argument("--model", type=pathlib.Path, default=None,
                        help="folder that is written, or was (default: a temporary one)")
    parser.add_argument("--max-memory", default="4GB")
    parser.add_argument("--dtype", choices=kernels.DTYPES, default=None, help="(default: what fits)")
    parser.add_argument("--size", type=int, default=1024)
    parser.add_argument("--steps", type=int, default=1)


def run(arguments):
    """Stable Diffusion XL at full size within a limit of memory: seconds and bytes beside what was foretold."""
    with contextlib.ExitStack() as stack:
        folder = arguments.model or pathlib.Path(stack.enter_context(tempfile.TemporaryDirectory()), "xl")
        for target, given in ((write_folder, (folder,)), (draw, (folder, arguments))):       # neither counts for the other
            if target is draw or not folder.exists():
                process = multiprocessing.get_context("spawn").Process(target=target, args=given)
                process.start()
                process.join()
                if process.exitcode:
                    raise SystemExit(f"bench: {target.__name__} failed")


def sizes(family=families.XL):
    """{part: configuration}      family: the name of one of SETTINGS"""
    row = row_of(family)
    settings = SETTINGS[family] | {"vae": SETTINGS[family]["vae"] | {"scaling_factor": row.factor}}
    return {name: row.parts[name].config.from_dict(each, name, row.parts[name].only) for name, each in settings.items()}


def row_of(family):
    """Of checkpoints.families"""
    return next(row for row in families.FAMILIES if row.name == family)


def write_folder(folder, family=families.XL):
    """A complete model in diffusers layout, random weights in bfloat16"""
    row = row_of(family)
    index = {"_class_name": row.classes[0], "force_zeros_for_empty_prompt": family == families.XL,
             "scheduler": ["diffusers", row.scheduler["_class_name"]]}
    for name, each in sizes(family).items():
        part = row.parts[name]
        models.write_json(folder / name / "config.json", config(each))
        tensors = {key: (tensor, tensor.shape) for key, tensor in models.tensors(part.model(each)).items()}
        write_tensors(folder / name / f"{part.stem}.safetensors", tensors, "bfloat16")
        index[name] = ["transformers" if "text" in name else "diffusers", part.model.__name__]
        if "text" in name:
            models.write_tokenizer(folder / families.tokenizer_of(name), each.vocab_size)
    models.write_json(folder / "scheduler" / "scheduler_config.json", row.scheduler)
    models.write_json(folder / "model_index.json", index)


def draw(folder, arguments):
    """Draw a picture, and print what it took"""
    import npdiffusion
    from npdiffusion.kernels import fast
    from npdiffusion.settings import Request
    for dtype in "bfloat16", arguments.dtype or "bfloat16":
        fast.warm_up(dtype=dtype)
    request = Request(PROMPT, width=arguments.size, height=arguments.size, steps=arguments.steps, seed=1)
    start = time.perf_counter()
    pipeline = npdiffusion.load(folder, dtype=arguments.dtype, max_memory=arguments.max_memory, requests=[request])
    loaded = time.perf_counter()
    budget = pipeline.budget
    budget.measure([pipeline.unet], pipeline.vae.config.reduction)
    print(f"{budget}\nloaded in {loaded - start:.1f} s", flush=True)
    image, = pipeline.generate(**request.given(), progress=False)
    most = 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    step, spent = pipeline.timings["sampling"] / arguments.steps, pipeline.timings.items()
    print(f"{image.width}×{image.height}, {arguments.steps} steps: {most / 1e9:.2f} GB resident at most, foretold "
          f"{budget.foretold / 1e9:.2f} ({most / budget.foretold - 1:+.1%}); a step {step:.1f} s, foretold "
          f"{budget.seconds:.1f}; " + ", ".join(f"{stage} {seconds:.1f} s" for stage, seconds in spent))
