"""Whole gradients of SD v1's UNet beside torch's: every tensor's largest difference, over its own largest value.

Weights are random and alike in both, also those of norms and biases; the loss is the mean of the squared result. Ours are kept
in a file while torch computes its own, so that there is one model in memory at a time: 8 GB, and 3.4 GB of disk.
"""
import math
import pathlib
import statistics
import tempfile

import numpy as np

from bench import models, turns
from npdiffusion.checkpoints.safetensors_file import read_file
from npdiffusion.models import parameters
from npdiffusion.models.configs import UNetConfig
from npdiffusion.training.tape import Tape, parameters_of

LIMIT = 1e-4


def add_arguments(parser):
    turns.add_arguments(parser, size=128)
    parser.set_defaults(against=["torch"])
    parser.add_argument("--batch", type=int, default=1, help="how many latents")


def run(arguments, sizes=None):
    """Gradients of all weights beside torch's."""
    sizes = sizes or UNetConfig()
    threads = turns.set_threads(arguments.threads)
    turns.describe(f"gradients of the UNet, batch {arguments.batch}, {arguments.size} pixels", threads, arguments)
    side = arguments.size // 8
    inputs = (models.normal(arguments.batch, side, side, sizes.in_channels),
              np.linspace(999, 41, arguments.batch, dtype=np.float32),
              models.normal(arguments.batch, 77, sizes.cross_attention_dim))
    with tempfile.TemporaryDirectory() as folder:
        path = pathlib.Path(folder, "gradients.safetensors")
        loss = ours(sizes, inputs, path)
        rows = [*differences(sizes, inputs, threads, read_file(path), loss)]
    relative = {name: largest / scale for name, largest, scale, *_ in rows}
    worst = sorted(relative, key=relative.get)[::-1]
    whole = math.sqrt(sum(row[3] for row in rows) / sum(row[4] for row in rows))
    median, largest = statistics.median(relative.values()), relative[worst[0]]
    turns.table([("largest difference ÷ largest value", ".1e")], [(name, relative[name]) for name in worst[:5]])
    print(f"{len(rows)} tensors, median {median:.1e}; of all as one vector, length of the difference ÷ length: {whole:.1e}\n"
          f"at most {LIMIT:.0e} is asked for: {'met' if largest <= LIMIT else 'not met'}")
    turns.last_line(benchmark="gradients", size=arguments.size, batch=arguments.batch, threads=threads, tensors=len(rows),
                    largest=largest, tensor=worst[0], median=median, whole=whole, versions=turns.versions(["torch"]))


def weight(name, shape):
    """As models.RandomTensor, but no norm's scale is 1 and no bias 0"""
    numbers = models.RandomTensor(name, shape)()
    return numbers + np.float32(0.2) * models.RandomTensor(name, (*shape, 1))()[:, 0] if len(shape) == 1 else numbers


def ours(sizes, inputs, path):
    """Write {name: gradient} to a file → the loss"""
    from safetensors.numpy import save_file
    model = models.MODELS[UNetConfig](sizes)
    for name, owner, attribute in parameters.walk(model):
        setattr(owner, attribute, weight(name, getattr(owner, attribute).shape))
    tape = Tape(parameters_of(model))
    with tape:
        loss = np.square(model(*inputs)).mean()
    value, gradients = float(loss), tape.backward(loss)
    del model, tape, loss
    save_file({name: np.ascontiguousarray(gradient) for name, gradient in gradients.items()}, path)
    return value


def differences(sizes, inputs, threads, found, loss):
    """Yield for each parameter: name, largest difference, torch's largest value, the sum of squares of either"""
    import torch
    torch.set_num_threads(threads)
    model = models.torch_model(sizes)
    for name, tensor in models.tensors(models.MODELS[UNetConfig](sizes)).items():
        parameter = model.get_parameter(name)
        parameter.copy_(torch.from_numpy(weight(name, tensor.shape)).view_as(parameter))
    model.requires_grad_(True)
    x, t, states = map(torch.from_numpy, inputs)
    with torch.enable_grad():
        theirs = model(x.permute(0, 3, 1, 2), t, states).sample.square().mean()
    print(f"loss {loss:.7f}, torch {theirs.item():.7f}", flush=True)
    theirs.backward()
    for name, parameter in model.named_parameters():
        expected = parameter.grad.numpy()
        difference = found[name]().reshape(expected.shape) - expected
        largest, scale = (float(np.abs(each).max()) for each in (difference, expected))
        yield name, largest, scale, *(float(np.square(each, dtype=np.float64).sum()) for each in (difference, expected))
        parameter.grad = None
