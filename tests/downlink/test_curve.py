import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cdcca_cli.downlink import codecs, curve, sender
from cdcca_cli.downlink.settings import CompressSettings
from tests.downlink import worlds
from tests.downlink.test_sender import loss_towards


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> sender.Compressed:
    mirror = worlds.device(tmp_path_factory.mktemp("mirror") / "mirror")
    after = worlds.learnt(mirror.read_overlay())
    how = CompressSettings(budget_bytes=900)
    return sender.compress(worlds.adaptation(after, mirror), mirror, how, loss=loss_towards(after))


def measured(made: sender.Compressed) -> dict[str, Any]:
    assert made.choice is not None
    return curve.measure(made.choice, made.update)


def test_every_point_is_what_it_says(made: sender.Compressed) -> None:
    """Finer steps: more bytes, less error, less loss. With squared error as the loss, the change of
    the loss is relative error squared times what was learnt, over the adaptation's loss."""
    drawn = measured(made)
    assert (drawn["kind"], drawn["version"], drawn["parameters"]) == ("curve", 2, 918)
    steps = [p for p in drawn["points"] if p["codec"] == "usq" and not p["chosen"]]
    for key, order in (("bytes", 1), ("relative_error", -1), ("loss", -1), ("step", -1)):
        found = [order * point[key] for point in steps]
        assert found == sorted(found) and len(set(found)) == 9
    assert steps[0]["step"] == pytest.approx(16 * steps[-1]["step"])
    assert {p["codec"] for p in drawn["points"]} == set(codecs.CODECS) - {"exact"}
    learnt = drawn["loss"]["base"] - drawn["loss"]["adaptation"]
    for point in drawn["points"]:
        assert point["bits"] == pytest.approx(8 * point["bytes"] / 918)
        share = point["relative_error"] ** 2
        assert point["gain_kept"] == pytest.approx(1 - share, abs=1e-3)
        assert point["loss_change"] == pytest.approx(
            share * learnt / drawn["loss"]["adaptation"], abs=1e-3
        )
    (own,) = [point for point in drawn["points"] if point["chosen"]]
    assert own == drawn["points"][-1]
    assert (own["bytes"], own["relative_error"]) == (made.num_bytes, made.relative_error)


def test_without_a_loss(tmp_path: Path) -> None:
    mirror = worlds.device(tmp_path / "mirror")
    after = worlds.learnt(mirror.read_overlay())
    made = sender.compress(worlds.adaptation(after, mirror), mirror)
    drawn = measured(made)
    assert drawn["loss"] is None
    assert {point["loss"] for point in drawn["points"]} == {None}


def test_nothing_changed(tmp_path: Path) -> None:
    mirror = worlds.device(tmp_path / "mirror")
    made = sender.compress(worlds.adaptation(mirror.read_overlay(), mirror), mirror)
    drawn = measured(made)
    assert drawn == {
        "kind": "curve",
        "version": 2,
        "parameters": 0,
        "loss": None,
        "points": [],
    }


def test_the_picture(made: sender.Compressed) -> None:
    """A PNG of 768 x 480, and the same bytes again."""
    pytest.importorskip("matplotlib")
    drawn = measured(made)
    picture = curve.picture(drawn)
    assert picture[:8] == b"\x89PNG\r\n\x1a\n"
    assert np.frombuffer(picture[16:24], ">u4").tolist() == [768, 480]
    assert curve.picture(drawn) == picture


def test_without_matplotlib(made: sender.Compressed, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(ImportError):
        curve.picture(measured(made))
