"""A vocabulary of one's own: byte-pair merges learnt from captions (Sennrich et al. 2016, arXiv:1508.07909).

    begin with single symbols, the last of a word marked by </w>; again and again join the pair of neighbours that is most
    frequent, until every word is one piece

    s e v e n</w>, t e n</w>   →   s e v en</w>, t en</w>   →   …

All 512 bytes, inside a word and at its end, stay pieces, so that any text can be spelt: a word that no caption has is made
of letters whose vectors were never trained. What encoding does with the merges: text/tokenizer.py.
"""
import collections
import itertools

from npdiffusion.text.tokenizer import END, END_OF_WORD, START, CLIPTokenizer, byte_alphabet, normalise, words


def learn(captions, length):
    """A CLIPTokenizer that knows every word of the captions as one piece; length: of the ids that it gives for a text"""
    counts = collections.Counter(word for each in captions for word in words(normalise(each)))
    alphabet = byte_alphabet()
    spelt = {word: [alphabet[byte] for byte in word.encode()] for word in sorted(counts)}
    for symbols in spelt.values():
        symbols[-1] += END_OF_WORD
    merges = []
    while pairs := frequencies(spelt, counts):
        best = max(sorted(pairs), key=pairs.get)
        merges.append(best)
        spelt = {word: joined(symbols, best) for word, symbols in spelt.items()}
    letters = sorted(alphabet)
    pieces = [*letters, *(letter + END_OF_WORD for letter in letters), *map("".join, merges), START, END]
    return CLIPTokenizer({piece: number for number, piece in enumerate(pieces)}, merges, length)


def frequencies(spelt, counts):
    """{(left, right): how often} of neighbours in all words"""
    found = collections.Counter()
    for word, symbols in spelt.items():
        for pair in itertools.pairwise(symbols):
            found[pair] += counts[word]
    return found


def joined(symbols, pair):
    """The symbols of a word with each such pair as one, from the left"""
    result = []
    for symbol in symbols:
        if result and (result[-1], symbol) == pair:
            result[-1] += symbol
        else:
            result.append(symbol)
    return result
