"""The loss that `compress` measures, and that the model is loaded late."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cdcca_cli import distillation, models
from cdcca_cli.commands import compress
from cdcca_cli.config import Runtime
from cdcca_cli.formats.adaptation import HeldOut
from cdcca_cli.formats.device import Device
from cdcca_cli.formats.digest import overlay_digest
from cdcca_cli.main import main
from tests.downlink import worlds

RUNTIME = Runtime("cpu", "float32")


def test_without_held_out_frames_there_is_no_loss(tmp_path: Path) -> None:
    mirror = worlds.device(tmp_path / "mirror")
    adaptation = worlds.adaptation(mirror.read_overlay(), mirror)
    assert compress._loss_of(adaptation, mirror, RUNTIME) is None
    adaptation.held_out = HeldOut([], [])
    assert compress._loss_of(adaptation, mirror, RUNTIME) is None


@pytest.mark.parametrize(
    ("batch_size", "taken"), [(32, 32), (None, 16), ("32", 16), (True, 16), (0, 16), (10**9, 16)]
)
def test_the_model_is_loaded_once_and_only_when_a_loss_is_asked_for(
    batch_size: object, taken: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its batches are those of training, if the adaptation says so and it can be."""
    import cdcca_cli.distillation.evaluation  # noqa: F401

    loads: list[tuple[Any, ...]] = []

    def load_device(device: Device, *, compute: str, dtype: str) -> str:
        loads.append((device, compute, dtype))
        return "student"

    class Counted:
        def __init__(self, student: str, held_out: HeldOut, alpha: float, size: int) -> None:
            assert (student, alpha) == ("student", worlds.SETTINGS.lora.alpha)
            assert size == taken

        def __call__(self, overlay: worlds.Overlay) -> float:
            return float(len(overlay))

    monkeypatch.setattr(models, "load_device", load_device)
    monkeypatch.setattr(distillation.evaluation, "HeldOutLoss", Counted)
    mirror = worlds.device(tmp_path / "mirror")
    adaptation = worlds.adaptation(mirror.read_overlay(), mirror)
    adaptation.held_out = HeldOut([], [["yes"]])
    adaptation.report = {} if batch_size is None else {"batch_size": batch_size}
    loss = compress._loss_of(adaptation, mirror, RUNTIME)
    assert loss is not None and loads == []
    assert [loss({}), loss({"a": np.zeros(1)})] == [0, 1]
    assert loads == [(mirror, "cpu", "float32")]


def test_the_start_is_made_again_bit_for_bit(tmp_path: Path) -> None:
    from cdcca_cli.models.initial import create_device, start_of
    from cdcca_cli.models.settings import InitSettings

    mirror = create_device(
        tmp_path / "mirror", "shipped:student", InitSettings(lora_rank=2, seed=3)
    )
    assert overlay_digest(start_of(mirror)) == mirror.digest


@pytest.mark.slow
def test_from_frames_to_an_update_measured_on_what_was_held_out(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """The shipped pair, trained a little: under 2.2 bits, and a new device catches up."""

    def run(*arguments: object) -> None:
        assert main([str(argument) for argument in arguments]) == 0

    run("demo", "--export", tmp_path / "frames")
    for name in ("device", "mirror", "newcomer"):
        run("init", tmp_path / name)
    tokens, learnt = tmp_path / "up.tokens", tmp_path / "learnt"
    run(
        "sample", tmp_path / "frames/stream", "-m", tmp_path / "device", "--top", "60", "-o", tokens
    )
    how = ["--epochs", "2", "--holdout", "50%"]
    run("distill", tokens, "--student", tmp_path / "mirror", *how, "-o", learnt)
    capfd.readouterr()
    update = tmp_path / "update.cdcca"
    run("compress", learnt, "--base", tmp_path / "mirror", "-o", update)
    said = capfd.readouterr().err
    assert "held-out loss" in said
    parameters = sum(v.size for v in Device.open(tmp_path / "mirror").read_overlay().values())
    assert 8 * update.stat().st_size / parameters <= 2.2
    for name in ("device", "mirror"):
        run("apply", tmp_path / name, update)
    exact = tmp_path / "exact.cdcca"
    how = ["--codec", "exact", "--since", 0, "-o", exact]
    run("compress", "--base", tmp_path / "mirror", *how)
    run("apply", tmp_path / "newcomer", exact)
    assert {Device.open(tmp_path / n).digest for n in ("device", "mirror", "newcomer")} == {
        Device.open(tmp_path / "mirror").digest
    }


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--codec", "exact", "--since", "0", "--curve", "c.json"], "needs an adaptation"),
        (["--codec", "exact", "--since", "0", "--curve", "c.png"], "needs an adaptation"),
        (["a.safetensors", "--curve", "c.png"], "give the name of the JSON file"),
    ],
)
def test_a_curve_that_cannot_be_is_refused_before_anything_is_written(
    options: list[str],
    words: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    worlds.device(tmp_path / "mirror")
    (tmp_path / "a.safetensors").touch()
    assert main(["compress", *options, "--base", "mirror", "-o", "u.cdcca"]) == 2
    err = capfd.readouterr().err
    assert not (tmp_path / "u.cdcca").exists()
    assert words in err


def test_too_few_keys_for_the_mirror_are_told(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    from cdcca_cli.downlink import keys as key_files
    from cdcca_cli.downlink import signatures
    from cdcca_cli.formats.trust import Trust

    first, second = signatures.generate(), signatures.generate()
    trust = Trust(1, 2, tuple(sorted((first.public, second.public))))
    assert key_files.missing(None, []) == []
    assert key_files.missing(trust, [first, second]) == []
    (line,) = key_files.missing(trust, [first])
    assert line.startswith("the update has 1 of the 2 signatures")
    path = tmp_path / "key"
    key_files.write_key_pair(path, first)
    assert len(key_files.read_private_keys([path, path])) == 1
