"""The command line: argv → jobs, and all that is printed.

    cli.py        where it begins and errors end     generate.py   pictures from a prompt and options
    options.py    its options                        parser.py     how a command line is read
    like.py       --like FILE                        previews.py   --preview and --steps-strip
    inside.py     --inside FILE
    info.py       --info                             prepare.py    backend, threads, compiling
    talk.py       progress, messages                 cluster.py    --cluster ADDRESS

Subcommands, which do something other than make pictures: attention.py, convert.py, filmstrip.py, help.py, lab.py,
map.py, metadata.py, models.py, serve.py, subjects.py, tokens.py, trace.py, train.py, worker.py; studying.py is what some share

    npdiffusion WORD ...      WORD is exactly one of SUBCOMMANDS; a prompt of that one word is written after `--` or `-p`

A new one is a row there and a file here, named after it, with two functions; it is imported only when it is asked for.

    parse(arguments)   from the words after WORD to its options, `verbose` among them; SystemExit as from argparse
    run(options)       does it and returns the exit code; a UserError becomes one line

generate.py, which makes pictures, has the same two.
"""
import importlib

SUBCOMMANDS = {
    "attention": "what each place of a picture looks at, word by word",
    "convert": "write a model anew: folder or single file, rounded, with a LoRA merged in",
    "filmstrip": "the steps from noise to a picture",
    "help": "this text, or that of a subcommand",
    "lab": "samplers compared: their paths, and how their errors fall",
    "map": "edges and the like of a picture, for ControlNets",
    "metadata": "the settings inside pictures",
    "models": "the models that are here",
    "serve": "a page on this machine, and interfaces for other programs",
    "subjects": "what the embedded model can draw",
    "tokens": "how a prompt is split into tokens",
    "trace": "every layer while a picture is made: shapes, arithmetic, time",
    "train": "learning: a VAE of digits from nothing, LoRAs, words, curves of a run",
    "worker": "make pictures for a cluster",
}

# Words that are typed as if they were subcommands, and what there is instead; SUBCOMMANDS goes first.
LIST = "npdiffusion models lists the models that are here, npdiffusion subjects what the embedded one draws"
PROMPT_FIRST = 'no word stands in front of a prompt: npdiffusion "a red apple on a blue background"'
OPTIONS = "npdiffusion --help shows all options"
INSTEAD = {
    **dict.fromkeys(("list", "ls", "model", "subject", "show"), LIST),
    **dict.fromkeys(("generate", "gen", "draw", "create", "run", "sample", "predict", "imagine", "prompt"), PROMPT_FIRST),
    **dict.fromkeys(("txt2img", "text2image", "text-to-image", "t2i"), PROMPT_FIRST),
    **dict.fromkeys(("img2img", "image-to-image", "i2i"), 'a picture to start from is an option: npdiffusion "cat" -i cat.png'),
    **dict.fromkeys(("inpaint", "inpainting", "outpaint"), 'that is an option: npdiffusion "a cat" -i cat.png --mask mask.png'),
    **dict.fromkeys(("upscale", "hires"), "an enlarged picture is an option: --hires 2"),
    **dict.fromkeys(("server", "web", "webui", "ui", "gui", "api"), "npdiffusion serve is the page and the interfaces"),
    **dict.fromkeys(("finetune", "fine-tune", "dreambooth"), "npdiffusion train --help shows what can be trained"),
    **dict.fromkeys(("quantize", "merge"), "npdiffusion convert writes a model anew, rounded or with a LoRA merged in"),
    **dict.fromkeys(("download", "pull", "fetch", "get"), "a model is downloaded when its Hugging Face id is given to -m"),
    **dict.fromkeys(("install", "update", "upgrade", "uninstall"), "pip does that: pip install --upgrade npdiffusion"),
    **dict.fromkeys(("info", "env", "doctor"), "that is an option: npdiffusion --info"),
    **dict.fromkeys(("bench", "benchmark"), "measurements are made in a checkout: python -m bench"),
    **dict.fromkeys(("options", "usage", "man", "?"), OPTIONS),
    **dict.fromkeys(("meta", "exif", "parameters", "inspect"), "npdiffusion metadata FILE shows the settings inside a picture"),
    **dict.fromkeys(("token", "tokenize"), 'npdiffusion tokens "a prompt" shows how it is split'),
    "version": "that is an option: npdiffusion --version",
}


def subcommand(argv):
    """The module of the subcommand that a command line begins with, or None"""
    return importlib.import_module(f"{__name__}.{argv[0]}") if argv and argv[0] in SUBCOMMANDS else None


def answer(argv):
    """What to say to a command line that begins with the name of a subcommand that other programs have, else None"""
    word = argv[0].lower() if argv else ""
    if word in SUBCOMMANDS or word not in INSTEAD:
        return None
    return f"{word}: {INSTEAD[word]} (a picture of that word: npdiffusion -p {word})"


def overview():
    """Lines for --help"""
    return "\n".join(["subcommands (more: npdiffusion WORD --help):",
                      *(f"  {name:<12}{what}" for name, what in SUBCOMMANDS.items())])
