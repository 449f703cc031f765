"""Benchmarks:  python -m bench kernels [--size 512] [--threads 2] [--against numpy,torch]"""
import argparse

from bench import kernels


def main():
    parser = argparse.ArgumentParser(prog="python -m bench", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    kernels.add_arguments(commands.add_parser("kernels", help=kernels.__doc__.splitlines()[0]))
    arguments = parser.parse_args()
    arguments.run(arguments)


if __name__ == "__main__":
    main()
