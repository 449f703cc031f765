"""Small files that change a large model: what people load beside a checkpoint.

    tags      <lora:name:0.8> in a prompt
    folder    from a name to a file
    lora      a file, opened and checked:  names  from keys to layers,  delta_weights  ΔW of each kind,
              scales  their factors,  patterns  regular expressions that say whose a factor is
    merging   W + ΔW in the model, and W again
    textual_inversion   words that stand for learnt vectors, which change no weights; a LoRA may bring some along
    image_prompts       pictures in place of words: an IP-Adapter
    picture_features    pictures that lead: a T2I-Adapter
"""
