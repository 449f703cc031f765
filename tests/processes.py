"""Python in a process of its own: other environment variables, and modules that nobody has imported yet."""
import json
import os
import socket
import subprocess
import sys
import time


def run_python(*arguments, **environment):
    """A finished process of a fresh interpreter that finds the same modules, with these variables beside ours."""
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)} | environment
    return subprocess.run([sys.executable, *arguments], env=environment, capture_output=True, text=True, timeout=300,
                          check=False)


def output_of(code, **environment):
    """What a program prints that ends well."""
    done = run_python("-c", code, **environment)
    assert done.returncode == 0, done.stderr
    return done.stdout


def modules_after(*arguments):
    """Names of the modules that a command has imported when it is done, and its output."""
    program = ("import json, sys; from npdiffusion.command.cli import main; main(sys.argv[1:]);"
               "print(json.dumps(sorted(sys.modules)))")
    *lines, modules = run_python("-c", program, *arguments).stdout.splitlines()
    return set(json.loads(modules)), "\n".join(lines)


def until(true, seconds=60):
    """What a function gives as soon as it is true"""
    end = time.monotonic() + seconds
    while not (found := true()):
        assert time.monotonic() < end, "it took too long"
        time.sleep(0.02)
    return found


def free_port():
    """A port of 127.0.0.1 at which nothing listens"""
    with socket.create_server(("127.0.0.1", 0)) as found:
        return found.getsockname()[1]
