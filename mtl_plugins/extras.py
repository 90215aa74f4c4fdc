"""Optional parts of the package: an error that says which extra is missing."""

from __future__ import annotations

from importlib.util import find_spec

DETECTRON2 = (
    "it is not on the package index; install it from its repository beside torch and a compiler: "
    "pip install --no-build-isolation 'git+https://github.com/facebookresearch/detectron2.git', "
    "or without a compiler by python {tools}/install_detectron2.py"
)


def require(needs: str, *modules: str, extra: str, how: str = "") -> None:
    """Check that optional modules are installed.

    Args:
        needs: Name of the part that needs the modules, for the message.
        modules: Top-level modules, all of which the part imports.
        extra: The extra of ``pip install 'mtl-plugins[extra]'`` that brings them.
        how: Words to put in place of the ``pip`` command, where no extra brings the modules.

    Raises:
        ModuleNotFoundError: A module is missing; the message names all that are, and the extra.
    """
    missing = [name for name in modules if find_spec(name) is None]
    if missing:
        how = how or f"pip install 'mtl-plugins[{extra}]'"
        raise ModuleNotFoundError(
            f"{needs} needs {' and '.join(missing)}, not installed here: {how}", name=missing[0]
        )
