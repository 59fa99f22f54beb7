import sys
from pathlib import Path

import numpy as np
import pytest

from cdcca_cli.downlink import codecs, sender
from cdcca_cli.downlink.sender import CompressSettings
from tests.downlink import worlds
from tests.downlink.test_sender import loss_towards


@pytest.fixture(scope="module")
def choice(tmp_path_factory: pytest.TempPathFactory) -> sender.Choice:
    mirror = worlds.device(tmp_path_factory.mktemp("mirror") / "mirror")
    after = worlds.learnt(mirror.read_overlay())
    how = CompressSettings(budget_bytes=900)
    return sender.choose(worlds.adaptation(after, mirror), mirror, how, loss=loss_towards(after))


def test_every_point_is_what_it_says(choice: sender.Choice) -> None:
    """Finer steps: more bytes, less error, less loss. With squared error as the loss, the change of
    the loss is relative error squared times what was learnt, over the adaptation's loss."""
    made = sender.finished(choice, choice.update())
    drawn = sender.curve(choice, made).as_json()
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
    choice = sender.choose(worlds.adaptation(after, mirror), mirror)
    drawn = sender.curve(choice, sender.finished(choice, choice.update()))
    assert drawn.as_json()["loss"] is None
    assert {point["loss"] for point in drawn.as_json()["points"]} == {None}


def test_nothing_changed(tmp_path: Path) -> None:
    mirror = worlds.device(tmp_path / "mirror")
    choice = sender.choose(worlds.adaptation(mirror.read_overlay(), mirror), mirror)
    drawn = sender.curve(choice, sender.finished(choice, choice.update()))
    assert drawn.as_json() == {
        "kind": "curve",
        "version": 2,
        "parameters": 0,
        "loss": None,
        "points": [],
    }


def test_the_picture(choice: sender.Choice) -> None:
    """A PNG of 768 x 480, and the same bytes again."""
    pytest.importorskip("matplotlib")
    drawn = sender.curve(choice, sender.finished(choice, choice.update()))
    picture = drawn.picture()
    assert picture[:8] == b"\x89PNG\r\n\x1a\n"
    assert np.frombuffer(picture[16:24], ">u4").tolist() == [768, 480]
    assert drawn.picture() == picture


def test_without_matplotlib(choice: sender.Choice, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(ImportError):
        sender.curve(choice, sender.finished(choice, choice.update())).picture()
