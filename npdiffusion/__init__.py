"""Stable Diffusion in NumPy.

    pipeline = npdiffusion.load()                            # the embedded model; or a folder, a .safetensors file, a hub id
    image, = pipeline.generate("a red apple on a blue background", seed=1)

    pipeline.py    from a prompt to a picture          loading.py     from a file to a pipeline
    request.py     what a request comes to             settings/      every setting of a picture, in one table
    given.py       arrays and seeds, from Python alone
    models/        the networks                        text/          from words to what the text encoder reads
    diffusion/     from noise to x₀                    painting/      on a picture that is there already
    adapters/      LoRA, learnt words                  checkpoints/   files of weights
    memory/        what fits                           pictures/      files, settings inside them, sheets, previews
    jobs/          lists of pictures                   training/      from a loss to new weights
    command/       the command line                    study/         a look inside
    server/        a page, and interfaces for other programs
    errors.py      what users see when something is wrong                     version.py
    ../kernels/    the operations that all of it is made of: npdiffusion.kernels
"""
import pathlib

from npdiffusion.errors import UserError
from npdiffusion.version import __version__

__all__ = ["UserError", "__version__", "load", "use_backend"]

TYPE_CHECKING = False                        # as in `typing`, whose import would slow --help down
if TYPE_CHECKING:
    from npdiffusion.loading import load

_checkout = pathlib.Path(__file__).resolve().parent.parent
if (_checkout / "kernels").is_dir() and (_checkout / "setup.cfg").is_file():
    __path__.append(str(_checkout))          # a bare checkout, where npdiffusion.kernels and .weights lie beside this folder


def use_backend(name: str) -> None:
    """Run on "numpy" (the readable definitions) or "numba" (compiled); see `npdiffusion.kernels.use_backend`."""
    from npdiffusion import kernels
    kernels.use_backend(name)


def __getattr__(name):
    """`npdiffusion.load` is `npdiffusion.loading.load`, imported when it is asked for: --help need not import NumPy."""
    if name == "load":
        from npdiffusion.loading import load
        return load
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__():
    return sorted({*globals(), *__all__})
