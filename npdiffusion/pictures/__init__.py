"""Pictures as files and as arrays, the settings inside them, sheets of them, previews.

    images.py      read, written, turned into arrays       text_inside.py    where a text is in a file
    sheets.py      many on one                             settings_text.py  what that text says
    preview.py     x̂₀ as a picture                         made.py           what `generate` gives
    clip_pixels.py as CLIP's image encoder reads them      maps.py           edges and the like, for ControlNets
"""
