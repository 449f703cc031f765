"""npdiffusion metadata FILE ...: print the settings that are inside pictures."""
from npdiffusion.command.talk import print_line
from npdiffusion.options import Parser


def parse(arguments):
    """The checked options; SystemExit with code 2 and a line on stderr if they are wrong."""
    parser = Parser(prog="npdiffusion metadata", usage="npdiffusion metadata FILE ...", allow_abbrev=False,
                    description="Print the settings that are inside pictures.")
    parser.add_argument("files", metavar="FILE", nargs="+", help="PNG files with settings inside")
    parser.add_argument("-v", "--verbose", action="store_true", help="all warnings, and where an error comes from")
    return parser.read(arguments)


def run(options):
    """Print what is inside each file, under its name if there are several."""
    from npdiffusion import metadata
    for path in options.files:
        text = metadata.read(path)
        if len(options.files) > 1:
            print_line(f"{path}:")
        print_line(text)
    return 0
