"""Prompts: from what people write to what the text encoder reads, in the notation of AUTOMATIC1111's web interface.

    "[cat:dog:0.5] (on:1.2) a mat"    →    text at each step    →    weighted parts    →    chunks of 75 tokens
                                           editing.py                emphasis.py            chunks.py

`reading.py` does these steps one after another; `contexts.py` encodes the chunks by each of the model's text encoders, as
`encoders.py` says, and keeps what the UNet attends to, step by step. `tokenizer.py` is CLIP's, from words to numbers of
vocabulary entries, whose merges are in clip_merges.txt.gz; `known_words.py` says which words the embedded model has never
seen.
"""
