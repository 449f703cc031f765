"""One picture of a list: what is asked for, and where it is once it is made."""
import pathlib
from dataclasses import dataclass, field

from npdiffusion.settings import SETTINGS, Request

COUNTED = ("count", "seed", "subseed")          # differ between the pictures of one line


@dataclass
class Entry:
    """A picture of a list.

    request  for one picture: count is 1, its seeds are known
    named    the settings that were typed for it, by name; others have their defaults or come from another picture
    asked    {name: value} by which a later run knows it again, see manifest.py: seeds only where they were asked for
    path     where it is, or will be; None: not decided yet
    """
    request: Request
    named: frozenset = frozenset()
    asked: dict = field(default_factory=dict)
    path: pathlib.Path | None = None


def one_by_one(request, named=frozenset(), beside=None):
    """The pictures that a request asks for: `count` entries whose seeds count on, or sub-seeds if they have influence.

    beside: further {name: value} of what is asked, the model for example; None values are left out
    """
    alike = {name: value for name, value in request.given().items()
             if name not in COUNTED and SETTINGS[name].per_picture and not (value is False and SETTINGS[name].default is None)}
    alike |= {name: value for name, value in (beside or {}).items() if value is not None}
    seeds, subseeds = request.seeds()
    entries = []
    for seed, subseed in zip(seeds, subseeds or [request.subseed] * len(seeds)):
        counted = {"seed": (request.seed, seed), "subseed": (request.subseed, subseed)}
        entries.append(Entry(request.changed(count=1, seed=seed, subseed=subseed), frozenset(named), alike | {
            name: used for name, (wanted, used) in counted.items() if wanted is not None}))
    return entries
