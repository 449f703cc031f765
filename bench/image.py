"""A whole picture: text encoder, sampling, decoding; ours by `generate`, torch's by diffusers' pipeline, same folder.

Ours runs first, before torch is imported: the memory at step 2 and at the last step is what the process then has in all
(they are equal if steps reuse what they take); torch's is what the process grew by.
"""
from bench import folders, turns

PROMPT = "a red apple on a blue background"


def add_arguments(parser):
    turns.add_arguments(parser, repeats=1, steps=20)
    folders.add_argument(parser)
    parser.set_defaults(against=["torch"])


def run(arguments):
    """A whole picture from a prompt, with resident memory at step 2 and at the last."""
    threads = turns.set_threads(arguments.threads)
    turns.describe(f"image, {arguments.steps} steps", threads, arguments)
    calls, memory = {}, {}
    with folders.folder(arguments.model) as path:
        for name, make in ((turns.OURS, our_pipeline), ("torch", torch_pipeline)):
            if name == turns.OURS or name in arguments.against:
                before = 0 if name == turns.OURS else turns.resident()
                at_step = {}
                call = make(path, arguments, threads, at_step)
                call()                                   # warms up
                calls[name] = call
                memory[name] = [value - before for value in (at_step[min(2, arguments.steps)], max(at_step.items())[1],
                                                             turns.resident())]
    times = turns.take(calls, arguments.repeats)
    median = turns.medians(times)
    turns.table([("median s", ".2f"), ("least s", ".2f"), ("ours ÷ it", ".2f"),
                 ("GB, step 2", ".3f"), ("GB, last", ".3f"), ("GB, after", ".3f")],
                [(name, t, min(times[name]), median[turns.OURS] / t, *(value / 1e9 for value in memory[name]))
                 for name, t in median.items()])
    turns.last_line(benchmark="image", dtype=arguments.dtype, size=arguments.size, steps=arguments.steps,
                    threads=threads, seconds=median, least={name: min(values) for name, values in times.items()},
                    memory=memory, versions=turns.versions(calls))


def our_pipeline(path, arguments, threads, at_step):
    """→ a callable that makes a picture and writes {step: resident bytes} into at_step"""
    import npdiffusion
    pipeline = npdiffusion.load(str(path), dtype=arguments.dtype, threads=threads)

    def callback(step, steps, latents):
        at_step[step] = turns.resident()
    return lambda: pipeline.generate(PROMPT, steps=arguments.steps, seed=0, width=arguments.size, height=arguments.size,
                                     sampler="ddim", callback=callback)


def torch_pipeline(path, arguments, threads, at_step):
    """The same with diffusers"""
    import diffusers
    import torch
    torch.set_num_threads(threads)
    diffusers.logging.disable_progress_bar()
    pipeline = diffusers.StableDiffusionPipeline.from_pretrained(
        path, torch_dtype=getattr(torch, arguments.dtype), safety_checker=None)
    pipeline.scheduler = diffusers.DDIMScheduler.from_config(pipeline.scheduler.config)
    words = pipeline.text_encoder.config.max_position_embeddings
    pipeline.tokenizer.model_max_length = words          # some folders lack it
    pipeline.set_progress_bar_config(disable=True)
    if arguments.dtype == "bfloat16":
        for model in (pipeline.unet, pipeline.vae):
            model.to(memory_format=torch.channels_last)

    def callback(_, step, timestep, values):
        at_step[step + 1] = turns.resident()
        return values
    return lambda: pipeline(PROMPT, num_inference_steps=arguments.steps, width=arguments.size, height=arguments.size,
                            generator=torch.Generator().manual_seed(0), callback_on_step_end=callback)
