"""What users read when something is wrong."""
import pytest

from npdiffusion.errors import UserError
from tests.loaded import load_parts


def message_of(call, *arguments, **options):
    """What the UserError of a call says: one line."""
    with pytest.raises(UserError) as caught:
        call(*arguments, **options)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def message(path, **options):
    """What is said when a model can't be loaded; it names the model, or what was to replace a part of it."""
    text = message_of(load_parts, path, **options)
    assert any(str(each) in text for each in (path, *options.values()))
    return text
