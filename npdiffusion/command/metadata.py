"""npdiffusion metadata FILE ...: print the settings that are inside pictures."""
from npdiffusion.command.parser import Parser, reader
from npdiffusion.command.talk import explain, print_line, printable, say
from npdiffusion.errors import UserError
from npdiffusion.settings.kinds import Path
from npdiffusion.settings.run import OPTIONS


def parse(arguments):
    """The checked options; SystemExit with code 2 and a line on stderr if they are wrong."""
    parser = Parser(prog="npdiffusion metadata", usage="npdiffusion metadata FILE ...", allow_abbrev=False,
                    description="Print the settings that are inside pictures, as npdiffusion, AUTOMATIC1111's web "
                                "interface and stable-diffusion.cpp write them.")
    parser.add_argument("files", metavar="FILE", nargs="+", type=reader(Path()),
                        help="PNG, JPEG or WebP files with settings inside")
    parser.add(OPTIONS["verbose"])
    return parser.read(arguments)


def run(options):
    """Print what is inside each file, under its name if there are several; a line for each that has nothing."""
    from npdiffusion.pictures import text_inside
    failed = 0
    for path in options.files:
        try:
            text = text_inside.read_text(path)
        except UserError as error:
            say(f"npdiffusion: error: {explain(error)}")
            failed += 1
            continue
        if len(options.files) > 1:
            print_line(f"{path}:")
        print_line(printable(text))
    return 1 if failed else 0
