"""The three ways to have the library: a bare checkout, a wheel used outside the checkout, an editable installation."""
import os
import pathlib
import subprocess
import sys
import venv
import zipfile

import pytest

ROOT = pathlib.Path(__file__).resolve().parent.parent
PROBE = ("import npdiffusion.kernels, npdiffusion.weights, pathlib; "
         "print(npdiffusion.__file__, npdiffusion.kernels.__file__, npdiffusion.weights.__file__); "
         "print((pathlib.Path(npdiffusion.weights.__file__).parent / 'unet' / 'config.json').is_file()); "
         "print(npdiffusion.kernels.silu.__module__)")


def probe(folder, python=sys.executable, **environment):
    """What PROBE prints in an interpreter started in `folder`: the three files, is the model there, a kernel's module."""
    clean = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    result = subprocess.run([python, "-c", PROBE], cwd=folder, env=clean | environment, capture_output=True, text=True,
                            check=True)
    files, *rest = result.stdout.splitlines()
    return [pathlib.Path(file) for file in files.split()], rest


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    folder = tmp_path_factory.mktemp("wheel")
    subprocess.run([sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "--no-build-isolation", "-w", folder, ROOT],
                   check=True, cwd=folder)
    return next(folder.glob("*.whl"))


def test_bare_checkout_needs_no_installation(tmp_path):
    files, rest = probe(tmp_path, PYTHONPATH=str(ROOT))
    assert files == [ROOT / "npdiffusion/__init__.py", ROOT / "kernels/__init__.py", ROOT / "weights/__init__.py"]
    assert rest == ["True", "npdiffusion.kernels.activations"]


def test_wheel_holds_the_embedded_model_and_nothing_but_its_package(wheel):
    names = zipfile.ZipFile(wheel).namelist()
    assert {name.split("/")[0] for name in names if ".dist-info" not in name} == {"npdiffusion"}
    for name in ("py.typed", "kernels/reference.py", "weights/model_index.json", "weights/words.json",
                 "weights/tokenizer/merges.txt",
                 "study/report/page.html", "study/report/script.js", "study/report/style.css",
                 "text/clip_merges.txt.gz", "text/clip_merges.LICENSE",
                 "weights/unet/diffusion_pytorch_model.safetensors", "weights/vae/diffusion_pytorch_model.safetensors",
                 "weights/text_encoder/model.safetensors", "weights/scheduler/scheduler_config.json",
                 "weights/controlnet/diffusion_pytorch_model.safetensors", "weights/controlnet/config.json",
                 "weights/lora/lcm.safetensors"):
        assert f"npdiffusion/{name}" in names


def test_wheel_works_outside_the_checkout(wheel, tmp_path):
    unpacked = tmp_path / "site"
    zipfile.ZipFile(wheel).extractall(unpacked)
    files, rest = probe(tmp_path, PYTHONPATH=str(unpacked))
    assert files == [unpacked / f"npdiffusion/{name}__init__.py" for name in ("", "kernels/", "weights/")]
    assert rest == ["True", "npdiffusion.kernels.activations"]


def test_editable_installation_reads_the_checkout(tmp_path):
    home = tmp_path / "environment"
    venv.create(home, with_pip=False, system_site_packages=False)
    python = home / ("Scripts" if os.name == "nt" else "bin") / "python"
    site = next(home.glob("lib/python*/site-packages"))
    subprocess.run([sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--no-build-isolation", "--target", site,
                    "-e", ROOT], check=True, cwd=tmp_path)
    dependencies = pathlib.Path(pytest.__file__).resolve().parent.parent       # this environment's packages
    (site / "dependencies.pth").write_text(str(dependencies))
    files, rest = probe(tmp_path, python=str(python))
    assert files == [ROOT / "npdiffusion/__init__.py", ROOT / "kernels/__init__.py", ROOT / "weights/__init__.py"]
    assert rest == ["True", "npdiffusion.kernels.activations"]
