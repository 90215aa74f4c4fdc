"""Settings of all tests, and the models and data that several of them share."""

import functools
import os
import sys
from collections import OrderedDict
from collections.abc import Iterator
from pathlib import Path

import mmengine.config.utils
import pytest
import torch
from commands import run
from hypothesis import settings
from mmengine.logging import MessageHub, MMLogger
from mmengine.registry import DefaultScope
from mmengine.visualization import Visualizer
from models import Trunk, build_detector, mask_rcnn_config
from torch import Tensor, nn

# The machine may be slow and busy; a failure has to be the same one the next time.
settings.register_profile("mtl", deadline=None, derandomize=True)
settings.load_profile("mtl")
# Many tests start a process that imports thousands of files: compiled in the first one only.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
sys.dont_write_bytecode = False  # else multiprocessing passes it on


@pytest.fixture(scope="session", autouse=True)
def unformatted_configs() -> Iterator[None]:
    """MMEngine indents each config for its log, which takes longer than most trainings here."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("yapf.yapflib.yapf_api.FormatCode", lambda code, **_: (code, True))
        yield


@pytest.fixture(scope="session", autouse=True)
def model_index_read_once() -> Iterator[None]:
    """MMEngine parses a package's hundred YAML files again for each ``package::config``."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("mmengine.config.utils.load", functools.cache(mmengine.config.utils.load))
        yield


@pytest.fixture(autouse=True)
def no_earlier_run(monkeypatch: pytest.MonkeyPatch) -> None:
    """A Runner's scope, log and visualizer outlive it, and the next one is given those of its name.

    The name is the second in which a Runner is built, and the folder of a test is deleted after it.
    """
    classes = [DefaultScope, MessageHub, MMLogger, Visualizer]
    for cls in classes:
        classes += cls.__subclasses__()
        monkeypatch.setattr(cls, "_instance_dict", OrderedDict())


@pytest.fixture(scope="session")
def coco(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six drawn images in COCO's layout; not to be changed."""
    out = tmp_path_factory.mktemp("data") / "coco"
    options = ["--train", "4", "--val", "2", "--size", "160", "120"]
    run("tools/make_demo_data.py", "--layout", "coco", "--out", str(out), *options, coco=out)
    return out


@pytest.fixture
def trunk() -> Trunk:
    torch.manual_seed(0)
    return Trunk().double()


@pytest.fixture
def x() -> Tensor:
    return torch.randn(5, 6, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


@pytest.fixture(scope="session")
def detector() -> nn.Module:
    torch.manual_seed(0)
    return build_detector(mask_rcnn_config()).double()
