"""Inheritance from the configs of this package: ``_base_ = ["mtl_plugins::_base_/mtl/pcgrad.py"]``.

MMEngine reads ``package::config`` for a fixed list of packages, and refuses two bases with the same
key, as a framework's config and a method both have an ``optim_wrapper``. Here the package joins the
list, and methods among the bases are laid over the others as by ``mtl-train --mtl``.
"""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from mmengine.config import Config
from mmengine.config.utils import MODULE2PACKAGE, _get_package_and_cfg_path
from mmengine.utils import get_installed_path, is_installed

import mtl_plugins
from mtl_plugins.registry import suggest

PREFIX = "mtl_plugins::"
METHODS = f"{PREFIX}_base_/mtl/"


class _Layers(str):
    """The bases of a config that has methods among them, in place of the path of one base.

    Attributes:
        others: Bases that are no methods, in their order.
        methods: Names of methods, in their order.
    """

    others: Sequence[str]
    methods: Sequence[str]

    @classmethod
    def of(cls, others: Sequence[str], methods: Sequence[str]) -> _Layers:
        """Return layers whose text is that of a list of bases."""
        layers = cls([*others, *methods])
        layers.others, layers.methods = others, methods
        return layers


def enter_configs() -> None:
    """Make ``mtl_plugins::`` known to MMEngine's configs; repeated calls do nothing."""
    if "mtl_plugins" in MODULE2PACKAGE:
        return
    MODULE2PACKAGE["mtl_plugins"] = "mtl_plugins"
    for module, package in MODULE2PACKAGE.items():
        # The maintained continuation's mmseg comes from another package than MMEngine knows.
        if find_spec(module) is not None and not is_installed(package):
            MODULE2PACKAGE[module] = module
    base_files, cfg_path, file2dict = (
        Config._get_base_files,
        Config._get_cfg_path,
        Config._file2dict,
    )

    def get_base_files(filename: str) -> list[str]:
        bases = base_files(filename)
        methods = [base for base in bases if base.startswith(METHODS)]
        if not methods:
            return bases
        return [_Layers.of([base for base in bases if base not in methods], methods)]

    def get_cfg_path(path: str, filename: str) -> tuple[str, str | None]:
        if isinstance(path, _Layers):
            folder = Path(filename).parent
            others = [base if "::" in base else str(folder / base) for base in path.others]
            return _Layers.of(others, path.methods), None
        # No scope: types are looked up in the scope of the config that inherits.
        if path.startswith(PREFIX):
            return _find(path), None
        return _installed(path) or cfg_path(path, filename)

    def read(filename: str, *args: Any, **kwargs: Any) -> tuple[dict, str, dict]:
        if not isinstance(filename, _Layers):
            return file2dict(filename, *args, **kwargs)
        from mtl_plugins.mm.train import lay_over

        for method in filename.methods:
            _find(method)
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "bases.py"
            path.write_text(f"_base_ = {filename.others!r}\n")
            below, text, env = file2dict(str(path), *args, **kwargs)
        names = "+".join(m.removeprefix(METHODS).removesuffix(".py") for m in filename.methods)
        empty: dict[str, Any] = {"optim_wrapper": {}, "train_dataloader": {}}
        try:
            cfg = lay_over(Config(empty | below), names).to_dict()
        except SystemExit as error:
            raise ValueError(str(error).replace("--mtl:", "_base_:", 1)) from error
        if not cfg["train_dataloader"]:
            del cfg["train_dataloader"]
        return cfg, f"{text}\n# methods: {names}\n", env

    Config._get_base_files = staticmethod(get_base_files)
    Config._get_cfg_path = staticmethod(get_cfg_path)
    Config._file2dict = staticmethod(read)


def _installed(base: str) -> tuple[str, str] | None:
    """Return the path and the scope of another package's config, None where it is not found.

    MMEngine parses the index of all the package's models, a hundred files, before it looks here.
    """
    if "::" not in base:
        return None
    package, name = _get_package_and_cfg_path(base)
    if not is_installed(package):
        return None
    path = Path(get_installed_path(package), ".mim", "configs", name)
    return (str(path), base.partition("::")[0]) if path.is_file() else None


def _find(base: str) -> str:
    """Return the path of a config of this package.

    Raises:
        FileNotFoundError: The package has no config of that name; the message has similar ones.
    """
    folder = mtl_plugins.configs()
    path = folder / base.removeprefix(PREFIX)
    if not path.is_file():
        beside = [PREFIX + str(p.relative_to(folder)) for p in sorted(path.parent.glob("*.py"))]
        raise FileNotFoundError(f"_base_: there is no {base!r}; {suggest(base, beside)}")
    return str(path)
