"""npdiffusion trace "a prompt": every layer while a picture is made, as a table, JSON, or Chrome's trace format."""
import json

from npdiffusion.command.parser import reader
from npdiffusion.command.studying import checked, file_for, start_pipeline, study_parser
from npdiffusion.command.talk import print_line, say
from npdiffusion.settings.kinds import Path


def parse(arguments):
    """The checked options; SystemExit with code 2 and a line on stderr if they are wrong."""
    parser = study_parser("trace", "Make a picture, which isn't kept, and tell of every layer: name as in the checkpoint, "
                          "shapes, GFLOP, milliseconds, mean, deviation and largest value.")
    parser.add_argument("--json", metavar="FILE", type=reader(Path()), help="write the table as JSON")
    parser.add_argument("--chrome", metavar="FILE", type=reader(Path()),
                        help="write every operation for chrome://tracing and ui.perfetto.dev")
    parser.add_argument("--tensor", metavar="NAME", help="write the results of this layer to NAME.npy, a row for each call")
    parser.add_argument("--until", metavar="NAME", help="end at the first result of this layer, and write it to NAME.npy")
    return checked(parser, arguments)


def run(options):
    """Print the table, or write the files that are asked for."""
    wanted = {option: file_for(getattr(options, option), "", (".json",), f"--{option}") for option in ("json", "chrome")
              if getattr(options, option) is not None}
    file_for("tensor.npy", "", (".npy",))                    # whether files can be written here
    pipeline = start_pipeline(options)
    import numpy as np

    from npdiffusion.pictures.images import save_array, save_text
    from npdiffusion.study import trace
    keep = [options.tensor] if options.tensor else []
    found = trace(pipeline, options.prompt, keep=keep, until=options.until, **options.request)
    for note in found.notes:
        say(note)
    for name, tensors in found.tensors.items():
        print_line(save_array(np.stack(tensors), f"{name}.npy"))
    for option, path in wanted.items():
        print_line(save_text(json.dumps(found.rows() if option == "json" else found.chrome()), path))
    if not wanted and not found.tensors:
        for line in str(found).splitlines():
            print_line(line)
    return 0
