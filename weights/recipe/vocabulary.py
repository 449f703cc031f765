"""The vocabulary: byte-pair merges (Sennrich et al. 2016, arXiv:1508.07909) in the form CLIP keeps them.

A word is its bytes, each written as one printable character, with </w> glued to the last; merges join neighbours,
the most frequent pair first. Entries: 256 bytes, the same 256 with </w>, one per merge, <|startoftext|>,
<|endoftext|>.

The merges are learnt from captions and, so that other subjects can be taught later without a new vocabulary, from
the Unicode names of all pictographs and a page of plain words.

    python -m weights.recipe.vocabulary        writes weights/tokenizer/
"""

import json
import os
import unicodedata

import numpy as np
from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers, trainers

from . import settings
from .captions import caption
from .scenes import sample_scene

CAPTIONS = 8000
PLAIN_WORDS = """
a an the and with of in on at by under over above below behind beside between near next to from into around up down
left right top bottom center centre middle corner side edge front back inside outside one two three four five six
seven eight nine ten many few some several pair single double small little tiny big large huge giant tall short long
wide bright dark light deep pale vivid plain colourful colorful red orange yellow green blue purple violet pink
brown gray grey white black golden silver teal cyan background picture photo image drawing painting icon emoji
cartoon scene portrait sky night day star stars ground grass sea water snow sand sun moon cloud clouds rain field
hill mountain forest beach city street room wall floor table no not without is are sits stands flies floating flying
sitting standing looking happy sad old new beautiful cute my your this that these those
""".split()
WORD = r"<\|startoftext\|>|<\|endoftext\|>|'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"      # CLIP's


def corpus():
    rng = np.random.default_rng([settings.SEED, 3])
    yield from (caption(sample_scene(rng), rng) for _ in range(CAPTIONS))
    for code in range(0x1F300, 0x1FB00):
        yield unicodedata.name(chr(code), "").lower()
    for _ in range(20):
        yield " ".join(PLAIN_WORDS)


def byte_characters():
    """The character that stands for each byte, in CLIP's order: printable bytes first, the rest from U+0100 on."""
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    rest = [byte for byte in range(256) if byte not in printable]
    return [chr(byte) for byte in printable] + [chr(256 + i) for i in range(len(rest))]


def learn_merges():
    os.environ["TOKENIZERS_PARALLELISM"] = "false"          # threads settle ties between equally frequent pairs by chance
    tokenizer = Tokenizer(models.BPE(end_of_word_suffix="</w>"))
    tokenizer.normalizer = normalizers.Sequence([normalizers.NFC(), normalizers.Lowercase()])
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([
        pre_tokenizers.Split(Regex(WORD), behavior="removed", invert=True),
        pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
    ])
    trainer = trainers.BpeTrainer(
        vocab_size=10 ** 4, min_frequency=1, end_of_word_suffix="</w>", initial_alphabet=byte_characters(),
        show_progress=False)
    tokenizer.train_from_iterator(corpus(), trainer)
    merges = json.loads(tokenizer.to_str())["model"]["merges"]
    return [tuple(pair) for pair in merges[:settings.MERGES]]


def main():
    folder = settings.MODEL / "tokenizer"
    if (folder / "vocab.json").exists():
        raise SystemExit(f"{folder} holds a vocabulary, and trained weights know no other; remove it to learn a new one")
    folder.mkdir(parents=True, exist_ok=True)
    letters, merges = byte_characters(), learn_merges()
    start, end = "<|startoftext|>", "<|endoftext|>"
    entries = [*letters, *(letter + "</w>" for letter in letters), *("".join(pair) for pair in merges), start, end]
    vocabulary = {entry: index for index, entry in enumerate(entries)}
    assert len(merges) == settings.MERGES and len(vocabulary) == settings.VOCABULARY_SIZE
    (folder / "vocab.json").write_text(json.dumps(vocabulary, ensure_ascii=False), encoding="utf-8")
    (folder / "merges.txt").write_text("#version: 0.2\n" + "".join(f"{a} {b}\n" for a, b in merges), encoding="utf-8")
    special = dict(bos_token=start, eos_token=end, unk_token=end, pad_token=end)
    (folder / "special_tokens_map.json").write_text(json.dumps(special, indent=2) + "\n")
    (folder / "tokenizer_config.json").write_text(json.dumps(
        dict(special, tokenizer_class="CLIPTokenizer", model_max_length=settings.TOKENS, do_lower_case=True,
             errors="replace", add_prefix_space=False), indent=2) + "\n")


if __name__ == "__main__":
    main()
