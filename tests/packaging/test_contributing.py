"""What a repository promises its contributors."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import pytest
from commands import ROOT
from missing_parts import missing_parts

PAGES = [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md"), *(ROOT / "configs").rglob("*.md")]


def copy(root: Path) -> None:
    """Copy what the script reads; this file names what is not there."""
    for part in ("mtl_plugins", "configs", "tests", "docs"):
        ignore = shutil.ignore_patterns("*.pyc", ".mim", "packaging")
        shutil.copytree(ROOT / part, root / part, ignore=ignore)


def test_nothing_is_missing():
    assert not list(missing_parts(ROOT))


@pytest.mark.parametrize("kind", ["aggregation", "weighting", "regularization"])
def test_a_new_method_is_told_what_it_lacks(kind, tmp_path):
    copy(tmp_path)
    (tmp_path / "mtl_plugins" / kind / "newest.py").write_text("class Newest:\n    pass\n")
    lines = list(missing_parts(tmp_path))
    assert [line.split(":")[0] for line in lines] == [
        "configs/_base_/mtl/newest.py",
        "configs/detectron2/mtl/newest.yaml",
        f"tests/{kind}/test_newest.py",
        "docs/methods.md",
    ]
    (tmp_path / "configs/_base_/mtl/newest.py").write_text('dict(type="Newest")')
    assert len(list(missing_parts(tmp_path))) == 3


def test_a_new_data_set_is_told_what_it_lacks(tmp_path):
    copy(tmp_path)
    (tmp_path / "configs" / "zyx").mkdir()
    lines = [line.split(":")[0] for line in missing_parts(tmp_path)]
    assert lines == ["configs/zyx/README.md", "docs/data.md", "tests/tools/test_zyx.py"]


def anchors(page: Path) -> set[str]:
    """The anchors of the headings, as GitHub and MkDocs make them."""
    heads = re.findall(r"^#+ (.*)$", page.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", head.lower()).strip().replace(" ", "-") for head in heads}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page):
    text = re.sub(r"```.*?```", "", page.read_text(), flags=re.DOTALL)
    for link in re.findall(r"\]\(([^)\s]+)\)", text):
        if link.startswith("http"):
            continue
        path, _, anchor = link.partition("#")
        target = (page.parent / path) if path else page
        assert target.exists(), f"{page}: {link}"
        if anchor:
            assert anchor in anchors(target), f"{page}: {link}"


def test_licence_and_versions_agree():
    import mtl_plugins

    version = mtl_plugins.__version__
    assert f'version = "{version}"' in (ROOT / "pyproject.toml").read_text()
    assert f"version: {version}" in (ROOT / "CITATION.cff").read_text()
    assert f"## {version}" in (ROOT / "CHANGELOG.md").read_text()
    assert "Apache License" in (ROOT / "LICENSE").read_text()
