"""Each case needs a fresh interpreter: what is imported, and in which order, is the subject."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

import mtl_plugins.ops

ROOT = Path(mtl_plugins.ops.__file__).parents[2]


def run(code: str, *path: Path) -> None:
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(map(str, [*path, ROOT]))}
    done = subprocess.run(
        [sys.executable, "-c", code], env=env, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr


@pytest.fixture
def package(tmp_path: Path) -> Path:
    """A folder with an empty package ``mmcv`` that hides the installed one."""
    (tmp_path / "mmcv").mkdir()
    (tmp_path / "mmcv" / "__init__.py").touch()
    return tmp_path


INSTALL = "from mtl_plugins.ops import install_mmcv_ops; install_mmcv_ops(); "


def test_mmcv_is_not_imported() -> None:
    run(INSTALL + "import sys; assert 'mmcv' not in sys.modules")


def test_compiled_extension_wins(package: Path) -> None:
    (package / "mmcv" / "_ext.py").write_text("compiled = True")
    run(INSTALL + "import mmcv._ext; assert vars(mmcv._ext)['compiled']", package)


def test_missing_extension_is_found(package: Path) -> None:
    run(
        INSTALL + "from importlib.util import find_spec; spec = find_spec('mmcv._ext');"
        "assert spec.name == 'mmcv._ext' and spec.loader and spec.origin.endswith('mmcv_ext.py');"
        "assert find_spec('mmcv._other') is None",
        package,
    )


def test_missing_mmcv_stays_missing() -> None:
    run(
        INSTALL + "import sys; sys.modules['mmcv'] = None\ntry: import mmcv.ops\n"
        "except ModuleNotFoundError: pass\nelse: raise AssertionError"
    )


def test_second_call_does_nothing() -> None:
    run(
        INSTALL + "import sys; finders = list(sys.meta_path); install_mmcv_ops();"
        "assert sys.meta_path == finders"
    )


def test_mmdet_imports_even_after_a_failed_attempt() -> None:
    pytest.importorskip("mmdet")
    run(
        "try: import mmcv.ops\nexcept ModuleNotFoundError: pass\n" + INSTALL + "import mmdet.models"
    )
