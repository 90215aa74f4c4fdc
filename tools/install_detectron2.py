"""Installs a Detectron2 without compiled operators, for CPU runs and the tests; compiles nothing.

Users install Detectron2 from its repository. This takes the Python part of version 0.6 from the
package index, where pip checks its hash before anything of it is used, and installs it as
``detectron2``. With a Detectron2 in place it does nothing.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tarfile
import tempfile
from importlib.util import find_spec
from pathlib import Path

ARCHIVE = "pb1-detectron2==0.6"
SHA256 = "5d2e9e51e523ec72f6a31cca04b0a515492e9514b773a3d134cedc0677170b29"
TOOLS = ("pip==25.1.1", "setuptools==80.9.0")  # with which it is taken
CONSTRAINTS = Path(__file__).parents[1] / "constraints.txt"
# In place of the archive's own build, which compiles sources that it does not have. The
# requirements are those that are used; opencv is no wish of Detectron2's.
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
"""


def main() -> None:
    """Installs it into the environment of this interpreter."""
    if find_spec("detectron2") is not None:
        print("Detectron2 is there already")
        return
    with tempfile.TemporaryDirectory() as folder:
        here = Path(folder)
        wanted = here / "requirements.txt"
        wanted.write_text(f"{ARCHIVE} --hash=sha256:{SHA256}\n")
        # To tell its metadata, the archive imports torch, and so cannot be isolated; and pip 26
        # refuses what it tells, for a requirement that nobody asks for.
        pip("install", "--target", here / "build", *TOOLS)
        options = ["--no-deps", "--no-binary", ":all:", "--no-build-isolation"]
        archive = ["--requirement", wanted, "--dest", here]
        pip("download", *options, *archive, PYTHONPATH=str(here / "build"))
        with tarfile.open(next(here.glob("*.tar.gz"))) as packed:
            packed.extractall(here, filter="data")
        source = here / ARCHIVE.replace("==", "-")
        (source / "setup.py").unlink()
        (source / "setup.cfg").unlink()
        (source / "pyproject.toml").write_text(PROJECT)
        pip("install", "--constraint", CONSTRAINTS, "--no-compile", source)


def pip(command: str, *arguments: str | Path, **env: str) -> None:
    """Runs pip, quietly."""
    quiet = ["--quiet", "--disable-pip-version-check"]
    pip = [sys.executable, "-m", "pip", command, *quiet, *arguments]
    subprocess.run(pip, check=True, env=os.environ | env)


if __name__ == "__main__":
    main()
