"""npdiffusion serve: a page on this machine, and interfaces that other programs speak."""
import argparse
import contextlib
import functools
import importlib.util
import os
import pathlib
import secrets
import signal
import socket

from npdiffusion.command.parser import Parser, reader
from npdiffusion.command.talk import say
from npdiffusion.errors import UserError
from npdiffusion.settings.kinds import Path, Whole
from npdiffusion.settings.run import OPTIONS

HOST, PORT, OUTPUT = "127.0.0.1", 7860, "pictures/"
KEY = "NPDIFFUSION_API_KEY"
NEEDED = {"starlette": "starlette", "uvicorn": "uvicorn", "python_multipart": "python-multipart"}
LOADING = ("model", "unet", "refiner", "model_dir", "tokenizer", "dtype", "lora_dir", "embedding_dir", "vae", "threads",
           "max_memory", "backend", "ip_encoder")


def parse(arguments):
    """The checked options; SystemExit with code 2 and a line on stderr if they are wrong."""
    parser = Parser(prog="npdiffusion serve", usage="npdiffusion serve [options]", allow_abbrev=False,
                    description="A page on this machine, and the interfaces of AUTOMATIC1111's web interface (/sdapi/v1) and "
                                "of OpenAI (/v1/images) for other programs. Ctrl-C ends it; what waits is made when it is "
                                "started again.")
    parser.add_argument("--host", default=HOST, metavar="ADDRESS", help="address to listen at; beyond this machine a key is "
                        f"needed (default: {HOST})")
    parser.add_argument("--port", type=reader(Whole(0, 65535)), default=PORT, metavar="N",
                        help=f"0 takes a free one (default: {PORT})")
    parser.add_argument("--api-key", nargs="?", const="", metavar="KEY", help="password of the page and bearer token of the "
                        f"interfaces; without KEY, ${KEY} or a random one, which is printed once")
    parser.add_argument("--allow-host", action="append", default=[], metavar="NAME",
                        help="further name by which browsers may call this machine")
    parser.add(OPTIONS["output"], default=OUTPUT, help="folder for pictures, and for what waits; it is created if it ends in "
               f"a slash (default: {OUTPUT})", metavar="DIR")
    for name in LOADING:
        parser.add(OPTIONS[name])
    parser.add_argument("--control-dir", type=reader(Path()), metavar="DIR", help="folder with ControlNets, IP- and "
                        "T2I-Adapters, which requests use by their files' names")
    parser.set_defaults(control=None, ip_adapter=None, t2i_adapter=None)
    parser.add(OPTIONS["verbose"], help="a line for each request, all warnings, and where an error comes from")
    return parser.read(arguments, positional="word")


def run(options):
    """Serve until a signal ends it."""
    missing = [package for module, package in NEEDED.items() if importlib.util.find_spec(module) is None]
    if missing:
        raise UserError(f'the server needs {" and ".join(missing)}: pip install "npdiffusion[serve]"')
    from npdiffusion.command import generate
    from npdiffusion.command.prepare import set_up
    backend, threads = set_up(options)
    key = find_key(options)
    listening = listen(options.host, options.port)
    from npdiffusion.jobs.destinations import find_output
    from npdiffusion.server.app import make_server, serve
    from npdiffusion.server.catalogue import Catalogue
    from npdiffusion.server.engine import Engine
    from npdiffusion.server.gallery import Gallery
    from npdiffusion.server.store import Store
    folder, name = find_output(options.output)
    if name is not None:
        raise UserError(f"--output: a folder is needed (to have {options.output} created, end it in /)")
    for option in "lora_dir", "embedding_dir", "control_dir":
        path = getattr(options, option)
        if path is not None and not os.path.isdir(os.path.expanduser(path)):
            raise UserError(f"--{option.replace('_', '-')}: there is no folder {path}")
    catalogue = Catalogue(options.model, options.model_dir, options.lora_dir, options.embedding_dir,
                          options.control_dir)

    def load(model, **leading):
        """The pipeline of a model; --unet, --vae, --refiner and --tokenizer are for the one that -m names

        leading: places of what leads pictures, by their options
        """
        own = {} if model == catalogue.default else {"model": model} | dict.fromkeys(("unet", "vae", "refiner", "tokenizer"))
        return generate.load(argparse.Namespace(**vars(options) | own | leading), backend, threads, [])[0]

    gallery, store = Gallery(pathlib.Path(folder)), Store(pathlib.Path(folder))
    try:
        engine = Engine(load, catalogue, store, gallery, options.vae)
        server = make_server(engine, options.host, options.allow_host, key)
        engine.start(functools.partial(setattr, server, "should_exit", True))        # the page is there meanwhile
        say(f"{address(listening)} is where it listens, {folder}{os.sep} where pictures go; Ctrl-C ends it")
        if key is not None and not options.api_key and KEY not in os.environ:
            say(f"key: {key}")
        with contextlib.suppress(ValueError):            # not in the main thread: signals are somebody else's
            signal.signal(signal.SIGTERM, signal.default_int_handler)         # ends it as Ctrl-C does
        try:
            serve(server, listening)
        except KeyboardInterrupt:
            pass
        if engine.failure is not None:
            raise engine.failure
        left = len(engine.turns)
        say(f"stopped{f'; {left} requests wait for the next start' if left else ''}")
    finally:
        gallery.close()
        store.close()
    return 0


def find_key(options):
    """The key that everyone needs, or None; a random one where one is needed and none is given"""
    if options.api_key is None and is_loopback(options.host):
        return os.environ.get(KEY) or None
    return options.api_key or os.environ.get(KEY) or secrets.token_urlsafe(18)


def is_loopback(host):
    return host in {"localhost", "::1"} or host.startswith("127.")


def listen(host, port):
    """A socket that listens. UserError if that can't be."""
    try:
        family, kind, number, _, place = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        found = socket.socket(family, kind, number)
        if os.name == "posix":
            found.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        found.bind(place)
        found.listen(2048)
        return found
    except OSError as error:
        if error.errno is not None and "in use" in (error.strerror or "").lower():
            raise UserError(f"port {port} is in use, perhaps by a server that runs already; --port takes another") from None
        raise UserError(f"--host {host}, --port {port}: can't listen there ({error.strerror or error})") from None


def address(listening):
    """The URL of a socket that listens"""
    host, port = listening.getsockname()[:2]
    return f"http://{f'[{host}]' if ':' in host else host}:{port}"
