"""Settings of all tests, and the data set that the tests of the command line share."""

from pathlib import Path

import pytest
from commands import run
from hypothesis import settings

# The machine may be slow and busy; a failure has to be the same one the next time.
settings.register_profile("mtl", deadline=None, derandomize=True)
settings.load_profile("mtl")


@pytest.fixture(scope="session")
def coco(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six drawn images in COCO's layout; not to be changed."""
    out = tmp_path_factory.mktemp("data") / "coco"
    options = ["--train", "4", "--val", "2", "--size", "160", "120"]
    run("tools/make_demo_data.py", "--layout", "coco", "--out", str(out), *options, coco=out)
    return out
