"""Averaged weights: an exponential moving average of parameters, which draws better than the last step alone.

    a ← δ a + (1 − δ) θ,   δ = min(decay, (1 + t) / (10 + t)) after step t = 1, 2, …, and 0 after step 0

Polyak & Juditsky 1992; the growing δ, which forgets the random beginning quickly, is that of TensorFlow's
ExponentialMovingAverage and, with that beginning, of diffusers' EMAModel.
"""


class Average:
    """The average of parameters {name: array}; `values` has the same names, and begins as a copy."""
    def __init__(self, parameters, decay=0.999):
        self.parameters, self.decay, self.updates = parameters, decay, 0
        self.values = {name: value.copy() for name, value in parameters.items()}

    def update(self):
        """To be called after each step."""
        decay = min(self.decay, (1 + self.updates) / (10 + self.updates)) if self.updates else 0.0
        self.updates += 1
        for name, value in self.parameters.items():
            average = self.values[name]
            average += (1 - decay) * (value - average)

    def swap(self):
        """Exchange parameters and average, in place, to look at what the average does; a second call exchanges them back."""
        for name, value in self.parameters.items():
            kept = value.copy()
            value[...] = self.values[name]
            self.values[name][...] = kept
