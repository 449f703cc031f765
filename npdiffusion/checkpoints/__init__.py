"""A file → {our name: tensor} and sizes; one file per format or naming.

    safetensors_file.py   a format                                   gguf_file.py      the other format
    files.py              whichever it is                            text_files.py     texts and JSON, within limits
    tensors.py            one tensor of a file, or some as one       quantized.py      kinds of numbers that are decoded
    leftovers.py          what in a file belongs to no part
    families.py           which model it is, one row per family      original_names.py CompVis' names, in one file for all parts
    whole_model.py        every part of a model, opened              part.py           a model still empty, and its tensors
    controlnets.py        a ControlNet by itself                     unets.py         a UNet by itself
    ip_adapters.py        an IP-Adapter and its image encoder        t2i_adapters.py  a T2I-Adapter by itself
    autoencoders.py       a VAE by itself                            tokenizers.py     which tokenizer belongs to a model
    bundled.py            what comes with the embedded model, by name
    conversion.py         a model written anew                       config_json.py    its sizes, as in config.json
    library.py            the models that are here, by name          hub.py            models by Hugging Face id
    folder_walk.py        what is in a folder, bounded
"""
