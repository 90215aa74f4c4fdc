import pytest

from mtl_plugins.metrics import delta_m, ranking_similarity


def test_delta_m_by_hand():
    baseline = {"depth": {"rel": 0.2, "acc": 0.5}, "seg": {"miou": 0.4}}
    metrics = {"depth": {"rel": 0.1, "acc": 0.6}, "seg": {"miou": 0.3}}
    # depth: (+50 % + 20 %) / 2 = 35 %; seg: -25 %; mean 5 %
    assert delta_m(metrics, baseline, ["rel"]) == pytest.approx(5.0)
    assert delta_m(metrics, baseline, ["rel"], convention="loss") == pytest.approx(-0.05)
    assert delta_m(baseline, baseline, ["rel"]) == 0.0


def test_delta_m_errors():
    with pytest.raises(KeyError, match="tasks differ"):
        delta_m({"a": {"x": 1.0}}, {"b": {"x": 1.0}})
    with pytest.raises(KeyError, match="metrics of 'a' differ"):
        delta_m({"a": {"x": 1.0}}, {"a": {"y": 1.0}})
    with pytest.raises(ValueError, match="a.x of the baseline is 0"):
        delta_m({"a": {"x": 1.0}}, {"a": {"x": 0.0}})
    with pytest.raises(ValueError, match="convention"):
        delta_m({"a": {"x": 1.0}}, {"a": {"x": 1.0}}, convention="A")


def test_ranking_similarity_by_hand():
    first = {"a": 1.0, "b": 2.0, "c": 3.0}
    assert ranking_similarity(first, first) == 1.0
    assert ranking_similarity(first, {"a": 9.0, "b": 5.0, "c": 1.0}) == 1.0  # the reverse
    assert ranking_similarity(first, {"a": 2.0, "b": 1.0, "c": 3.0}) == pytest.approx(2 / 3)
    with pytest.raises(KeyError):
        ranking_similarity(first, {"a": 1.0})
