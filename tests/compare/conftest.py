import pytest
from toy_runs import Toy

from mtl_plugins.compare import frameworks


@pytest.fixture(autouse=True)
def toy_framework(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(frameworks.FRAMEWORKS, "toy", Toy())
