"""Compiled kernels on disk cost time when something is wrong with them, never the result; numba's settings get a line."""
import errno
import os
import pathlib
import subprocess
import sys

import numpy as np
import pytest

numba = pytest.importorskip("numba")

from npdiffusion.kernels import BackendError, environment, reference  # noqa: E402
from npdiffusion.kernels.codegen import cache, compiling  # noqa: E402

X = np.linspace(-3, 3, 50, dtype=np.float32)
RUN = ("import numpy as np; from npdiffusion.kernels import fast; "
       "print(fast.silu(np.linspace(-3, 3, 50, dtype=np.float32)).tobytes().hex())")


def process(code, **environment):
    """Run Python code in a process of its own → what subprocess.run gives"""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), **environment}
    return subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=300,
                          check=False)


# ---- damage

@pytest.fixture(scope="module")
def compiled(tmp_path_factory):
    """A cache folder in which `silu` was compiled, and what it gave."""
    folder = tmp_path_factory.mktemp("kernels")
    done = process(RUN, NUMBA_CACHE_DIR=str(folder))
    assert done.returncode == 0, done.stderr
    return folder, done.stdout


def flip(file):
    """One bit, in the middle."""
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 4
    file.write_bytes(data)


def as_a_folder(file):
    file.unlink()
    file.mkdir()


DAMAGE = {
    "cut short": lambda file: os.truncate(file, 20), "halved": lambda file: os.truncate(file, file.stat().st_size // 2),
    "empty": lambda file: os.truncate(file, 0), "a flipped bit": flip, "gone": pathlib.Path.unlink,
    "zeros": lambda file: file.write_bytes(bytes(file.stat().st_size)),
    "longer": lambda file: file.write_bytes(file.read_bytes() + b"x"),
    "foreign": lambda file: file.write_text("not ours"), "a folder": as_a_folder}


@pytest.mark.parametrize("suffix", [".nbi", ".nbc", ".seal"])
@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_file_is_noticed_before_it_is_loaded(suffix, damage, tmp_path):
    for name in ("a.f-1" + suffix_of(".nbi"), "a.f-1" + suffix_of(".1.nbc")):
        (tmp_path / name).write_bytes(bytes(range(200)))
    entry = cache.Entry(tmp_path, "a.f")
    entry.write_seal()
    assert entry.is_intact()
    DAMAGE[damage](next(tmp_path.glob("*" + suffix)))
    assert not entry.is_intact()


def suffix_of(end):
    return f".py{sys.version_info[0]}{sys.version_info[1]}{end}"


@pytest.mark.parametrize("suffix, damage", [
    (".nbi", "cut short"), (".nbc", "empty"), (".nbc", "a flipped bit"), (".seal", "gone"), (".nbc", "a folder")])
def test_a_damaged_kernel_is_compiled_again(suffix, damage, compiled):
    folder, expected = compiled
    for file in folder.rglob("*" + suffix):
        DAMAGE[damage](file)
    done = process(RUN, NUMBA_CACHE_DIR=str(folder))
    assert (done.returncode, done.stdout) == (0, expected), done.stderr


def test_a_kernel_that_was_compiled_again_is_found_by_the_next_run(compiled):
    folder, _ = compiled
    for file in folder.rglob("*.nbc"):
        flip(file) if file.is_file() else file.rmdir()
    for log in ("data saved", "data loaded"):
        done = process(RUN, NUMBA_CACHE_DIR=str(folder), NUMBA_DEBUG_CACHE="1")
        assert done.returncode == 0 and log in done.stdout, done.stdout + done.stderr


def test_kernels_of_other_names_are_not_touched(tmp_path):
    other = tmp_path / ("a.other-1" + suffix_of(".nbi"))
    other.touch()
    cache.Entry(tmp_path, "a.o").discard()
    assert other.exists()


def test_a_full_disk_costs_time_and_warns_once(tmp_path, monkeypatch, recwarn, capsys):
    def full(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    import numba.core.caching
    monkeypatch.setattr(numba.core.caching.IndexDataCacheFile, "save", full)
    monkeypatch.setattr(cache, "folder", lambda: tmp_path)
    monkeypatch.setattr(compiling, "_noted", False)
    from npdiffusion.kernels import activations
    for _ in range(2):
        fresh = compiling.kernel(*activations.activate.signature.args[1].types[1:])(activations.activate.function)
        compiling._kernels.remove(fresh)
        fresh.compile()
        y = np.empty_like(X)
        fresh.compiled(1, (np.zeros(1, np.int64), X.size, activations.SILU, X, y))
        np.testing.assert_allclose(y, reference.silu(X), rtol=1e-6)
    said, = (str(each.message) for each in recwarn if "npdiffusion" in each.filename or "kernels" in each.filename)
    assert "No space left" in said and "NUMBA_CACHE_DIR" in said and capsys.readouterr().err == ""


NOWHERE = "from npdiffusion.kernels.codegen import cache; cache._writable = lambda place: False; "


def test_where_no_folder_is_writable_a_private_one_is_taken_with_one_warning(tmp_path):
    private = tmp_path / private_name()
    said = f"no cache folder is writable, compiled kernels go to {private} (choose one: NUMBA_CACHE_DIR)\n"
    done = process(NOWHERE + RUN, TMPDIR=str(tmp_path), NUMBA_CACHE_DIR="")
    assert done.returncode == 0 and done.stderr.count(f"UserWarning: {said}") == 1
    assert private.stat().st_mode & 0o777 == 0o700 and [*private.rglob("*.nbc")]
    code = NOWHERE + "from npdiffusion.command import cli; cli.main(['--info'])"
    done = process(code, TMPDIR=str(tmp_path), NUMBA_CACHE_DIR="")
    assert done.stderr == f"npdiffusion: warning: {said}"


def private_name():
    return f"npdiffusion-kernels-{os.getuid() if hasattr(os, 'getuid') else 0}"


def test_a_private_folder_that_is_another_users_or_a_link_is_not_trusted(tmp_path, monkeypatch):
    monkeypatch.setattr(cache.tempfile, "tempdir", str(tmp_path))
    private = tmp_path / private_name()
    for made in (lambda: private.mkdir(0o777) or private.chmod(0o777), lambda: private.rmdir() or private.symlink_to("/")):
        made()
        with pytest.warns(UserWarning, match="no cache folder is writable"):
            assert cache._private_temporary_folder() != private


def test_settings_that_change_machine_code_have_a_folder_of_their_own(tmp_path):
    code = "from npdiffusion.kernels.codegen import cache; print(cache.folder())"
    folders = {process(code, NUMBA_CACHE_DIR=str(tmp_path), NUMBA_OPT=level).stdout for level in ("1", "3")}
    assert len(folders) == 2


# ---- numba's own variables

@pytest.mark.parametrize("variable, value, words", [
    ("NUMBA_DISABLE_JIT", "1", "numpy backend"), ("NUMBA_NUM_THREADS", "0", "at least 1"),
    ("NUMBA_NUM_THREADS", "-3", "at least 1"), ("NUMBA_THREADING_LAYER", "xyz", "unknown to Numba"),
    ("NUMBA_CPU_NAME", "bogus", "no processor that LLVM knows"), ("NUMBA_CPU_FEATURES", "avx2", "begins with + or -")])
def test_a_setting_of_numba_that_cannot_work_is_one_line_that_names_it(variable, value, words, tmp_path):
    done = process("from npdiffusion.command import cli; raise SystemExit(cli.main(['a cat', '--steps', '1', '-s', '1']))",
                   NUMBA_CACHE_DIR=str(tmp_path), **{variable: value})
    line = done.stderr.splitlines()[-1]
    assert done.returncode == 1 and line.startswith("npdiffusion: error: ")
    assert variable in line and words in line and "a mistake" not in line


def test_instructions_that_the_processor_lacks_are_named_before_they_are_run(monkeypatch):
    with pytest.raises(BackendError, match="ask for instructions that this processor lacks"):
        monkeypatch.setattr(environment.subprocess, "run", lambda *_, **__: subprocess.CompletedProcess([], -4, "", ""))
        environment._check_target("foreign", "")


def test_the_processor_itself_passes():
    environment._check_target(*environment.target())


# ---- fork

FORKED = """
import multiprocessing, sys
import numpy as np
from npdiffusion.kernels import fast
x = np.linspace(-3, 3, 50, dtype=np.float32)
expected = fast.silu(x)
def work(_):
    return np.array_equal(fast.silu(x), expected)
with multiprocessing.get_context("fork").Pool(2) as pool:
    try:
        print("right", all(pool.map_async(work, range(4)).get(timeout=60)))
    except multiprocessing.TimeoutError:
        print("never answered")
    except Exception as error:
        print("refused:", type(error).__name__, error)
    pool.terminate()
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system does not fork")
@pytest.mark.parametrize("layer", ["omp", "workqueue"])
def test_a_forked_process_computes_or_says_what_to_do(layer):
    done = process(FORKED, NUMBA_THREADING_LAYER=layer)
    if "NUMBA_THREADING_LAYER" in done.stderr:
        pytest.skip(f"numba has no layer {layer} here")
    *_, line = done.stdout.splitlines() or [done.stderr]
    assert line == "right True" or (line.startswith("refused: BackendError") and "get_context('spawn')" in line)
    if layer == "workqueue":
        assert line == "right True"


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system does not fork")
def test_a_process_that_was_forked_before_kernels_ran_runs_them():
    code = ("import multiprocessing\n"
            "from npdiffusion.kernels import fast\n"
            "import numpy as np\n"
            "def work(n): return float(fast.silu(np.ones(n, np.float32))[0])\n"
            "with multiprocessing.get_context('fork').Pool(2) as pool:\n"
            "    print(pool.map_async(work, [3, 4]).get(timeout=120))\n")
    done = process(code)
    assert done.returncode == 0 and done.stdout.startswith("[0.73105"), done.stderr


# ---- several at once

TOGETHER = """
import sys, time
import numpy as np
from npdiffusion.kernels import fast, machine
from npdiffusion.kernels.codegen import compiling, processes

machine.physical_cores = lambda: 2
activate = next(each for each in compiling.declared() if each.name == "activations.activate")
begun = []
"""


def test_a_second_process_compiles_what_this_one_then_finds_on_disk(tmp_path):
    done = process(TOGETHER + """
class Waits:                                             # keeps this process busy until the other one has done its part
    def compile(self):
        while not activate.is_cached():
            time.sleep(0.05)
processes.compile_together([activate, Waits()], lambda: begun.append(1))
print(len(begun), activate.compiled is None)
""" + RUN.partition("; ")[2].partition("; ")[2], NUMBA_CACHE_DIR=str(tmp_path), NUMBA_DEBUG_CACHE="1")
    assert done.returncode == 0, done.stderr
    assert "2 True" in done.stdout and "data loaded" in done.stdout and "data saved" not in done.stdout
    x = np.linspace(-3, 3, 50, dtype=np.float32)
    found = np.frombuffer(bytes.fromhex(done.stdout.split()[-1]), np.float32)
    np.testing.assert_allclose(found, reference.silu(x), rtol=1e-6)


def test_other_processes_compile_while_this_one_does_something_else(tmp_path):
    done = process(TOGETHER + """
def meanwhile():
    while not activate.is_cached():
        time.sleep(0.05)
    print("compiled here:", activate.compiled is not None)
processes.compile_together([activate, activate], lambda: None, meanwhile)
""", NUMBA_CACHE_DIR=str(tmp_path))
    assert done.stdout == "compiled here: False\n", done.stderr


@pytest.mark.parametrize("executable", ["/bin/false", "missing"])
def test_processes_that_cannot_help_cost_time_only(executable, tmp_path):
    if executable != "missing":
        (tmp_path / "python-broken").symlink_to(executable)
    done = process(TOGETHER + f"""
sys.executable = {str(tmp_path / 'python-broken')!r}
compiling._kernels[:] = [activate]
processes.compile_together([activate, activate], lambda: begun.append(1))
fast.warm_up()
print(activate.compiled is not None)
""", NUMBA_CACHE_DIR=str(tmp_path / "cache"))
    assert (done.returncode, done.stdout.split()[-1:]) == (0, ["True"]), done.stderr


def test_a_helper_is_stopped_with_what_it_helps(tmp_path):
    done = process(TOGETHER + """
class Stopped:
    def compile(self):
        raise KeyboardInterrupt
started = []
popen = processes.subprocess.Popen
processes.subprocess.Popen = lambda *a, **k: started.append(popen(*a, **k)) or started[0]
try:
    processes.compile_together([activate, Stopped()], lambda: None)
except KeyboardInterrupt:
    print(started[0].poll() is not None)
""", NUMBA_CACHE_DIR=str(tmp_path))
    assert done.stdout.split() == ["True"], done.stderr
