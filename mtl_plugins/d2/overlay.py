"""Methods laid over a config, by the names on a command line."""

from __future__ import annotations

from collections.abc import Mapping

import yaml
from detectron2.config import CfgNode

from mtl_plugins import configs
from mtl_plugins.d2.config import METHODS, add_mtl_config, missing_key
from mtl_plugins.methods import parse_names
from mtl_plugins.registry import suggest


def lay_over(cfg: CfgNode, names: str) -> None:
    """Merge the configs of methods, ``configs/detectron2/mtl/NAME.yaml``, over a config.

    Args:
        cfg: Config with the node that :func:`~mtl_plugins.d2.add_mtl_config` adds, not frozen.
        names: Names of the methods, joined by ``+``, options after colons: ``"cagrad:c=0.8"``.

    Raises:
        SystemExit: There is no such method or option, or two methods exclude each other.
    """
    folder = configs() / "detectron2" / "mtl"
    known = [p.relative_to(folder).with_suffix("").as_posix() for p in folder.rglob("*.yaml")]
    fresh = CfgNode()
    add_mtl_config(fresh)
    given: dict[str, str] = {}
    for name, options in parse_names(names):
        if name not in known:
            raise SystemExit(f"--mtl: no method is called {name!r}; {suggest(name, sorted(known))}")
        overlay = yaml.safe_load((folder / f"{name}.yaml").read_text())
        parts = [part for part, value in overlay["MTL"].items() if isinstance(value, Mapping)]
        for part in parts:
            if part in given:
                raise SystemExit(
                    f"--mtl: {given[part]!r} and {name!r} both set MTL.{part}, and a run has one"
                )
            given[part] = name
            if part in METHODS:  # the earlier arguments are another method's
                cfg.MTL[part] = fresh.MTL[part]
        if options and len(parts) > 1:
            raise SystemExit(
                f"--mtl {name}: sets MTL.{' and MTL.'.join(parts)}, and the options could be of "
                f"either; set the key itself, such as MTL.{parts[0]}.{next(iter(options)).upper()}"
            )
        cfg.merge_from_other_cfg(CfgNode(overlay))
        for key, value in options.items():
            path = ".".join(["MTL", *parts, key.upper()])
            if problem := missing_key(cfg, path):
                raise SystemExit(f"--mtl {name}: {problem}")
            node = cfg.MTL[parts[0]] if parts else cfg.MTL
            node[key.upper()] = yaml.safe_load(value)
