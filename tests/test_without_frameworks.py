"""Without torch and the other references tests are collected, and what needs one is skipped by its name."""
import os
import pathlib
import subprocess
import sys

from tests.conftest import FRAMEWORKS

TESTS = pathlib.Path(__file__).parent
BLOCK = f"""
import sys
class Blocked:
    @staticmethod
    def find_spec(name, path=None, target=None):
        if name.partition(".")[0] in {FRAMEWORKS!r}:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)
sys.meta_path.insert(0, Blocked)
"""


def pytest_without_frameworks(folder, *arguments):
    """What pytest prints, and its exit code, in a process that can't import any of FRAMEWORKS"""
    (folder / "without_frameworks.py").write_text(BLOCK)
    path = os.pathsep.join([str(folder), *filter(None, sys.path)])
    command = [sys.executable, "-m", "pytest", "-q", "-rs", "-p", "without_frameworks", "-p", "no:cacheprovider", *arguments]
    done = subprocess.run(command, cwd=TESTS.parent, env=os.environ | {"PYTHONPATH": path}, capture_output=True, text=True,
                          check=False)
    return done.returncode, done.stdout + done.stderr


def test_every_file_of_tests_is_collected(tmp_path):
    code, printed = pytest_without_frameworks(tmp_path, "--collect-only", "tests")
    assert code == 0 and "error" not in printed.splitlines()[-1], printed[-2000:]
    files = {name.partition("::")[0] for name in printed.splitlines() if "::" in name}
    assert "tests/test_cli.py" in files and "tests/test_samplers.py" not in files
    assert "test_samplers.py: torch is not installed" in printed


def test_what_needs_a_framework_is_skipped_by_its_name_and_the_rest_is_run(tmp_path):
    code, printed = pytest_without_frameworks(tmp_path, "tests/test_budget.py", "tests/test_images.py", "-k", "array")
    assert code == 0 and " passed" in printed and " failed" not in printed, printed[-2000:]
    assert "test_budget.py: torch is not installed" in printed and "could not import 'diffusers" in printed
