"""Time steps given one by one, as DMD2 and Hyper-SD were distilled on, beside diffusers' `timesteps`."""
import pytest
from diffusers import EulerDiscreteScheduler, HeunDiscreteScheduler, LCMScheduler, TCDScheduler

from npdiffusion.errors import UserError
from npdiffusion.settings import Request
from tests import pairs
from tests.differences import agree
from tests.pairs import NEGATIVE, PROMPT, levels
from tests.references import SCHEDULER

SAMPLERS = {"lcm": LCMScheduler, "tcd": TCDScheduler, "euler": EulerDiscreteScheduler, "heun": HeunDiscreteScheduler}
pytestmark = pytest.mark.usefixtures("on_numpy")


@pytest.fixture(scope="module")
def pair():
    return pairs.make_pair()


@pytest.mark.parametrize("sampler, timesteps", [
    ("lcm", [999, 749, 499, 249]), ("tcd", [800]), ("tcd", [999, 700, 20]), ("euler", [999, 749, 499, 249]),
    ("heun", [999, 500, 3])])
def test_pictures_equal_diffusers_within_one_level(pair, sampler, timesteps):
    theirs, ours = pair
    theirs.scheduler = SAMPLERS[sampler].from_config(SCHEDULER)
    expected = pairs.their_picture(theirs, timesteps=timesteps, guidance_scale=3.0, width=48, height=32)
    found, = ours.generate(PROMPT, NEGATIVE, timesteps=timesteps, guidance_scale=3.0, seed=7, width=48, height=32,
                           sampler=sampler)
    agree("few-step models", f"timesteps, {sampler}, levels of 255", levels(found), expected, 1)


@pytest.mark.parametrize("settings, told", [
    (dict(sampler="ddim", timesteps=[999, 499]), "timesteps: ddim lays out its own"),
    (dict(sampler="euler", schedule="karras", timesteps=[999, 499]), "with evenly spaced steps"),
    (dict(sampler="lcm", timesteps=[999, 499], steps=3), "they are 2, so steps can't be 3"),
    (dict(timesteps=[499, 999]), "each number must be below the one before"), (dict(timesteps=[]), "a list of whole numbers"),
    (dict(timesteps=[1000]), "from 0 to 999"), (dict(timesteps="999"), "a list of whole numbers")])
def test_time_steps_that_make_no_sense_are_one_line(pair, settings, told):
    with pytest.raises(UserError, match=told):
        pair[1].resolve(Request(PROMPT, **settings))
