"""The command line: a prompt and options → pictures in files, with progress on stderr and the files' names on stdout.

    npdiffusion "a red apple on a blue background" --steps 20 --seed 1 -o apple.png
    npdiffusion metadata apple.png

A prompt is for command/generate.py; a first word that names a subcommand, `metadata` for example, leads to its file in
command/ instead, and one that other programs would take for a subcommand gets an answer instead of a picture. Exit code
0: all is done, 1: it could not be done, 2: the command can't be understood, 130: it was stopped by Ctrl-C. The options
themselves are in options.py.
"""
import sys
import traceback

from npdiffusion import command
from npdiffusion.command import generate
from npdiffusion.command.talk import explain, occupy_standard_streams, one_line_warnings, reader_may_go, say

STOPPED = 128 + 2                     # as shells have it: 2 is SIGINT


def main(argv=None):
    """Run the command; returns its exit code."""
    occupy_standard_streams()
    argv = sys.argv[1:] if argv is None else argv
    chosen = command.subcommand(argv) or generate
    if instead := command.answer(argv):
        say(f"npdiffusion: error: {instead}")
        return 2
    verbose = "-v" in argv or "--verbose" in argv
    try:
        with one_line_warnings(verbose):
            return chosen.run(chosen.parse(argv if chosen is generate else argv[1:]))
    except SystemExit as end:         # after --help, --version, a list or a message
        with reader_may_go():
            return end.code
    except KeyboardInterrupt:
        say("npdiffusion: stopped")
        return STOPPED
    except Exception as error:        # noqa: BLE001, whatever it is, users read one line
        if verbose:
            traceback.print_exc()
        say(f"npdiffusion: error: {explain(error)}")
        return 1
