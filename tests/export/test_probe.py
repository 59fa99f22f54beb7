"""The probe: cdcca's own answers, read again as written, and bound to what is exported."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from cdcca_cli.errors import BadData, CdccaError
from cdcca_cli.export import probe as probes
from cdcca_cli.formats.device import Device
from cdcca_cli.formats.probe import STATES, Probe, parse_probe, read_probe
from cdcca_cli.main import main
from cdcca_cli.models import load, load_device
from tests.export.devices import device_of


@pytest.fixture(scope="module")
def device(llava: Path, tmp_path_factory: pytest.TempPathFactory) -> Device:
    return device_of(tmp_path_factory.mktemp("probe") / "device", llava)


@pytest.fixture(scope="module")
def probe(device: Device) -> Probe:
    overlay = device.read_overlay()
    return probes.make(device, overlay, set(overlay))


def test_it_is_read_as_written(probe: Probe) -> None:
    again = parse_probe(json.loads(json.dumps(probe.as_json())), "here")
    assert again.as_json() == probe.as_json()


def test_its_states_are_those_of_the_model(device: Device, probe: Probe, llava: Path) -> None:
    """By transformers alone, from the ids: the checkpoint's, and the device's."""
    question = next(one for one in probe.questions if one.ids is not None)
    models = {"start": load(llava, compute="cpu"), "whole": load_device(device, compute="cpu")}
    for state, model in models.items():
        with torch.no_grad():
            logits_V = model.module(input_ids=torch.tensor([question.ids])).logits[0, -1]
        top = logits_V.double().log_softmax(-1).topk(64)
        assert question.next[state].ids == tuple(top.indices.tolist())
        np.testing.assert_allclose(question.next[state].logp, top.values, atol=1e-6)
        with torch.no_grad():
            ids = torch.tensor([[*(question.ids or ()), *question.answer]])
            rows_AV = model.module(input_ids=ids).logits[0, len(question.ids or ()) - 1 : -1]
        picked = rows_AV.double().log_softmax(-1)[range(len(question.answer)), question.answer]
        assert question.nats[state] == pytest.approx(-float(picked.mean()), abs=1e-6)


def test_pictures_are_asked_about_in_the_familys_prompt(device: Device, probe: Probe) -> None:
    """And they make a difference, as does each of the states."""
    seen = [one for one in probe.questions if one.picture is not None]
    assert [one.picture for one in seen] == [(0, 48, 48), (1, 48, 48)]
    assert [one.prompt for one in seen] == list(probes.ABOUT_PICTURES)
    assert all(one.ids is None for one in seen)
    assert seen[0].next["whole"] != seen[1].next["whole"]
    for one in probe.questions:
        assert len({one.next[state].logp for state in STATES}) == 3
        assert one.nats["whole"] < min(one.nats["start"], one.nats["unscaled"]) - 0.1
        assert len(one.next["whole"].ids) == 64


def test_a_picture_is_the_same_on_every_machine() -> None:
    """Philox keyed by the seed, and whole numbers: the corner's levels by hand."""
    image = np.asarray(probes.picture(3, 20, 33))
    raw = np.random.Philox(key=3).random_raw(3)
    assert image.shape == (20, 33, 3)
    assert image[0, 0].tolist() == [int(one % np.uint64(224)) for one in raw]
    assert probes.encoded(probes.picture(3, 20, 33)).startswith(b"\x89PNG")


def test_what_stays_behind_is_not_in_it(device: Device, probe: Probe) -> None:
    """Without the biases: another digest, and other answers."""
    overlay = device.read_overlay()
    without = probes.make(device, overlay, {name for name in overlay if not name.endswith(".bias")})
    assert without.arrives != probe.arrives and without.overlay == probe.overlay
    assert without.questions[0].next["whole"] != probe.questions[0].next["whole"]
    assert without.questions[0].next["start"] == probe.questions[0].next["start"]


def test_a_mirror_makes_it_for_a_device(
    device: Device, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    arguments = ["export", str(device.path), "--to", "probe", "-o", str(tmp_path / "probe")]
    assert main([*arguments, "--quiet"]) == 0
    found = read_probe(tmp_path / "probe")
    found.check(device)
    overlay = device.read_overlay()
    whole = probes.arrives(overlay, overlay)
    words = str(tmp_path / "probe")
    assert probes.recorded(device, overlay, set(overlay), words) == found.as_json()
    assert found.arrives == whole
    assert main([*arguments, "--drop", "lora.connector", "--quiet"]) == 0
    capfd.readouterr()
    with pytest.raises(CdccaError, match="other tensors arrive"):
        probes.recorded(device, overlay, set(overlay), words)


def test_where_there_is_no_torch_it_is_said(
    device: Device, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    overlay = device.read_overlay()
    assert probes.recorded(device, overlay, set(overlay), "none") is None
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert probes.recorded(device, overlay, set(overlay), "auto") is None
    assert "no probe for an effect check: torch is not here" in capfd.readouterr().err


def test_reading_needs_no_torch() -> None:
    words = "import sys; from cdcca_cli.export import probe, effect, checking, takes;"
    words += "assert not {'torch', 'transformers', 'httpx2'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", words], check=True)


@pytest.mark.parametrize(
    "change",
    [
        lambda value: value.update(kind="x"),
        lambda value: value.update(version=2),
        lambda value: value.update(overlay="x"),
        lambda value: value.update(end=[]),
        lambda value: value.update(questions=[]),
        lambda value: value["questions"][0].update(ids=None),
        lambda value: value["questions"][0].update(ids=[-1]),
        lambda value: value["questions"][0]["next"].pop("start"),
        lambda value: value["questions"][0]["next"]["whole"].update(ids=[1, 1]),
        lambda value: value["questions"][0]["next"]["whole"]["logp"].pop(),
        lambda value: value["questions"][0]["answer"].update(ids=[]),
        lambda value: value["questions"][-1]["picture"].update(size=[1 << 20, 1]),
        lambda value: value["questions"][-1]["picture"].update(seed=-1),
        lambda value: value["questions"][-1].update(prompt=None),
    ],
)
def test_what_is_no_probe_is_refused(probe: Probe, change: Callable[[Any], Any]) -> None:
    value = json.loads(json.dumps(probe.as_json()))
    change(value)
    with pytest.raises(CdccaError) as refused:
        parse_probe(value, "here")
    assert refused.value.exit_code in (65, 76) and str(refused.value).startswith("here")


def test_an_export_without_one(tmp_path: Path) -> None:
    (tmp_path / "export.json").write_text('{"kind": "export", "probe": null}')
    with pytest.raises(BadData, match="has no probe"):
        read_probe(tmp_path)
