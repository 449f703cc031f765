"""A σ between two levels of a schedule, at which a sampler looks a second time."""


class Between(float):
    """A float in all arithmetic, yet never equal to a level that the schedule laid out.

    diffusers rounds the time steps of some schedules to whole ones, but never those of such second looks, not even
    where one falls on the next level (as in dpm2_a). So a level's time step must not be found under such a σ.
    """
    def __eq__(self, other):
        return isinstance(other, Between) and float(self) == float(other)

    def __hash__(self):
        return hash((Between, float(self)))
