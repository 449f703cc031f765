"""npdiffusion lab: samplers on a distribution that is known exactly, and on a model, as one HTML file."""
from npdiffusion.command.parser import Parser
from npdiffusion.command.studying import file_for
from npdiffusion.command.talk import print_line
from npdiffusion.settings.run import OPTIONS


def parse(arguments):
    """The checked options; SystemExit with code 2 and a line on stderr if they are wrong."""
    parser = Parser(prog="npdiffusion lab", usage="npdiffusion lab [options]", allow_abbrev=False,
                    description="Compare samplers: their paths on three clouds in the plane, how their errors fall with the "
                                "steps, and the same on a model.")
    parser.add(OPTIONS["output"], help="HTML file (default: lab.html)")
    parser.add_argument("--toy", action="store_true", help="the clouds alone: no model is loaded")
    for name in "model", "model_dir", "tokenizer", "dtype", "vae", "threads", "backend", "verbose":
        parser.add(OPTIONS[name])
    return parser.read(arguments)


def run(options):
    """Write the page."""
    path = file_for(options.output, "lab.html", (".html", ".htm"))
    from npdiffusion.command.studying import start_pipeline
    pipeline = None if options.toy else start_pipeline(options)
    from npdiffusion.pictures.images import save_text
    from npdiffusion.study.report.lab_page import lab_page
    print_line(save_text(lab_page(pipeline), path))
    return 0
