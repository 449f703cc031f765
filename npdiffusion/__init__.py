"""Stable Diffusion in NumPy.

    pipeline = npdiffusion.load()                            # the embedded model; or a folder, a .safetensors file, a hub id
    image, = pipeline.generate("a red apple on a blue background", seed=1)
"""
import pathlib

__version__ = "0.1.0"

_checkout = pathlib.Path(__file__).resolve().parent.parent
if (_checkout / "kernels").is_dir() and (_checkout / "setup.cfg").is_file():
    __path__.append(str(_checkout))          # a bare checkout: npdiffusion.kernels and npdiffusion.weights lie beside this folder


def load(path_or_id=None, dtype=None, threads=None, tokenizer=None, lora_dir=None, vae=None, embedding_dir=None,
         max_memory=None, size=None, vae_tiling="auto", images=2, preview_vae=None):
    """A pipeline that makes pictures from prompts; see `npdiffusion.loading.load` for what can be loaded."""
    from npdiffusion import loading          # here, so that --help and --version need not import NumPy
    return loading.load(path_or_id, dtype, threads, tokenizer, lora_dir, vae, embedding_dir, max_memory, size,
                        vae_tiling, images, preview_vae)


def use_backend(name):
    """Run on "numpy" (the readable definitions) or "numba" (compiled); see `npdiffusion.kernels.use_backend`."""
    from npdiffusion import kernels
    kernels.use_backend(name)
