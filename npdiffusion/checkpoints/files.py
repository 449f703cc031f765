"""A file of weights in whichever format, told by its first bytes."""
import pathlib

from npdiffusion.checkpoints import gguf_file, safetensors_file


def read_tensors(path):
    """The tensors of a safetensors or GGUF file: {name: Tensor}; no numbers are read yet. UserError for anything else."""
    path = pathlib.Path(path)
    if path.is_file():                                        # no pipe, which would block
        try:
            with path.open("rb") as file:
                if file.read(4) == gguf_file.MAGIC:
                    return gguf_file.read_file(path)
        except OSError:
            pass                                              # the other reader says what is wrong
    return safetensors_file.read_file(path)
