"""The command line: argv → jobs, and all that is printed.

    cli.py        where it begins and errors end     generate.py   pictures from a prompt and options
    options.py    its options                        parser.py     how a command line is read
    like.py       --like FILE                        previews.py   --preview and --steps-strip
    info.py       --info                             prepare.py    backend, threads, compiling
    talk.py       progress, messages

Subcommands, which do something other than make pictures: metadata.py, models.py, subjects.py, tokens.py

    npdiffusion WORD ...      WORD is exactly one of the names below; a prompt of that one word is written after `--`

Each has a file here, named after it, with two functions; it is imported only when it is asked for.

    parse(arguments)   from the words after WORD to its options, `verbose` among them; SystemExit as from argparse
    run(options)       does it and returns the exit code; a UserError becomes one line

generate.py, which makes pictures, has the same two.
"""
import importlib

SUBCOMMANDS = {
    "metadata": "the settings inside pictures",
    "models": "the models that are here",
    "subjects": "what the embedded model can draw",
    "tokens": "how a prompt is split into tokens",
}


def find(argv):
    """The module of the subcommand that a command line begins with, or None"""
    return importlib.import_module(f"{__name__}.{argv[0]}") if argv and argv[0] in SUBCOMMANDS else None


def overview():
    """Lines for --help"""
    return "\n".join(["subcommands (more: npdiffusion WORD --help):",
                      *(f"  {name:<12}{what}" for name, what in SUBCOMMANDS.items())])
