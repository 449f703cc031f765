"""A σ between two levels of a schedule, at which a sampler looks a second time."""


class Between(float):
    """A float that says so.

    diffusers rounds the time steps of some schedules to whole ones, but never those of such second looks, not even
    where one falls on the next level (as in dpm2_a). So `schedules.levels.SigmaLevels` looks up no level under it.
    """
