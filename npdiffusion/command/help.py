"""npdiffusion help [WORD]: the options of the command, or of a subcommand."""
from npdiffusion import command
from npdiffusion.command import options as settings
from npdiffusion.command.parser import Parser
from npdiffusion.errors import nearest


def parse(arguments):
    """The checked options; SystemExit with code 2 and a line on stderr if they are wrong."""
    parser = Parser(prog="npdiffusion help", usage="npdiffusion help [WORD]", allow_abbrev=False,
                    description="Show the options of npdiffusion, or those of a subcommand.")
    parser.add_argument("word", nargs="?", metavar="WORD", help=", ".join(command.SUBCOMMANDS))
    options = parser.read(arguments, positional="word")
    if options.word not in (None, *command.SUBCOMMANDS):
        hint = nearest(options.word, command.SUBCOMMANDS, "did you mean {}? There", "there")
        parser.error(f"{options.word[:40]!r} is no subcommand, {hint} are {', '.join(command.SUBCOMMANDS)}")
    return options


def run(options):
    """Print that text; SystemExit with code 0 after a subcommand's."""
    if options.word is not None:
        command.subcommand([options.word]).parse(["--help"])
    settings.build_parser().print_help()
    return 0
