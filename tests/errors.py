"""What users read when something is wrong."""
import pytest

from npdiffusion.errors import UserError


def message_of(call, *arguments, **options):
    """What the UserError of a call says: one line."""
    with pytest.raises(UserError) as caught:
        call(*arguments, **options)
    assert "\n" not in str(caught.value)
    return str(caught.value)
