"""npdiffusion models: list the models that are here, with family, precision and size; no weights are read."""
from npdiffusion.command.parser import Parser
from npdiffusion.command.talk import print_line, printable
from npdiffusion.settings.run import OPTIONS


def parse(arguments):
    """The checked options; SystemExit with code 2 and a line on stderr if they are wrong."""
    parser = Parser(prog="npdiffusion models", usage="npdiffusion models [options]", allow_abbrev=False,
                    description="List the models that are here: name for -m, family, precision and size. Other files "
                                "of weights follow, with what they are. Only tables of contents are read.")
    parser.add(OPTIONS["model_dir"], help="folder of models (default: $NPDIFFUSION_MODELS)")
    parser.add(OPTIONS["verbose"])
    return parser.read(arguments)


def run(options):
    """Print the list: first what can be loaded, then the rest."""
    from npdiffusion.checkpoints import bundled, hub, library
    entries = sorted(library.entries(options.model_dir), key=lambda entry: not entry.usable)
    width = max(len(entry.name) for entry in entries)
    for previous, entry in zip([None, *entries], entries):
        if previous and previous.usable and not entry.usable:
            print_line("\nnot models that can be loaded:")
        size = f"{entry.size / 1e9:.2f} GB" if entry.size >= 1e9 else f"{entry.size / 1e6:.1f} MB"
        size = size if entry.size else ""
        print_line(printable(f"{entry.name:<{width}}  {size:>9}  {entry.precision:<9}  {entry.family}"))
    print_line(f"\nWith the embedded model come {' and '.join(bundled.OPTIONS)}")
    if library.folder_of_models(options.model_dir) is None:
        print_line(f"\nA folder of models can be named by --model-dir or {library.VARIABLE}; "
                   f"ids are those in {hub.cache()}")
    return 0
