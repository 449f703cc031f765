"""npdiffusion map NAME PICTURE: the map that a ControlNet reads, made of a picture, as a file."""
import os
import pathlib

from npdiffusion.command.parser import Parser, reader
from npdiffusion.command.talk import print_line
from npdiffusion.settings import MAPS
from npdiffusion.settings.kinds import Map, Path
from npdiffusion.settings.run import OPTIONS


def parse(arguments):
    """The checked options; SystemExit with code 2 and a line on stderr if they are wrong."""
    parser = Parser(prog="npdiffusion map", usage="npdiffusion map NAME PICTURE [options]", allow_abbrev=False,
                    description="Write the map that --control-from makes of a picture, to look at, or to draw on.")
    parser.add_argument("map", metavar="NAME", type=reader(Map(MAPS)), help=f"{', '.join(MAPS)}; with numbers: canny:50-150")
    parser.add_argument("picture", metavar="PICTURE", type=reader(Path()), help="file to make it of")
    parser.add_argument("-o", "--output", metavar="FILE", type=reader(Path()),
                        help="file (.png, .jpg, .jpeg or .webp) (default: PICTURE-NAME.png, here)")
    parser.add(OPTIONS["verbose"])
    return parser.read(arguments, positional="map and one picture")


def run(options):
    """Write it, and print its name."""
    from npdiffusion.pictures import images, maps
    made = maps.make(options.map, images.open_image(options.picture))
    name = f"{pathlib.Path(options.picture).stem}-{options.map.partition(':')[0]}.png"
    path = pathlib.Path(options.output or name)
    images.check_folder(path.parent)
    print_line(os.fspath(images.save_picture(images.file_of(made, path), path)))
    return 0
