"""How much a server takes, from one request and in all."""
from npdiffusion.errors import UserError
from npdiffusion.settings import STEPS

LARGEST_BODY = 64 << 20               # bytes of a request
LARGEST_PICTURE = 16_000_000          # pixels of a picture in a request
LARGEST_SIDE = 2048                   # pixels of a picture that is made
MOST_STEPS = 1000                     # of all pictures of a request together
MOST_LEADING = 4                      # ControlNets, and pictures that lead them
MOST_WAITING, MOST_OF_ONE = 1000, 100        # jobs in the queue, and those of one client
MOST_CONNECTIONS = 2000
LARGE_BODY, LARGE_AT_ONCE = 1 << 20, 4       # bodies beyond so many bytes are taken in so many at a time
BODY_SECONDS = 60                     # in which a body has to arrive
LONGEST_NAME = 200                    # characters of a name in a request


class TooMuch(UserError):
    """A request that this server doesn't take, though the command would."""


class Busy(UserError):
    """There are as many requests as the queue takes; later there may be room."""


def check(request, trained=512):
    """TooMuch unless a `settings.Request` stays within what one request may ask for; trained: the model's side in pixels"""
    scale = request.hires or 1
    sides = [("width", request.width or trained), ("height", request.height or trained)]
    for name, side in sides:
        if side * scale > LARGEST_SIDE:
            raise TooMuch(f"{name} is {side}{f' times {scale:g}' if scale > 1 else ''}: this server makes pictures of up to "
                          f"{LARGEST_SIDE} pixels a side")
    steps = request.steps or STEPS
    steps += (request.hires_steps or steps) if request.hires else 0
    if steps * request.count > MOST_STEPS:
        raise TooMuch(f"{request.count} × {steps} steps are asked for: at most {MOST_STEPS} are taken in one request")
