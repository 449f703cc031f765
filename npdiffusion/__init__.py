"""Stable Diffusion in NumPy.

    pipeline = npdiffusion.load()                            # the embedded model; or a folder, a .safetensors file, a hub id
    image, = pipeline.generate("a red apple on a blue background", seed=1)
"""
import pathlib

__version__ = "0.1.0"

_checkout = pathlib.Path(__file__).resolve().parent.parent
if (_checkout / "kernels").is_dir() and (_checkout / "setup.cfg").is_file():
    __path__.append(str(_checkout))          # a bare checkout: npdiffusion.kernels and npdiffusion.weights lie beside this folder
