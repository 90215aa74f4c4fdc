"""Install a Detectron2 without compiled operators, for CPU runs and the tests; compile nothing.

Users install Detectron2 from its repository. This script takes the Python part of version 0.6 from
the package index, where pip checks the hash before any of the code runs, and installs it as
``detectron2``: with the model zoo, with current names in place of those that NumPy, Pillow and
setuptools have dropped since, and with a stand-in for the compiled extension. A Detectron2 that has
an extension, compiled or stood in for, is left as it is.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
from importlib.util import find_spec
from pathlib import Path

ARCHIVE = "pb1-detectron2==0.6"
SHA256 = "5d2e9e51e523ec72f6a31cca04b0a515492e9514b773a3d134cedc0677170b29"
TOOLS = ("pip==25.1.1", "setuptools==80.9.0")  # versions that download the archive
ROOT = Path(__file__).parents[1]
CONSTRAINTS = ROOT / "constraints.txt"
# An installed package has this file in mtl_plugins/.mim/tools, and no constraints.
PACKAGE = ROOT.parent if ROOT.name == ".mim" else ROOT / "mtl_plugins"
EXTENSION = PACKAGE / "ops" / "detectron2_ext.py"
# This build replaces the archive's own, which compiles sources that are not in the archive. The
# requirements are those that the Python part imports; opencv is not among them.
PROJECT = """
[build-system]
requires = ["setuptools>=77"]
build-backend = "setuptools.build_meta"
[project]
name = "detectron2"
version = "0.6"
dependencies = [
  "torch", "torchvision", "numpy", "Pillow", "matplotlib", "pycocotools", "termcolor", "yacs",
  "tabulate", "cloudpickle", "tqdm", "tensorboard", "fvcore", "iopath", "omegaconf", "hydra-core",
]
[tool.setuptools]
include-package-data = false
packages.find.include = ["detectron2*"]
package-data."detectron2.model_zoo" = ["configs/**/*.yaml"]
"""
# Names that NumPy 1.24, Pillow 10 and setuptools 82 have dropped.
CURRENT_NAMES = {
    r"\bnp\.(bool|int|float|str)\b": r"\1",
    r"\bImage\.LINEAR\b": "Image.BILINEAR",
    r"import pkg_resources\n": "",
    r'pkg_resources\.resource_filename\(\s*"detectron2\.model_zoo", (.*)\s*\)': (
        r"os.path.join(os.path.dirname(__file__), \1)"
    ),
}


def main() -> None:
    """Install Detectron2 into the environment of this interpreter."""
    if find_spec("detectron2") is not None and find_spec("detectron2._C") is not None:
        print("Detectron2 is there already")
        return
    with tempfile.TemporaryDirectory() as folder:
        here = Path(folder)
        wanted = here / "requirements.txt"
        wanted.write_text(f"{ARCHIVE} --hash=sha256:{SHA256}\n")
        # The archive imports torch to give its metadata, and so cannot be isolated; pip 26 refuses
        # that metadata because of a requirement that is not needed here.
        pip("install", "--target", here / "build", *TOOLS)
        options = ["--no-deps", "--no-binary", ":all:", "--no-build-isolation"]
        archive = ["--requirement", wanted, "--dest", here]
        pip("download", *options, *archive, PYTHONPATH=str(here / "build"))
        with tarfile.open(next(here.glob("*.tar.gz"))) as packed:
            packed.extractall(here, filter="data")
        source = here / ARCHIVE.replace("==", "-")
        prepare(source)
        constraints = ["--constraint", CONSTRAINTS] if CONSTRAINTS.is_file() else []
        pip("install", *constraints, "--no-compile", source)


def prepare(source: Path) -> None:
    """Change the unpacked archive so that it installs, and runs with current dependencies."""
    (source / "setup.py").unlink()
    (source / "setup.cfg").unlink()
    (source / "pyproject.toml").write_text(PROJECT)
    shutil.copy(EXTENSION, source / "detectron2" / "_C.py")
    for file in (source / "detectron2").rglob("*.py"):
        code = old = file.read_text()
        for gone, current in CURRENT_NAMES.items():
            code = re.sub(gone, current, code)
        if code != old:
            file.write_text(code)


def pip(command: str, *arguments: str | Path, **env: str) -> None:
    """Run pip, quietly."""
    quiet = ["--quiet", "--disable-pip-version-check"]
    pip = [sys.executable, "-m", "pip", command, *quiet, *arguments]
    subprocess.run(pip, check=True, env=os.environ | env)


if __name__ == "__main__":
    main()
