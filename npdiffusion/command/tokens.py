"""npdiffusion tokens "a [cat:dog:0.5] (on:1.2) a mat": how a prompt is understood, without loading the model.

    calls 1 to 26 of 50 of the model: 'a cat (on:1.2) a mat'
      chunk 1 of 1, 5 of 75 tokens
           320  a
          2368  cat
           525  on              1.2
           320  a
          2463  mat
"""
from npdiffusion.command.parser import Parser, reader
from npdiffusion.command.talk import print_line
from npdiffusion.settings import SETTINGS, STEPS, SYNTAXES
from npdiffusion.settings.run import OPTIONS

CONTEXTS = 6               # different texts that are shown token by token


def parse(arguments):
    """The checked options; SystemExit with code 2 and a line on stderr if they are wrong."""
    parser = Parser(prog="npdiffusion tokens", usage='npdiffusion tokens "prompt" [options]', allow_abbrev=False,
                    description="Show how a prompt is scheduled, weighted, and split into tokens and chunks; the "
                                "weights of the model are not loaded.")
    parser.add_argument("prompt", type=reader(SETTINGS["prompt"].kind), help="the text, in quotes")
    parser.add(SETTINGS["negative_prompt"], default=None, help="show this one too")
    parser.add(SETTINGS["steps"], default=STEPS, help=f"that [from:to:when] counts (default: {STEPS})")
    parser.add(SETTINGS["sampler"], help="some call the model twice a step")
    parser.add(SETTINGS["prompt_syntax"], help=f"{' or '.join(SYNTAXES)} (default: {SETTINGS['prompt_syntax'].default})")
    parser.add(OPTIONS["embedding_dir"], help="folder with learnt words (textual inversion)")
    parser.add(OPTIONS["model"], help="whose tokenizer (default: the embedded model's)")
    for name in "model_dir", "tokenizer", "verbose":
        parser.add(OPTIONS[name])
    return parser.read(arguments)


def run(options):
    """Print what becomes of the prompt."""
    from npdiffusion import loading
    from npdiffusion.adapters import tags
    from npdiffusion.adapters.textual_inversion import LearntWords
    from npdiffusion.text import editing
    from npdiffusion.text.reading import padded, read_prompt
    tokenizer = loading.load_tokenizer(options.model, options.tokenizer, options.model_dir)
    words = LearntWords()
    if options.embedding_dir is not None:
        words.add(options.embedding_dir)
    calls, syntax = editing.calls(options.sampler, options.steps), options.prompt_syntax
    prompt, adapters = tags.take_tags(options.prompt)
    readings = {"": read_prompt(prompt, calls, tokenizer, syntax, words)}
    if options.negative_prompt is not None:
        readings["negative prompt, "] = read_prompt(options.negative_prompt, calls, tokenizer, syntax, words)
    length = max(len(chunks) for reading in readings.values() for chunks in reading.chunks.values())
    for name, strength in adapters:
        strengths = " and ".join(f"{part:g} ({model})" for model, part in strength._asdict().items())
        print_line(f"adapter {name!r}, strength {strengths}")
    for title, reading in readings.items():
        for line in describe(padded(reading, length), tokenizer, calls):
            print_line(title + line if not line.startswith(" ") else line)
    return 0


def describe(reading, tokenizer, calls):
    """Lines about a Reading: when each text holds, and the tokens of each"""
    from npdiffusion.text.chunks import spelt
    for prompt, chunks in list(reading.chunks.items())[:CONTEXTS]:
        when = f"calls {spans(reading.entries, prompt, calls)} of {calls} of the model: "
        yield (when if len(reading.entries) > 1 else "") + repr(prompt)
        for number, chunk in enumerate(chunks, start=1):
            yield f"  chunk {number} of {len(chunks)}, {len(chunk)} of {tokenizer.room} tokens"
            for token in chunk:
                identity = "learnt" if token.word else token.id
                weight = "" if token.weight == 1 else f"{token.weight:.4g}"
                yield f"    {identity:>6}  {token.word or spelt(token.id, tokenizer):<16}{weight}".rstrip()
    if len(reading.chunks) > CONTEXTS:
        yield f"… and {len(reading.chunks) - CONTEXTS} more texts that take turns"


def spans(entries, text, calls):
    """When a text holds, calls counted from 1: "1 to 3, 5"; the first entry lasts a call longer, see editing.py"""
    found, start = [], 1
    for last, other in entries:
        end = min(last + 1, calls)
        if other == text:
            found.append((start, end))
        start = end + 1
    return ", ".join(f"{a}" if a == b else f"{a} to {b}" for a, b in found if a <= b)
