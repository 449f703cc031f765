"""CLIP's tokenizer: text in, numbers of vocabulary entries out, by byte-pair encoding.

Byte-pair encoding (Gage 1994; for language models Sennrich et al. 2016, arXiv:1508.07909) spells a word in pieces that
are as long as possible. Training starts from single symbols and, again and again, joins the pair of neighbours that is
most frequent in some text; the list of these merges, in the order in which they were learnt, is the whole model
(merges.txt). Encoding a word repeats history: of all merges that apply to it, do the one that was learnt first, until
none applies.

    l o w e r</w>  →  lo w e r</w>  →  low e r</w>  →  low er</w>            </w> marks the end of a word

The symbols are bytes, not characters (GPT-2, Radford et al. 2019), so that 256 of them spell every text in every
script; to keep vocabulary files printable, each byte is written as one visible character (`byte_alphabet`). CLIP
(Radford et al. 2021, arXiv:2103.00020) adds the end-of-word mark and the frame of a text of fixed length T = 77:

    <|startoftext|>  piece … piece  <|endoftext|>  padding … padding

The steps are text → normal form → words → pieces → ids. They follow transformers 5: NFC, no repair of broken encodings,
no HTML entities, lower case. Letters, numbers, NFC and lower case come from the `unicodedata` of the running Python
(Unicode 13 in Python 3.10, 15.1 in 3.13), so two differences remain: a character younger than that counts as a symbol
(and is spelt byte by byte like any other), and where combining marks from after 2016 are stacked, NFC sorts them and
transformers does not yet. What becomes of the ids: docs/notes/12-words.md
"""
import functools
import gzip
import heapq
import itertools
import os
import pathlib
import re
import unicodedata
import warnings
from collections.abc import Iterable, Iterator, Sequence

import numpy as np

from npdiffusion.checkpoints.text_files import read_json, read_text
from npdiffusion.errors import UserError

START, END, END_OF_WORD = "<|startoftext|>", "<|endoftext|>", "</w>"
CLIP_MERGES = pathlib.Path(__file__).with_name("clip_merges.txt.gz")
LONGEST_FILE = 32 * 2**20                               # bytes; CLIP's own vocabulary takes 1 MB, a tokenizer.json 4 MB

# Unicode's property White_Space. Python's str.isspace() adds the separators \x1c to \x1f, which CLIP takes for symbols.
WHITE_SPACE = "\t\n\v\f\r \x85\xa0\u1680\u2000-\u200a\u2028\u2029\u202f\u205f\u3000"
SPACES = re.compile(f"[{WHITE_SPACE}]+")
FIXED_WORDS = re.compile(r"<\|startoftext\|>|<\|endoftext\|>|'s|'t|'re|'ve|'m|'ll|'d")


class TextCutOff(UserWarning):
    """A text had more pieces than fit; the message quotes what the model does not see."""


def byte_alphabet() -> list[str]:
    """One visible character for each of the 256 bytes: itself if Latin-1 prints it, else the next one from U+0100 on.

    Printable are ! to ~, ¡ to ¬ and ® to ÿ. The space, for example, is the 33rd byte that is not: it becomes U+0120, Ġ.
    """
    printable = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    stand_ins = iter(range(0x100, 0x200))
    return [chr(byte if byte in printable else next(stand_ins)) for byte in range(256)]


def normalise(text: str) -> str:
    """NFC, each stretch of white space to one space, lower case.

    Lower case goes character by character: of a whole text Python would make a final sigma, ΑΣ → ας, where CLIP has ασ.
    """
    return "".join(c.lower() for c in SPACES.sub(" ", unicodedata.normalize("NFC", in_order(text))))


def in_order(text: str) -> str:
    """Combining marks in a row sorted as NFC sorts them, whose own time grows with the square of their number"""
    if text.isascii():
        return text
    runs = itertools.groupby(text, key=lambda c: unicodedata.combining(c) > 0)
    return "".join("".join(sorted(run, key=unicodedata.combining) if marks else run) for marks, run in runs)


def kind(character: str) -> str:
    """L for a letter, N for a number, a space for a space, S for any other symbol."""
    return character if character == " " else {"L": "L", "N": "N"}.get(unicodedata.category(character)[0], "S")


def words(text: str) -> Iterator[str]:
    """Cut normalised text: contractions ('s, 't, …), runs of letters, single digits, runs of symbols; no spaces.

    "it's 42!?" → it 's 4 2 !?

    The names <|startoftext|> and <|endoftext|>, where they come as plain text (written in capitals, that is), are first
    cut out and then cut again as GPT-2 cuts: <| startoftext |>.
    """
    start = 0
    while start < len(text):
        if fixed := FIXED_WORDS.match(text, start):
            yield from re.findall(r"'?[a-z]+|[<|>]+", fixed.group())
            start = fixed.end()
            continue
        first, end = kind(text[start]), start + 1
        while first in "LS" and end < len(text) and kind(text[end]) == first:
            end += 1
        if first != " ":
            yield text[start:end]
        start = end


class CLIPTokenizer:
    """Byte-pair encoding with a vocabulary {piece: id} and a list of merges (left, right), earliest first.

    `length` is T, the number of ids that `encode` returns; `padding` is the piece that fills them up: <|endoftext|> in
    Stable Diffusion 1, "!" (id 0) in 2. The names of start, end and padding stand for themselves where they occur in a
    text: in exactly this spelling, except that those in `folded` are looked for in the normalised text and so are found
    in capitals.
    """

    def __init__(self, vocabulary: dict[str, int], merges: Sequence[tuple[str, str]], length: int = 77, padding: str = END,
                 folded: Iterable[str] = frozenset()) -> None:
        self.vocabulary, self.length, self.padding = vocabulary, length, padding
        self.pieces = {number: piece for piece, number in vocabulary.items()}
        self.ranks = {pair: rank for rank, pair in enumerate(merges)}
        self.alphabet = byte_alphabet()
        self.bytes = {character: byte for byte, character in enumerate(self.alphabet)}
        self.names, self.folded = {START, END, padding}, set(folded)
        self.exact = self.names - self.folded

    @classmethod
    def clip(cls, padding: str = END) -> "CLIPTokenizer":
        """CLIP's own, which comes with the package: that of all Stable Diffusion models up to XL.

        padding: END in v1 and in XL's first text encoder, "!" in 2 and in XL's second
        """
        vocabulary, merges = clip_vocabulary()
        return cls(vocabulary, merges, padding=padding, folded={START, END} - {padding})

    def __repr__(self):
        return f"<CLIPTokenizer: {len(self.vocabulary)} pieces, texts of {self.length} ids>"

    @classmethod
    def from_folder(cls, folder: str | os.PathLike[str]) -> "CLIPTokenizer":
        """Read a model's tokenizer folder: vocab.json and merges.txt, or else tokenizer.json, which holds both.

        tokenizer_config.json and special_tokens_map.json, where they exist, say the length, the padding and the folded
        names. Raises UserError for files that are missing, malformed or absurd.
        """
        folder = pathlib.Path(folder)
        whole = {}
        if (folder / "vocab.json").exists() or not (folder / "tokenizer.json").exists():
            source = folder / "vocab.json"
            vocabulary, merges = read_json(source, LONGEST_FILE), _read_merges(folder / "merges.txt")
        else:
            source = folder / "tokenizer.json"
            whole = read_json(source, LONGEST_FILE)
            model = whole.get("model")
            if not isinstance(model, dict) or not isinstance(model.get("merges"), list):
                raise UserError(f"{source} has no byte-pair model with a vocabulary and merges")
            vocabulary = model.get("vocab")
            merges = [tuple(m.split(" ")) if isinstance(m, str) else tuple(m) if isinstance(m, list) else (m,)
                      for m in model["merges"]]
        _check(vocabulary, merges, source)
        settings = _read_settings(folder, whole)
        if settings["padding"] not in vocabulary:
            raise UserError(f"{folder} pads with {settings['padding']!r}, which {source.name} does not contain")
        return cls(vocabulary, merges, **settings)

    def padded_with(self, padding: str) -> "CLIPTokenizer":
        """The same vocabulary with another piece that fills up ids → CLIPTokenizer"""
        if padding == self.padding:
            return self
        return CLIPTokenizer(self.vocabulary, list(self.ranks), self.length, padding, self.folded)

    def tokenize(self, text: str) -> list[str]:
        """str → list of pieces, all of them, without the start, the end and the padding around them.

        Raises UserError for a text with lone surrogates (what the shell passes for bytes that are not UTF-8).
        """
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise UserError(f"the text is not valid Unicode: {error.reason} at character {error.start}") from None
        pieces = []
        for part in _split_at(self.exact, text):
            if part in self.exact:
                pieces.append(part)
                continue
            for plain in _split_at(self.folded, normalise(part)):
                if plain in self.folded:
                    pieces.append(plain)
                else:
                    pieces += [piece for word in words(plain) for piece in self._spell(word)]
        return pieces

    def _spell(self, word):
        """Byte-pair encoding of one word: the merge that was learnt first, leftmost first, until none applies.

        A heap of candidates keeps this at n log n for n bytes; a candidate that an earlier merge has changed is passed
        over.
        """
        symbols = [self.alphabet[byte] for byte in word.encode()]
        symbols[-1] += END_OF_WORD
        before, after = list(range(-1, len(symbols) - 1)), list(range(1, len(symbols) + 1))
        candidates = []

        def offer(left, right):
            if left >= 0 and right < len(symbols):
                pair = symbols[left], symbols[right]
                if pair in self.ranks:
                    heapq.heappush(candidates, (self.ranks[pair], left, right, pair))

        for left in range(len(symbols) - 1):
            offer(left, left + 1)
        while candidates:
            _, left, right, pair = heapq.heappop(candidates)
            if (symbols[left], symbols[right]) != pair:
                continue
            symbols[left], symbols[right] = pair[0] + pair[1], None
            after[left] = after[right]
            if after[left] < len(symbols):
                before[after[left]] = left
            offer(before[left], left)
            offer(left, after[left])
        return [symbol for symbol in symbols if symbol is not None]

    def ids(self, text: str) -> list[int]:
        """str → list of ids of its pieces. One that the vocabulary lacks (in CLIP's, none is) counts as the text's end."""
        return [self.vocabulary.get(piece, self.vocabulary[END]) for piece in self.tokenize(text)]

    def frame(self, ids: Sequence[int]) -> np.ndarray:
        """Ids of at most `room` pieces → ids (T,), int64: start, pieces, end, padding"""
        framed = [self.vocabulary[START], *ids, self.vocabulary[END]]
        return np.array(framed + [self.vocabulary[self.padding]] * (self.length - len(framed)), np.int64)

    @property
    def room(self) -> int:
        """How many pieces fit between start and end."""
        return self.length - 2

    def encode(self, text: str) -> np.ndarray:
        """str → ids (T,), int64: start, pieces, end, padding; what doesn't fit is cut off. Raises as `tokenize` does."""
        return self.frame(self.cut(self.ids(text)))

    def cut(self, ids: Sequence[int]) -> Sequence[int]:
        """As many ids as there is room for; a `TextCutOff` warning quotes the others."""
        if len(ids) > self.room:
            lost = self.decode(ids[self.room:])
            quoted = lost if len(lost) <= 300 else lost[:300] + "…"
            warnings.warn(f"the text has {len(ids)} tokens, {self.room} fit; cut off: {quoted!r}", TextCutOff, stacklevel=3)
        return ids[:self.room]

    def decode(self, ids: Iterable[int]) -> str:
        """ids → str: pieces joined, a space after each word; start, end, padding left out, broken UTF-8 becomes �.

        Raises KeyError for an id that the vocabulary lacks.
        """
        pieces = [self.pieces[int(number)] for number in ids]
        spelt = b"".join(self._as_bytes(piece) for piece in pieces if piece not in self.names)
        return spelt.decode(errors="replace").replace(END_OF_WORD, " ").strip()

    def _as_bytes(self, piece):
        return bytes(self.bytes[c] for c in piece) if self.bytes.keys() >= set(piece) else piece.encode()


@functools.cache
def clip_vocabulary() -> tuple[dict[str, int], list[tuple[str, str]]]:
    """CLIP's {piece: id}, 49,408 of them, and its 48,894 merges, in order → dict, list; not to be changed

    The pieces follow from the merges: bytes, in the order in which they are printable; bytes that end a word; what the
    merges make; the two names of the frame.
    """
    merges = gzip.decompress(CLIP_MERGES.read_bytes()).decode().split("\n")[:-1]
    bytes_ = sorted(byte_alphabet())
    pieces = [*bytes_, *(byte + END_OF_WORD for byte in bytes_), *(merge.replace(" ", "") for merge in merges), START, END]
    return {piece: number for number, piece in enumerate(pieces)}, [tuple(merge.split(" ")) for merge in merges]       # type: ignore[misc]


def _split_at(names, text):
    """"a<|endoftext|>b" → ["a", "<|endoftext|>", "b"]; where one name begins another, the longer one is taken."""
    pattern = "|".join(re.escape(name) for name in sorted(names, key=len, reverse=True))
    return re.split(f"({pattern})", text) if names else [text]


# Files come from anywhere: whatever is wrong with one, say it in a line that names the file.

def _read_merges(path):
    """One merge a line, "left right"; a first line "#version: …" is no merge, though "# #" is."""
    lines = read_text(path, LONGEST_FILE).split("\n")
    return [tuple(line.split(" ")) for line in lines if line.strip() and not line.startswith("#version")]


def _check(vocabulary, merges, source):
    """The vocabulary numbers its pieces 0, 1, 2, …; every merge joins two of them to a third."""
    if not isinstance(vocabulary, dict) or not all(type(number) is int for number in vocabulary.values()):
        raise UserError(f"{source} should map each piece of text to an integer")
    if sorted(vocabulary.values()) != list(range(len(vocabulary))):
        raise UserError(f"{source} should number its {len(vocabulary)} pieces 0, 1, 2, … without gaps or repetition")
    for name in START, END:
        if name not in vocabulary:
            raise UserError(f"{source} has no {name}, so it is not the vocabulary of a CLIP text encoder")
    for number, merge in enumerate(merges, 1):
        pair = len(merge) == 2 and all(isinstance(part, str) for part in merge)
        if not pair or not all(piece in vocabulary for piece in (*merge, "".join(merge))):
            shown = " ".join(map(str, merge))[:60]
            raise UserError(f"merge {number} ({shown!r}) for {source} is not two of its pieces that make a third")


def _read_settings(folder, whole):
    """Length, padding and folded names, found where transformers finds them.

    special_tokens_map.json overrides tokenizer_config.json (in Stable Diffusion 2 they disagree about the padding, and
    the map's "!" holds), unless the latter has `added_tokens_decoder` and so comes from a newer version that says
    everything. Each of the four roles names a piece by a string or by an entry; the last one to name a piece, or else a
    list of added tokens, decides whether that piece is "normalized", that is, folded. (In Stable Diffusion 1 the start
    is, and the end is not, since the padding names it once more by a plain string.)
    """
    config_file, map_file = folder / "tokenizer_config.json", folder / "special_tokens_map.json"
    config = read_json(config_file, LONGEST_FILE) if config_file.exists() else {}
    if "added_tokens_decoder" in config:
        added = config["added_tokens_decoder"]
        added = added.values() if isinstance(added, dict) else []
    else:
        config.update(read_json(map_file, LONGEST_FILE) if map_file.exists() else {})
        added = whole.get("added_tokens")
        added = added if isinstance(added, list) else []

    length = config.get("model_max_length", 77)
    if not isinstance(length, (int, float)) or not length >= 2:
        raise UserError(f"model_max_length in {config_file} is {length!r}, and should be a number of tokens")
    roles = {"bos_token": START, "eos_token": END, "unk_token": END, "pad_token": END}
    entries = [config.get(role) or default for role, default in roles.items()]
    entries = [entry if isinstance(entry, dict) else {"content": entry} for entry in [*entries, *added]]
    if not all(isinstance(entry.get("content"), str) for entry in entries):
        raise UserError(f"the special tokens in {folder} (pad_token and others) should be strings")
    normalized = {entry["content"]: entry.get("normalized") is True for entry in entries}
    return {"length": int(length) if length <= 10_000 else 77,                     # "no limit" is written as 1e30
            "padding": entries[len(roles) - 1]["content"],
            "folded": {name for name in (START, END) if normalized.get(name)}}
