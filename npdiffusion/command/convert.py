"""npdiffusion convert IN OUT: write a model anew, as a folder or a single file, rounded, with a LoRA merged in."""
from npdiffusion.command.parser import Parser, reader
from npdiffusion.command.talk import print_line
from npdiffusion.settings import Setting
from npdiffusion.settings.kinds import Choice, Number, Path
from npdiffusion.settings.run import OPTIONS

DTYPES = ("float32", "float16", "bfloat16")
OWN = [
    Setting(Choice(DTYPES), "what numbers are rounded to (default: as they are; float8 becomes float16, what is quantised "
            "float32, both exactly)", metavar="NAME", name="dtype"),
    Setting(Path(), "LoRA file to merge in", metavar="FILE", name="lora"),
    Setting(Number(-100, 100), "its strength (default: 1)", 1.0, metavar="X", name="lora_strength")]


def parse(arguments):
    """The checked options; SystemExit with code 2 and a line on stderr if they are wrong."""
    parser = Parser(prog="npdiffusion convert", usage="npdiffusion convert IN OUT [options]", allow_abbrev=False,
                    description="Write a model anew: IN is what -m takes; OUT a name that ends in .safetensors, for a single "
                                "file in original names, or else a folder, in diffusers layout. Nothing is overwritten.")
    parser.add_argument("model", metavar="IN", type=reader(Path()),
                        help="folder, .safetensors or .gguf file, Hugging Face id, or name of a model")
    parser.add_argument("out", metavar="OUT", type=reader(Path()), help="file that ends in .safetensors, or folder")
    for row in OWN:
        parser.add(row)
    for name in "vae", "tokenizer", "model_dir", "verbose":
        parser.add(OPTIONS[name])
    return parser.read(arguments, positional="model and one name for the result")


def run(options):
    """Write it, and print its name."""
    from npdiffusion import loading
    from npdiffusion.adapters.merging import merged
    from npdiffusion.checkpoints import conversion
    opened = loading.open_checkpoint(options.model, options.tokenizer, options.vae, options.model_dir)
    changed = {} if options.lora is None else merged(opened.model, options.lora, options.lora_strength)
    print_line(conversion.convert(opened, options.out, options.dtype, changed))
    return 0
