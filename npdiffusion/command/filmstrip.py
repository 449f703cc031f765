"""npdiffusion filmstrip "a prompt": the steps from noise to a picture, as one PNG file."""
from npdiffusion.command.parser import reader
from npdiffusion.command.studying import checked, file_for, start_pipeline, study_parser
from npdiffusion.command.talk import print_line
from npdiffusion.settings.kinds import Whole

FRAMES, MOST = 8, 50


def parse(arguments):
    """The checked options; SystemExit with code 2 and a line on stderr if they are wrong."""
    parser = study_parser("filmstrip", "Make a picture and show its way: above the noisy states, below what the model takes to "
                          "be under the noise.", "PNG file (default: filmstrip.png)")
    parser.add_argument("--frames", type=reader(Whole(1, MOST)), default=FRAMES, metavar="N",
                        help=f"how many, evenly over the steps (default: {FRAMES})")
    return checked(parser, arguments)


def run(options):
    """Write the sheet."""
    path = file_for(options.output, "filmstrip.png", (".png",))
    pipeline = start_pipeline(options)
    from npdiffusion.pictures.images import save_png
    from npdiffusion.study import filmstrip
    film = filmstrip(pipeline, options.prompt, frames=options.frames, **options.request)
    print_line(save_png(film.sheet(), path))
    return 0
