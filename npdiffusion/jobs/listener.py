"""What happens while the pictures of a list are made, for whoever wants to hear it. Imports nothing heavy."""


class Listener:
    """Hears of each step and does nothing; the command's listener prints."""
    def begins(self, number, total, entry, resolved, inputs):
        """Picture `number` of `total` is begun; inputs: a painting.canvas.Inputs, the pictures it starts from"""

    def step(self, done, total, latents):
        """So many of the picture's steps are done; latents (1, h, w, C)"""

    def ends(self, entry):
        """The picture is made, but not yet in its place."""

    def saved(self, path):
        """A file is complete."""

    def note(self, text):
        """A line for people."""
