"""A file → {our name: tensor} and sizes; one file per format or naming.

    safetensors_file.py   the format               text_files.py    texts and JSON, within limits
    original_names.py     one file with a whole model, in CompVis' names      autoencoders.py   a VAE by itself
    families.py           which model it is        library.py       the models that are here, by name
    hub.py                models by Hugging Face id
"""
