"""One step of training, forwards, backwards and Adam, beside torch in turns, from the same weights and inputs.

    unet      the embedded model's UNet on --batch latents (32)         vae    its autoencoder on --batch crops of 128² (16)
    digits    the autoencoder of digits, --batch of 28² (128)           ddpm   diffusion of digits, --batch of 28² (32)
    lora      rank 4 on the attention of SD v1's UNet at 512²

torch is timed in both layouts of memory; SD v1, which is large, in that of `bench step`. In bfloat16 torch runs under autocast,
ours multiplies rounded factors; weights are float32 in both. The difference is that of the losses before the first step.
"""
import json
import pathlib
import resource
import sys

import numpy as np

from bench import models, turns
from npdiffusion import kernels
from npdiffusion.models import parameters
from npdiffusion.models.configs import UNetConfig, VAEConfig
from npdiffusion.models.parameters import modules
from npdiffusion.training import ddpm_lesson
from npdiffusion.training.digit_vae import DigitVAE
from npdiffusion.training.optimizers import Adam
from npdiffusion.training.precision import products_in_bfloat16
from npdiffusion.training.tape import Tape, parameters_of

WEIGHTS = pathlib.Path(__file__).resolve().parent.parent / "weights"
BATCHES = {"unet": 32, "vae": 16, "digits": 128, "ddpm": 32, "lora": 1}
REPEATS = {"lora": 2}                       # turns where nothing is said; of the others 5
RANK, RATE, WORDS, LATENT = 4, 1e-4, 77, 20
TARGETS = "to_q", "to_k", "to_v", "to_out.0"


def add_arguments(parser):
    parser.add_argument("what", choices=BATCHES)
    turns.add_arguments(parser, repeats=5)
    parser.set_defaults(against=["torch"], repeats=None)
    parser.add_argument("--batch", type=int, default=None, help="how many at once")


def run(arguments, sizes=None):
    """One step of training beside torch."""
    what, batch = arguments.what, arguments.batch or BATCHES[arguments.what]
    arguments.repeats = arguments.repeats or REPEATS.get(what, 5)
    threads = turns.set_threads(arguments.threads)
    turns.describe(f"training step of {what}, batch {batch}", threads, arguments)
    sizes = sizes or {"unet": lambda: embedded("unet", UNetConfig), "vae": lambda: embedded("vae", VAEConfig),
                      "digits": lambda: None, "ddpm": lambda: ddpm_lesson.UNET, "lora": UNetConfig}[what]()
    inputs = INPUTS[what](sizes, batch, arguments.size)
    calls = {turns.OURS: ours(what, sizes, inputs, arguments.dtype)}
    if "torch" in arguments.against:
        both = "torch", "torch, channels last"
        for layout in (both[arguments.dtype == "bfloat16"],) if what == "lora" else both:
            calls[layout] = theirs(what, sizes, inputs, arguments.dtype, threads, layout != "torch")
    losses = {name: call() for name, call in calls.items()}              # warms up
    times = turns.take(calls, arguments.repeats)
    median = turns.medians(times)
    best = min((t for name, t in median.items() if name != turns.OURS), default=None)
    difference = {name: abs(loss / losses[turns.OURS] - 1) for name, loss in losses.items()}
    turns.table([("median ms", ".0f"), ("least ms", ".0f"), ("ours ÷ it", ".2f"), ("difference", ".1e")],
                [(name, 1e3 * t, 1e3 * min(times[name]), median[turns.OURS] / t, difference[name])
                 for name, t in median.items()])
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    print(f"the process had {most / 1e9:.1f} GB at most; with --against '' that is ours alone")
    turns.last_line(benchmark="train", what=what, dtype=arguments.dtype, batch=batch, threads=threads, seconds=median,
                    least={name: min(each) for name, each in times.items()}, ratio=best and median[turns.OURS] / best,
                    memory=most, difference=difference, versions=turns.versions(arguments.against))


def embedded(part, kind):
    return kind.from_dict(json.loads((WEIGHTS / part / "config.json").read_text(encoding="utf-8")))


# ---- what is given: arrays, channels last; the last one is what the result should be

def _unet_inputs(sizes, batch, _):
    side = sizes.sample_size
    return (models.normal(batch, side, side, sizes.in_channels), np.linspace(1, 999, batch, dtype=np.float32),
            models.normal(batch, WORDS, sizes.cross_attention_dim), models.normal(batch, side, side, sizes.out_channels))


def _lora_inputs(sizes, batch, size):
    side = size // 8
    return (models.normal(batch, side, side, sizes.in_channels), np.linspace(500, 999, batch, dtype=np.float32),
            models.normal(batch, WORDS, sizes.cross_attention_dim), models.normal(batch, side, side, sizes.out_channels))


def _vae_inputs(_, batch, size):
    side = min(size, 128)
    return (np.tanh(models.normal(batch, side, side, 3)),)


def _digit_inputs(_, batch, __):
    rng = np.random.default_rng(0)
    return (rng.random((batch, 28, 28, 1)) < 0.2).astype(np.float32), models.normal(batch, LATENT)


INPUTS = {"unet": _unet_inputs, "ddpm": _unet_inputs, "lora": _lora_inputs, "vae": _vae_inputs, "digits": _digit_inputs}


# ---- ours

class LowRank:
    """A frozen linear layer plus B A, of which A and B are trained"""
    def __init__(self, layer):
        outputs, inputs = layer.weight.shape
        self.layer, self.dtype = layer, layer.dtype
        self.down, self.up = models.RandomTensor("down", (RANK, inputs))(), np.zeros((outputs, RANK), np.float32)

    def __call__(self, x, residual=None):
        return kernels.linear(kernels.linear(x, self.down), self.up, None, self.layer(x, residual))


def ours(what, sizes, inputs, dtype):
    """→ a step, which returns the loss"""
    if what == "lora":
        model = models.ours(sizes, dtype)
        trained = {}
        for path, layer in [*modules(model)]:
            if hasattr(layer, "to_q"):
                layer.to_q, layer.to_k, layer.to_v = map(LowRank, (layer.to_q, layer.to_k, layer.to_v))
                layer.to_out[0] = LowRank(layer.to_out[0])
                for name, each in (("q", layer.to_q), ("k", layer.to_k), ("v", layer.to_v), ("out", layer.to_out[0])):
                    trained |= {f"{path}.{name}.down": each.down, f"{path}.{name}.up": each.up}
    else:
        model = DigitVAE(LATENT) if what == "digits" else models.MODELS[type(sizes)](sizes)
        for name, owner, attribute in parameters.walk(model):
            setattr(owner, attribute, models.RandomTensor(name, getattr(owner, attribute).shape)())
        trained = parameters_of(model)
    optimizer, tape = Adam(trained), Tape(trained)
    narrow = dtype == "bfloat16" and what != "lora"

    def loss():
        if what == "digits":
            likelihood, divergence = model.elbo(*inputs)
            return divergence - likelihood
        if what == "vae":
            mean, _ = model.encode(inputs[0])
            return np.square(model.decode(mean * sizes.scaling_factor) - inputs[0]).mean()
        return np.square(model(*inputs[:-1]) - inputs[-1]).mean()

    def step():
        with tape:
            if narrow:
                with products_in_bfloat16(model):
                    result = loss()
            else:
                result = loss()
        optimizer.step(tape.backward(result), RATE)
        return float(result)
    return step


# ---- torch

def theirs(what, sizes, inputs, dtype, threads, channels_last):
    """→ a step, which returns the loss"""
    import torch
    torch.set_num_threads(threads)
    model = _digits_of_torch() if what == "digits" else models.theirs(sizes)
    if what == "lora":
        from peft import LoraConfig
        model.add_adapter(LoraConfig(r=RANK, target_modules=[*TARGETS]))
    else:
        model.requires_grad_(True)
    layout = torch.channels_last if channels_last else torch.contiguous_format
    model = model.to(memory_format=layout)
    tensors = [torch.from_numpy(x).permute(0, 3, 1, 2).contiguous(memory_format=layout) if x.ndim == 4 else torch.from_numpy(x)
               for x in inputs]
    optimizer = torch.optim.Adam([each for each in model.parameters() if each.requires_grad], RATE)

    def loss():
        if what == "digits":
            return model(*tensors)
        if what == "vae":
            return (model.decode(model.encode(tensors[0]).latent_dist.mean).sample - tensors[0]).float().square().mean()
        return (model(*tensors[:-1]).sample - tensors[-1]).float().square().mean()

    def step():
        with torch.enable_grad():
            optimizer.zero_grad()
            with torch.autocast("cpu", torch.bfloat16, enabled=dtype == "bfloat16"):
                result = loss()
            result.backward()
            optimizer.step()
        return float(result.detach())
    return step


def _digits_of_torch():
    """The same layers, weights and loss as training/digit_vae.py; a dense layer's numbers go to pixels channels last."""
    import torch
    from torch import nn
    from torch.nn import functional

    class Digits(nn.Module):
        def __init__(self):
            super().__init__()
            self.encoder = nn.ModuleDict({"conv1": nn.Conv2d(1, 32, 3, 2, 1), "conv2": nn.Conv2d(32, 64, 3, 2, 1),
                                          "to_moments": nn.Linear(49 * 64, 2 * LATENT)})
            self.decoder = nn.ModuleDict({"from_latent": nn.Linear(LATENT, 49 * 64), "conv1": nn.Conv2d(64, 32, 3, 1, 1),
                                          "conv2": nn.Conv2d(32, 1, 3, 1, 1)})

        def forward(self, x, noise):
            h = functional.silu(self.encoder["conv1"](x))
            h = functional.silu(self.encoder["conv2"](h))
            mean, logvar = self.encoder["to_moments"](h.permute(0, 2, 3, 1).flatten(1)).chunk(2, dim=-1)
            h = functional.silu(self.decoder["from_latent"](mean + (0.5 * logvar).exp() * noise))
            h = h.reshape(-1, 7, 7, 64).permute(0, 3, 1, 2)
            h = functional.silu(self.decoder["conv1"](functional.interpolate(h, scale_factor=2, mode="nearest")))
            logits = self.decoder["conv2"](functional.interpolate(h, scale_factor=2, mode="nearest"))
            divergence = 0.5 * (mean.square() + logvar.exp() - 1 - logvar).sum(1).mean()
            return divergence + functional.binary_cross_entropy_with_logits(logits, x, reduction="none").sum((1, 2, 3)).mean()

    model = Digits()
    with torch.no_grad():
        for name, value in model.named_parameters():
            value.copy_(torch.from_numpy(models.RandomTensor(name, tuple(value.shape))()))
    return model
