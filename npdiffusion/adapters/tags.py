"""<lora:name:0.8> in a prompt: which adapters the picture is made with, as A1111 writes it.

    <lora:name>              strength 1
    <lora:name:0.8>          0.8 in the text encoder and the UNet
    <lora:name:0.8:0.5>      0.8 in the text encoder, 0.5 in the UNet; also te=0.8 and unet=0.5

The tags are no part of what is drawn: they are taken out before the prompt is split into tokens. "lyco" is another word
for "lora". As there, <word:anything> is a tag whatever the word; those that aren't offered are taken out too, with a
note, as are arguments that aren't (lbw=…, dyn=…). What is no complete tag stays text, with a note.
"""
import re
import warnings
from typing import NamedTuple

KINDS = "lora", "lyco"
TAG = re.compile(r"<(\w{1,100}):([^<>]*)>")
ALMOST = re.compile(r"<(?:lora|lyco)\b.{0,60}", re.DOTALL | re.IGNORECASE)
STRONGEST = 100
MOST = 100            # tags in a prompt
SHOWN = 5             # notes about a prompt


class Strength(NamedTuple):
    """How strongly an adapter acts on each model; 1 is as it was trained."""
    unet: float
    text_encoder: float


def take_tags(prompt):
    """Prompt → the prompt without tags, [(name, Strength)]; warns of tags that aren't followed, and of parts of them"""
    found, notes = [], {}

    def understand(match):
        kind, inside = match.groups()
        tag, reason = parse_tag(inside) if kind in KINDS else (None, other_kind(kind))
        if tag and len(found) == MOST:
            tag, reason = None, f"a prompt may have {MOST}"
        if tag:
            found.append(tag)
        if reason:
            notes[f"{shortened(match[0])} in the prompt is {'followed' if tag else 'left out'}{reason}"] = True
        return ""
    text = TAG.sub(understand, prompt)
    for note in [*notes][:SHOWN]:
        warnings.warn(note, stacklevel=2)
    if len(notes) > SHOWN:
        warnings.warn(f"{len(notes) - SHOWN} more tags in the prompt are not followed", stacklevel=2)
    note_literal(text, "its form is <lora:name:strength>")
    return text, found


def without(prompt, name):
    """The prompt without the tags of the adapter of that name"""
    def left(match):
        tag = parse_tag(match[2])[0] if match[1] in KINDS else None
        return "" if tag and tag[0] == name else match[0]
    return TAG.sub(left, prompt)


def other_kind(kind):
    """Why a tag with that word isn't followed"""
    hint = ", in small letters" if kind.lower() in KINDS else ""
    return f": networks that are offered are called <lora:name:strength>{hint}"


def parse_tag(inside):
    """What is between "<lora:" and ">" → (name, Strength) or None, and what a note says of it, or None

    Arguments that other programs know are passed over, with a note.
    """
    name, *arguments = inside.split(":")
    values, named, passed_over = [], {"te": None, "unet": None}, []
    for argument in arguments:
        key, equals, value = argument.partition("=")
        if (equals and key.strip() not in named) or (not equals and len(values) == 2):
            passed_over.append(argument.strip())
            continue
        try:
            number = float(value if equals else key)
        except ValueError:
            number = None
        if number is None or not abs(number) <= STRONGEST:
            return None, f": {argument.strip()[:40]!a} is no strength, which is a number up to {STRONGEST}"
        if equals:
            named[key.strip()] = number
        else:
            values.append(number)
    if not name.strip():
        return None, ": it has no name"
    text_encoder = values[0] if values else 1.0
    text_encoder = text_encoder if named["te"] is None else named["te"]
    unet = values[1] if len(values) > 1 else text_encoder
    strength = Strength(unet if named["unet"] is None else named["unet"], text_encoder)
    return (name.strip(), strength), f" without {shortened(', '.join(passed_over))}" if passed_over else None


def note_literal(text, reason):
    """Warn of what looks like a tag in a text that goes to the tokenizer."""
    found = TAG.search(text) or ALMOST.search(text)
    if found:
        warnings.warn(f"{shortened(found[0])} in the prompt is taken as plain text: {reason}", stacklevel=2)


def shortened(text):
    """The beginning of a text on one line, in quotes"""
    text = " ".join(text.split())
    return ascii(text if len(text) <= 60 else text[:60] + "…")
