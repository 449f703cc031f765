"""<lora:name:0.8> in a prompt: which adapters the picture is made with, as A1111 writes it.

    <lora:name>              strength 1
    <lora:name:0.8>          0.8 in the text encoder and the UNet
    <lora:name:0.8:0.5>      0.8 in the text encoder, 0.5 in the UNet; also te=0.8 and unet=0.5

The tags are no part of what is drawn: they are taken out before the prompt is split into tokens. "lyco" is another word
for "lora". What looks like a tag but can't be understood stays text, with a note.
"""
import re
import warnings
from typing import NamedTuple

TAG = re.compile(r"<(?:lora|lyco):([^<>]*)>")
ALMOST = re.compile(r"<(?:lora|lyco)\b.{0,60}", re.DOTALL)
STRONGEST = 100
MOST = 100            # tags in a prompt


class Strength(NamedTuple):
    """How strongly an adapter acts on each model; 1 is as it was trained."""
    unet: float
    text_encoder: float


def take(prompt):
    """Prompt → the prompt without tags, [(name, Strength)]"""
    found = []

    def understand(match):
        tag = parse(match[1])
        if tag is None or len(found) == MOST:
            return match[0]
        found.append(tag)
        return ""
    text = TAG.sub(understand, prompt)
    note_literal(text, "its form is <lora:name:strength>, and a strength is a number")
    return text, found


def parse(inside):
    """What is between "<lora:" and ">" → (name, Strength), or None if it can't be understood"""
    name, *arguments = inside.split(":")
    values, named = [], {}
    for argument in arguments:
        key, equals, value = argument.rpartition("=")
        try:
            number = float(value)
        except ValueError:
            return None
        if not abs(number) <= STRONGEST or (equals and key.strip() not in ("te", "unet")):
            return None
        if equals:
            named[key.strip()] = number
        else:
            values.append(number)
    if not name.strip() or len(values) > 2:
        return None
    text_encoder = named.get("te", values[0] if values else 1.0)
    unet = named.get("unet", values[1] if len(values) > 1 else text_encoder)
    return name.strip(), Strength(unet, text_encoder)


def note_literal(text, reason):
    """Warn of what looks like a tag in a text that goes to the tokenizer."""
    found = ALMOST.search(text)
    if found:
        shown = " ".join(found[0].partition(">")[0].split())
        warnings.warn(f"{shown!a}... in the prompt is taken as plain text: {reason}", stacklevel=2)
