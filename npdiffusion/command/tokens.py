"""npdiffusion tokens "a red apple": how a prompt is split into tokens. Only the tokenizer of a model is read."""
from npdiffusion.command.talk import print_line
from npdiffusion.options import Parser, text


def parse(arguments):
    """The options of this subcommand."""
    parser = Parser(prog="npdiffusion tokens", usage='npdiffusion tokens "prompt" [options]', allow_abbrev=False,
                    description="Show how a prompt is split into tokens; no weights are loaded.")
    parser.add_argument("prompt", type=text, help="the text, in quotes")
    parser.add_argument("-m", "--model", metavar="MODEL", help="whose tokenizer (default: the embedded model's)")
    parser.add_argument("--tokenizer", metavar="PATH", help="folder with vocab.json and merges.txt, or an id")
    parser.add_argument("-v", "--verbose", action="store_true", help="all warnings, and where an error comes from")
    return parser.read(arguments)


def run(options):
    """Print the tokens."""
    from npdiffusion import loading
    tokenizer = loading.load_tokenizer(options.model, options.tokenizer)
    for piece in tokenizer.tokenize(options.prompt):
        print_line(f"{tokenizer.vocabulary[piece]:>6}  {piece}")
    return 0
