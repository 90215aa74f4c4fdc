"""The examples of README, guides and docstrings run, and the site builds without a warning."""

from __future__ import annotations

import doctest
import importlib
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from commands import ROOT
from mmengine.config import Config
from torch import nn

import mtl_plugins.mm  # noqa: F401
from mtl_plugins.aggregation import AGGREGATORS
from mtl_plugins.methods import methods
from mtl_plugins.regularization import REGULARIZERS
from mtl_plugins.weighting import WEIGHTINGS

PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
EXAMPLES = [
    pytest.param(code, id=f"{page.relative_to(ROOT)}:{text[: found.start()].count(chr(10)) + 1}")
    for page in PAGES
    for text in [page.read_text()]
    for found in re.finditer(r"^```python\n(.*?)^```", text, re.DOTALL | re.MULTILINE)
    for code in [found[1]]
]
MODULES = sorted(
    ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
    for path in (ROOT / "mtl_plugins").rglob("*.py")
    if ".mim" not in path.parts and ">>>" in path.read_text()
)


@pytest.mark.parametrize("code", EXAMPLES)
def test_examples_of_the_pages(code, tmp_path):
    if re.search(r"^(import|from) ", code, re.MULTILINE):  # a script
        model = nn.Linear(2, 2)
        loss_a, loss_b = model(torch.ones(1, 2)).square().unbind(1)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        before = model.weight.clone()
        names = dict(model=model, loss_a=loss_a.sum(), loss_b=loss_b.sum(), optimizer=optimizer)
        exec(compile(code, "example", "exec"), names)
        assert "model.parameters" not in code or not torch.equal(before, names["model"].weight)
    else:  # a part of a config
        path = tmp_path / "config.py"
        path.write_text(code)
        assert len(Config.fromfile(path)) > 0


def test_config_of_the_readme_is_that_of_the_method():
    """Laid over MMDetection's, of which nothing else changes."""
    text = (ROOT / "README.md").read_text()
    code = re.search(r"example: config -->\n```python\n(.*?)```", text, re.DOTALL)[1]
    assert len(re.findall(r"^[^#\n]", code, re.MULTILINE)) <= 7
    cfg = Config.fromstring(code, ".py")
    plain = Config.fromstring("_base_ = 'mmdet::mask_rcnn/mask-rcnn_r50_fpn_1x_coco.py'", ".py")
    assert cfg.optim_wrapper.type == "MTLOptimWrapper"
    assert cfg.optim_wrapper.aggregator == {"type": "PCGrad"}
    assert cfg.optim_wrapper.optimizer == plain.optim_wrapper.optimizer
    for key in ("model", "train_dataloader", "param_scheduler", "default_hooks"):
        assert cfg[key] == plain[key]


def names_of_detectron2() -> dict[str, object]:
    """What stands for a model and data in the examples of the adapter."""
    from detectron2.config import get_cfg

    from mtl_plugins.d2 import add_mtl_config

    class Losses(nn.Linear):
        def forward(self, batch: torch.Tensor) -> dict[str, torch.Tensor]:
            loss_a, loss_b = super().forward(batch).square()
            return {"loss_a": loss_a, "loss_b": loss_b}

    model = Losses(2, 2)
    cfg = get_cfg()
    add_mtl_config(cfg)
    cfg.MTL.ALLOCATION.NAME = "ISTA"
    cfg.MTL.TASKS.a, cfg.MTL.TASKS.b = ["loss_a"], ["loss_b"]
    return {
        "get_cfg": get_cfg,
        "cfg": cfg,
        "TrainLoader": lambda cfg: [],
        "model": model,
        "data_loader": [torch.ones(2)],
        "optimizer": torch.optim.SGD(model.parameters(), lr=0.1),
        "max_iter": 1,
    }


@pytest.mark.parametrize("name", MODULES)
def test_examples_of_docstrings(name):
    module = importlib.import_module(name)
    model = nn.Linear(2, 2)
    loss_detection, loss_mask = model(torch.ones(2)).square()
    model.parse_losses = sum  # a method of MMEngine's models
    names = {
        "torch": torch,
        "model": model,
        "optimizer": torch.optim.SGD(model.parameters(), lr=0.1),
        "loss_detection": loss_detection,
        "loss_mask": loss_mask,
        "listen": max,
    }
    if name.startswith("mtl_plugins.d2"):
        names |= names_of_detectron2()
    result = doctest.testmod(module, extraglobs=names)
    assert result.attempted > 0
    assert result.failed == 0


def test_site_builds_and_shows_every_method(tmp_path):
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path)]
    env = os.environ | {"NO_MKDOCS_2_WARNING": "1"}
    done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    api = (tmp_path / "api" / "index.html").read_text()
    for name in (*AGGREGATORS, *WEIGHTINGS, *REGULARIZERS):
        assert re.search(rf'id="mtl_plugins\.\w+\.\w+\.{name}"', api), name
    # The markup of docstrings has become that of the page.
    assert not re.findall(r"\.\. math::|:math:`|:class:`|:meth:`|&gt;`_", api)
    assert api.count('class="arithmatex"') > 50


def test_methods_page_names_every_config():
    page = (ROOT / "docs" / "methods.md").read_text() + (
        ROOT / "docs" / "guides" / "task-allocation.md"
    ).read_text()
    for row in methods():
        assert re.search(rf"`{row.name}`|\+{row.name}\b|--mtl {row.name}\b", page), row.name


def test_pages_are_listed_in_the_navigation():
    navigation = (ROOT / "mkdocs.yml").read_text()
    for page in (ROOT / "docs").rglob("*.md"):
        assert str(page.relative_to(ROOT / "docs")) in navigation
    assert Path(ROOT / "docs" / "images" / "overview.png").is_file()
