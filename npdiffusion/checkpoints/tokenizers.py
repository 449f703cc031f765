"""Which tokenizer belongs to a model: its own, one that the user names, or, for a single file, one that is at hand."""
import os
import pathlib

from npdiffusion.checkpoints import hub
from npdiffusion.errors import UserError
from npdiffusion.text.tokenizer import CLIPTokenizer


def find_tokenizer(given, path, config, family):
    """The tokenizer that `given` names, or the model's own, or, for a single file, one that is at hand.

    given: a folder, a Hugging Face id, or None      path: of the model      config: of the text encoder, which it must fit,
    or None      family: the model's      UserError if there is none that fits
    """
    if given is not None:
        if os.path.isdir(os.path.expanduser(given)):
            folder = pathlib.Path(os.path.expanduser(given))
            folder = folder / "tokenizer" if (folder / "tokenizer").is_dir() else folder
        elif isinstance(given, str) and hub.ID.fullmatch(given) and not os.path.exists(given):
            folder = hub.tokenizer(given)
        else:
            raise UserError(f"{given}: a folder with vocab.json and merges.txt was expected, or a Hugging Face id")
        return read_tokenizer(folder, config)
    if path.is_dir():
        return read_tokenizer(path / "tokenizer", config)
    for folder in (path.parent / "tokenizer", path.parent):
        if (folder / "vocab.json").exists() and (folder / "merges.txt").exists():
            return read_tokenizer(folder, config)
    for folder in (hub.cached(family.tokenizer), *(model / "tokenizer" for model in hub.everything_cached())):
        try:
            found = folder and CLIPTokenizer.from_folder(folder)
        except UserError:
            continue                                             # no tokenizer, or another kind
        if found and len(found.vocabulary) == config.vocab_size and found.padding == family.padding:
            return found
    raise UserError(f"{path}: a single file has no tokenizer; put vocab.json and merges.txt of {family.tokenizer} beside it, "
                    f"or name the folder that has them (--tokenizer FOLDER), or download them (--tokenizer {family.tokenizer})")


def read_tokenizer(folder, config):
    """The tokenizer in a folder; UserError unless it fits the text encoder, if there is one."""
    tokenizer = CLIPTokenizer.from_folder(folder)
    if config is None:
        return tokenizer
    pieces = len(tokenizer.vocabulary)
    if not config.vocab_size / 2 < pieces <= config.vocab_size:          # a few rows more belong to words learnt later
        raise UserError(f"{folder}: has {pieces} pieces, but the text encoder knows {config.vocab_size}: "
                        "this is the tokenizer of another model")
    if tokenizer.length > config.max_position_embeddings:
        raise UserError(f"{folder}: makes {tokenizer.length} tokens, but the text encoder takes at most "
                        f"{config.max_position_embeddings}")
    return tokenizer
