"""Running a page of the documentation as a reader would: its blocks in their order, in one terminal and one Python session.

    ```sh         lines for a shell          ```console    lines after "$ ", and what they print
    ```python     Python                     ```text       neither; nothing else may stand behind ```

bash runs the shell's lines; `npdiffusion` and `python` are small programs that hand their arguments to this process, so that
nothing is imported or compiled twice. `npdiffusion serve … &` is a process of its own, on a free port that stands for 7860.
`git`, `python3 -m venv`, `pip` and `python -m pytest` are not run (.ci/run runs them): their stand-ins check that the line
has a form that installs this project, and do what later lines rely on.
"""
import configparser
import contextlib
import io
import json
import os
import pathlib
import re
import runpy
import socket
import subprocess
import sys
import traceback
from typing import NamedTuple
from unittest import mock

from npdiffusion import kernels
from npdiffusion.command import cli

ROOT = pathlib.Path(__file__).resolve().parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
SERVER = re.compile(r"^(npdiffusion serve.*?) &$", re.MULTILINE)
PORT = "127.0.0.1:7860"
LANGUAGES = ("sh", "console", "python", "text", "bash", "yaml")             # the last two are for other machines
STRICT = "set -o pipefail\ntrap 'code=$?; [ $code = 0 ] || exit $code' DEBUG\n"        # `set -e` overlooks A in A && B
CLIENT = f"""#!{sys.executable} -ISs
import json, os, socket, sys
name, arguments = os.path.basename(sys.argv[0]), sys.argv[1:]
with socket.socket(socket.AF_UNIX) as server:
    server.connect(os.environ["PAGE_SERVER"])
    with server.makefile("rw", encoding="utf-8") as file:
        text = sys.stdin.read() if name == "python" and arguments[:1] == ["-"] else ""
        print(json.dumps([name, arguments, os.getcwd(), dict(os.environ), text]), file=file, flush=True)
        code, out, err = json.loads(file.readline())
sys.stdout.write(out), sys.stderr.write(err)
sys.exit(code)
"""


class Block(NamedTuple):
    """What stands between two fences; `line` is the number of its first one."""
    language: str
    text: str
    line: int


def blocks(page):
    """The blocks of a page, in their order"""
    text = page.read_text(encoding="utf-8")
    return [Block(match[1], match[2], text.count("\n", 0, match.start()) + 2) for match in FENCE.finditer(text)]


def commands(block):
    """The shell's lines of a block: all, or in a console those behind "$ " """
    if block.language == "sh":
        return block.text
    return "".join(line[2:] for line in block.text.splitlines(keepends=True) if line.startswith("$ "))


def extras():
    """The names that may stand in brackets behind the project's"""
    settings = configparser.ConfigParser()
    settings.read(ROOT / "setup.cfg", encoding="utf-8")
    return {*settings["options.extras_require"]}


@contextlib.contextmanager
def inside(folder):
    """Within, it is the current folder."""
    before = os.getcwd()
    os.chdir(folder)
    try:
        yield
    finally:
        os.chdir(before)


class Session:
    """A folder, a shell that remembers variables and its place from block to block, and the names that Python blocks leave.

    prepare: called with a folder that stands for a checkout, to put there what commands read
    """
    def __init__(self, folder, prepare):
        self.place, self.prepare, self.names, self.printed = folder, prepare, {"__name__": "__main__"}, ""
        self.tools = folder / ".page"
        self.tools.mkdir()
        self.programs = {"npdiffusion": self.npdiffusion, "python": self.interpreter, "git": self.git, "python3": self.venv,
                         "pip": self.pip}
        for name in self.programs:
            (self.tools / name).write_text(CLIENT, encoding="utf-8")
            (self.tools / name).chmod(0o755)
        (self.tools / "variables").touch()
        self.server, self.address = None, PORT
        prepare(folder)

    def close(self):
        """End the server, if there is one."""
        if self.server:
            self.server.kill()
            self.server.communicate()

    def run(self, block):
        """Do what a block says; whatever is wrong with it is raised."""
        block = block._replace(text=SERVER.sub(r"\1", block.text).replace(PORT, self.address))
        if block.language == "python":
            self.python(block)
        elif block.language in ("sh", "console"):
            self.shell(block)

    def python(self, block):
        code = compile("\n" * (block.line - 1) + block.text, "page", "exec")
        with contextlib.redirect_stdout(io.StringIO()) as out, inside(self.place):
            exec(code, self.names)
        self.printed = out.getvalue()

    def shell(self, block):
        """Run its lines up to the first one that fails, which is an AssertionError."""
        variables, place, address = (self.tools / name for name in ("variables", "place", "socket"))
        script = f"{STRICT}. '{variables}'\n{commands(block)}\nexport -p > '{variables}'; pwd > '{place}'\n"
        environment = os.environ | {"PAGE_SERVER": str(address), "PATH": f"{self.tools}:{os.environ['PATH']}"}
        with socket.socket(socket.AF_UNIX) as server, (self.tools / "output").open("w+", encoding="utf-8") as output:
            server.bind(str(address))
            server.listen()
            server.settimeout(0.02)
            with subprocess.Popen(["bash", "-c", script], stdout=output, stderr=subprocess.STDOUT, env=environment,
                                  stdin=subprocess.DEVNULL, cwd=self.place) as shell:
                while shell.poll() is None:
                    with contextlib.suppress(TimeoutError):
                        self.serve(server.accept()[0])
            address.unlink()
            output.seek(0)
            self.printed = output.read()
        assert shell.returncode == 0, f"line {block.line}, exit code {shell.returncode}:\n{block.text}\n{self.printed}"
        self.place = pathlib.Path(place.read_text().strip())

    def serve(self, connection):
        """Do what one of the small programs was called for."""
        with connection, connection.makefile("rw", encoding="utf-8") as file:
            name, arguments, folder, environment, text = json.loads(file.readline())
            out, err, backend = io.StringIO(), io.StringIO(), kernels.backend()
            with (mock.patch.dict(os.environ, environment), inside(folder), contextlib.redirect_stdout(out),
                  contextlib.redirect_stderr(err)):
                try:
                    code = self.programs[name](arguments, text) or 0
                except Exception:                         # noqa: BLE001 (reported as a program would)
                    code = 1
                    traceback.print_exc()
            kernels.use_backend(backend)                     # a choice that ended with the program
            print(json.dumps([code, out.getvalue(), err.getvalue()]), file=file, flush=True)

    def npdiffusion(self, arguments, text):
        return self.start_server(arguments) if arguments[:1] == ["serve"] else cli.main(arguments)

    def start_server(self, arguments):
        """A server in a process of its own; returns when it answers"""
        with socket.create_server(("127.0.0.1", 0)) as free:
            port = free.getsockname()[1]
        environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(ROOT), *sys.path])}
        self.server = subprocess.Popen([sys.executable, "-m", "npdiffusion", *arguments, "--port", str(port)], text=True,
                                       stderr=subprocess.PIPE, env=environment)
        self.address = f"127.0.0.1:{port}"
        assert any("listens" in line for line in self.server.stderr), "the server didn't start"

    def interpreter(self, arguments, text):
        """python -m MODULE, python FILE, python -; but python -m pytest isn't run"""
        if arguments in (["-m", "pytest"], ["-m", "pytest", "-n", "2"]):
            return
        if arguments[0] == "-":
            exec(compile(text, "-", "exec"), {"__name__": "__main__"})
        elif arguments[:2] == ["-m", "npdiffusion"]:
            return cli.main(arguments[2:])
        else:
            module = arguments[0] == "-m"
            with mock.patch.object(sys, "argv", arguments[module:]):
                (runpy.run_module if module else runpy.run_path)(arguments[module], run_name="__main__")

    def git(self, arguments, text):
        """git clone URL FOLDER"""
        assert arguments[0] == "clone" and len(arguments) == 3
        pathlib.Path(arguments[2]).mkdir()
        self.prepare(pathlib.Path(arguments[2]))

    def venv(self, arguments, text):
        """python3 -m venv FOLDER"""
        assert arguments[:2] == ["-m", "venv"] and len(arguments) == 3
        (pathlib.Path(arguments[2]) / "bin").mkdir(parents=True)
        (pathlib.Path(arguments[2]) / "bin" / "activate").touch()

    def pip(self, arguments, text):
        """pip install -e . or -e ".[EXTRA]" """
        what = re.fullmatch(r"install -e \.(?:\[(\w+)\])?", " ".join(arguments))
        assert what and what[1] in {None, *extras()}, arguments
