"""A model that is still empty, and the tensors that belong into it: names and shapes fit, nothing is read yet."""
from dataclasses import dataclass, field

from npdiffusion.checkpoints.tensors import check_kind
from npdiffusion.models import parameters


@dataclass
class Part:
    """One model of a checkpoint.

    model     empty; it is filled in place
    tensors   {parameter: Tensor}, by our names
    source    what messages call the file or folder
    left_out  names in the file that belong to no parameter
    on_disk   names of parameters that are read when they are used, not when the model is filled, see models/on_disk.py
    """
    model: object
    tensors: dict
    source: object
    left_out: set = field(default_factory=set)
    on_disk: set = field(default_factory=set)

    @classmethod
    def match(cls, model, tensors, source, name_in_file=str):
        """tensors: {name in the file: Tensor}; UserError unless all of the model's are there, see `parameters.match`"""
        matched = parameters.match(model, tensors, source, name_in_file)
        check_kind(*matched.values())
        return cls(model, matched, source, tensors.keys() - {name_in_file(name) for name in matched})

    def __post_init__(self):
        self.parameters = {name: (name, owner, attribute) for name, owner, attribute in parameters.walk(self.model)}
        self.shapes = parameters.shapes(self.model)

    def fill(self, dtype="float32", names=None, tensors=None):
        """Give all parameters their weights, or those that are named new ones, from `tensors` or the checkpoint's."""
        places = [self.parameters[name] for name in (self.parameters if names is None else names)]
        parameters.fill(places, tensors or self.tensors, self.source, dtype, self.on_disk)

    def may_stay_on_disk(self, dtype):
        """{name: bytes of memory that it would take} of the parameters for which that is worth it"""
        return {name: parameters.memory_of(place, dtype) for name, place in self.parameters.items()
                if parameters.is_large(*place[1:])}

    def bytes_in_file(self, name):
        """Size of a parameter in its file."""
        return self.tensors[name].stored

    def bytes_to_read(self, name):
        """Memory that reading a parameter takes."""
        return self.tensors[name].nbytes

    def files(self):
        """Paths of the files that the tensors are in."""
        return {tensor.path for tensor in self.tensors.values()}
