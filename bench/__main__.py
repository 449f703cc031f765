"""Benchmarks beside torch and OpenVINO, on random weights of full size:  python -m bench step --dtype bfloat16"""
import argparse
import sys

from bench import (
    cluster,
    gradients,
    growth,
    image,
    kernels,
    kills,
    load,
    network,
    operations,
    overhead,
    plot,
    results,
    savings,
    serve,
    train,
    tune,
    turbo,
    turns,
    xl,
)
from npdiffusion.errors import UserError

COMMANDS = {"kernels": (kernels, kernels.run), "step": (network, network.run_step),
            "decode": (network, network.run_decode), "profile": (operations, operations.run),
            "image": (image, image.run), "load": (load, load.run), "train": (train, train.run),
            "gradients": (gradients, gradients.run),
            "cluster": (cluster, cluster.run), "kills": (kills, kills.run), "overhead": (overhead, overhead.run),
            "serve": (serve, serve.run), "savings": (savings, savings.run),
            "results": (results, results.run), "plot": (plot, plot.run), "growth": (growth, growth.run), "xl": (xl, xl.run),
            "turbo": (turbo, turbo.run), "tune": (tune, tune.run)}


def main(arguments=None):
    parser = argparse.ArgumentParser(prog="python -m bench", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    for name, (module, run) in COMMANDS.items():
        summary = (run.__doc__ or module.__doc__).splitlines()[0]
        module.add_arguments(commands.add_parser(name, help=summary, description=summary))
    arguments = parser.parse_args(arguments)
    if hasattr(arguments, "against"):
        turns.leave_out_missing(arguments)
    try:
        COMMANDS[arguments.command][1](arguments)
    except UserError as error:
        sys.exit(f"bench: {error}")


if __name__ == "__main__":
    main()
