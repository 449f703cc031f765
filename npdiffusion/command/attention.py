"""npdiffusion attention "a prompt": what each place of a picture looks at, as a sheet of maps or a map of one word."""
import json

from npdiffusion.command.parser import reader
from npdiffusion.command.studying import checked, file_for, start_pipeline, study_parser
from npdiffusion.command.talk import print_line, say
from npdiffusion.settings.kinds import Path


def parse(arguments):
    """The checked options; SystemExit with code 2 and a line on stderr if they are wrong."""
    parser = study_parser("attention", "Make a picture and show where it looks for each word: the mean over layers, heads and "
                          "steps, as DAAM has it, on one scale for all words.", "PNG file (default: attention.png)")
    parser.add_argument("--word", metavar="WORD", help="the map of this word alone, on its own scale")
    parser.add_argument("--json", metavar="FILE", type=reader(Path()), help="write the words and their maps as numbers, too")
    return checked(parser, arguments)


def run(options):
    """Write the sheet, and the numbers if they are asked for."""
    path = file_for(options.output, "attention.png", (".png",))
    numbers = None if options.json is None else file_for(options.json, "", (".json",), "--json")
    pipeline = start_pipeline(options)
    from npdiffusion.pictures.images import save_png, save_text
    from npdiffusion.pictures.sheets import sheet
    from npdiffusion.study import attention_maps
    from npdiffusion.study.colours import over
    found = attention_maps(pipeline, options.prompt, **options.request)
    for note in found.notes:
        say(note)
    image, averages = found.images[0], found.averages()
    if options.word is not None:
        map_of_word = found.of(options.word)
        result = over(image, map_of_word, float(map_of_word.max()))
    else:
        largest = max((float(averages[at].max()) for at, word in enumerate(found.words) if word.kind == "token"), default=1.0)
        maps = [over(image, values, largest) for values in averages]
        captions = [f"{word.text}, {100 * values.mean():.1f} %" for word, values in zip(found.words, averages)]
        result = sheet([image, *maps], [options.prompt, *captions])
    print_line(save_png(result, path))
    if numbers is not None:
        rows = [{"text": word.text, "word": word.word, "kind": word.kind, "id": word.id, "weight": word.weight,
                 "map": values.round(6).tolist()} for word, values in zip(found.words, averages)]
        print_line(save_text(json.dumps({"prompt": options.prompt, "words": rows}), numbers))
    return 0
