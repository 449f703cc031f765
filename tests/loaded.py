"""A checkpoint's parts, loaded, without a pipeline around them."""
from npdiffusion import loading


def load_parts(path=None, **options):
    """{part: filled model}, and the tokenizer, schedule and source beside them; options: as of `npdiffusion.load`"""
    pipeline = loading.load(path, **options)
    return {**pipeline.models, "tokenizer": pipeline.tokenizer, "schedule": pipeline.schedule, "source": pipeline.source}
