"""Which tokenizer belongs to a model: one that the user names, its own, or CLIP's, which comes with the package."""
import os
import pathlib

from npdiffusion.checkpoints import families, hub
from npdiffusion.errors import UserError
from npdiffusion.text.tokenizer import CLIPTokenizer


def find_tokenizer(given, path, config, family):
    """The tokenizer that `given` names, or the model's own, in its folder or beside its file, or CLIP's.

    given: a folder, a Hugging Face id, or None      path: of the model      config: of the text encoder, which it must fit,
    or None      family: the model's      UserError if there is none that fits
    """
    if given is not None:
        if os.path.isdir(os.path.expanduser(given)):
            folder = pathlib.Path(os.path.expanduser(given))
            folder = folder / "tokenizer" if (folder / "tokenizer").is_dir() else folder
        elif isinstance(given, str) and hub.ID.fullmatch(given) and not os.path.exists(given):
            folder = hub.fetch_tokenizer(given)
        else:
            raise UserError(f"{given}: a folder with vocab.json and merges.txt was expected, or a Hugging Face id")
        return read_tokenizer(folder, config)
    own = path / families.tokenizer_of(family.text_encoders[0])
    beside = (own,) if path.is_dir() else (path.parent / "tokenizer", path.parent)
    for folder in beside:
        if folder.is_dir() and (path.is_dir() or {"vocab.json", "merges.txt"} <= {*os.listdir(folder)}):
            return read_tokenizer(folder, config)
    clip = CLIPTokenizer.clip(family.padding)
    if not len(clip.vocabulary) <= config.vocab_size < 2 * len(clip.vocabulary):
        raise UserError(f"{path}: it has no tokenizer; its text encoder knows {config.vocab_size} pieces, so CLIP's, of "
                        f"{len(clip.vocabulary)}, isn't the one: put vocab.json and merges.txt beside a single file, or name "
                        "the folder that has them (--tokenizer FOLDER)")
    return clip


def find_tokenizers(given, path, configs, family):
    """A tokenizer for each text encoder of the family, {name of the encoder: CLIPTokenizer}; they differ in their padding

    configs: {name: configuration} of the text encoders; all else is as for `find_tokenizer`
    """
    first, *others = family.text_encoders
    found = {first: find_tokenizer(given, path, configs[first], family)}
    if not path.is_dir():
        found[first] = found[first].padded_with(family.padding)
    for name in others:
        own = path / families.tokenizer_of(name)
        found[name] = (read_tokenizer(own, configs[name]) if given is None and own.is_dir() else
                       found[first].padded_with(family.parts[name].padding or family.padding))
    return found


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
