"""`cdcca apply --if-better`: an update that makes the device worse leaves no trace.

The device is the shipped student with a few of the shipped frames as its probe. `bad` turns the
sign of every norm of the language model, after which no answer is right; `good` takes a device to
which that was done back to where it was.
"""

import json
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cdcca_cli import acceptance
from cdcca_cli.downlink import keys as key_files
from cdcca_cli.downlink import receiver, sender, signatures
from cdcca_cli.downlink.settings import CompressSettings
from cdcca_cli.errors import WrongBase
from cdcca_cli.formats.adaptation import write_adaptation
from cdcca_cli.formats.device import Device
from cdcca_cli.formats.trust import Trust
from cdcca_cli.formats.update import Update, read_update
from cdcca_cli.main import main
from cdcca_cli.scoring.settings import AcceptanceSettings
from tests.downlink import worlds
from tests.shipped import few_frames

CDCCA = [sys.executable, "-m", "cdcca_cli"]
Capture = pytest.CaptureFixture[str]


def run(*arguments: object) -> int:
    return main([str(argument) for argument in arguments])


def to(base: Device, after: worlds.Overlay) -> Update:
    """The exact update from a device's overlay to another."""
    how = CompressSettings(codec="exact")
    return sender.compress(worlds.adaptation(after, base), base, how).update


class World:
    """A new device and one that was spoilt, an update that spoils, one that repairs, a probe."""

    def __init__(self, root: Path) -> None:
        self.probe = few_frames(root / "probe", "heldout", 8)
        self.device, self.spoilt = root / "device", root / "spoilt"
        self.bad, self.good = root / "bad.cdcca", root / "good.cdcca"
        assert run("init", self.device, "--quiet") == 0
        start = Device.open(self.device).read_overlay()
        without_norms = {
            name: -value if name.endswith("norm.weight") else value for name, value in start.items()
        }
        base = Device.open(self.device)
        learnt = root / "adaptation.safetensors"
        with learnt.open("wb") as out:
            write_adaptation(out, worlds.adaptation(without_norms, base))
        how = ["--codec", "exact", "--no-measure", "--quiet", "-o", self.bad]
        assert run("compress", learnt, "--base", self.device, *how) == 0
        shutil.copytree(self.device, self.spoilt)
        assert run("apply", self.spoilt, self.bad, "--quiet") == 0
        self.good.write_bytes(worlds.file_of(to(Device.open(self.spoilt), start)))


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    """Never changed by a test."""
    return World(tmp_path_factory.mktemp("world"))


@pytest.fixture
def device(world: World, tmp_path: Path) -> Path:
    return shutil.copytree(world.device, tmp_path / "device")


@pytest.fixture
def spoilt(world: World, tmp_path: Path) -> Path:
    return shutil.copytree(world.spoilt, tmp_path / "spoilt")


@pytest.fixture
def no_model(monkeypatch: pytest.MonkeyPatch) -> None:
    """Loading a model is a fault."""

    def load(*_: object, **__: object) -> None:
        raise AssertionError("a model was loaded")

    monkeypatch.setattr("cdcca_cli.models.load_device", load)


def files(folder: Path) -> dict[str, bytes]:
    return worlds.bytes_of(Device.open(folder))


def apply(capfd: Capture, device: Path, update: Path, *options: object) -> tuple[int, str, Any]:
    """Exit code, stderr, and the object of --json (None if there is none)."""
    capfd.readouterr()
    code = run("apply", device, update, "--json", *options)
    out, err = capfd.readouterr()
    return code, err, json.loads(out) if out else None


class TestWorse:
    def test_it_is_refused_and_not_a_byte_of_the_folder_changes(
        self, world: World, device: Path, capfd: Capture
    ) -> None:
        before = files(device)
        code, err, found = apply(capfd, device, world.bad, "--if-better", world.probe)
        assert code == 80
        assert files(device) == before
        assert err.startswith(
            "cdcca apply: update 1 makes this device worse, nothing was changed: DA "
        )
        assert err.count("\n") == 1
        measured = found["measured"]
        assert (found["status"], found["sequence"], measured["metric"]) == ("refused", 1, "da")
        assert measured["before"] > 40 and measured["after"] < 10
        gain = measured["difference"]
        assert gain["value"] == measured["after"] - measured["before"]
        assert gain["low"] <= gain["value"] <= gain["high"] < 0
        shown = f"{gain['value']:+.2f} (95 % interval {gain['low']:+.2f} to {gain['high']:+.2f})"
        assert f" on {gain['n']} questions, {shown}, more than the tolerance of 0 points" in err

    def test_it_is_what_infer_and_eval_say_of_both(
        self, world: World, device: Path, tmp_path: Path, capfd: Capture
    ) -> None:
        """The two stages and eval's own paired comparison: another way to the same figures."""
        before, after = tmp_path / "before.jsonl", tmp_path / "after.jsonl"
        for folder, path in ((world.device, before), (world.spoilt, after)):
            assert run("infer", world.probe, "-m", folder, "-o", path, "--quiet") == 0
        how = ["--references", world.probe, "--against", before, "--json", "--quiet"]
        capfd.readouterr()
        assert run("eval", after, *how) == 0
        report = json.loads(capfd.readouterr().out)
        for metric in ("da", "mc", "cider"):
            how = ["--if-better", world.probe, "--metric", metric]
            code, err, found = apply(capfd, device, world.bad, *how)
            measured, theirs = found["measured"], report["against"][metric]
            assert (code, measured["metric"]) == (80, metric)
            assert measured["after"] == report["scores"][metric]["score"]
            assert measured["difference"]["value"] == theirs["difference"]
            assert measured["difference"]["n"] == theirs["n"]
            ends = [measured["difference"]["low"], measured["difference"]["high"]]
            assert ends == theirs["interval"]
            title = {"da": "DA", "mc": "MC", "cider": "CIDEr"}[metric]
            assert f"nothing was changed: {title} " in err

    def test_the_metric_is_the_first_that_the_labels_allow(
        self, world: World, device: Path, tmp_path: Path, capfd: Capture
    ) -> None:
        for without, metric in ((["answers"], "mc"), (["answers", "choices"], "cider")):
            lines = []
            for line in (world.probe / "frames.jsonl").read_text().splitlines():
                question = json.loads(line)
                for key in without:
                    question.pop(key, None)
                if "choices" in without:
                    question.pop("correct_choice_idx", None)
                lines.append(json.dumps(question))
            probe = tmp_path / f"{metric}.jsonl"
            probe.write_text("\n".join(lines) + "\n")
            how = ["--if-better", probe, "--images", world.probe]
            code, _, found = apply(capfd, device, world.bad, *how)
            assert (code, found["measured"]["metric"]) == (80, metric)

    def test_a_tolerance_is_what_it_may_lose(
        self, world: World, device: Path, capfd: Capture
    ) -> None:
        how = ["--if-better", world.probe, "--tolerance"]
        _, _, found = apply(capfd, device, world.bad, *how, "0")
        loss = -found["measured"]["difference"]["value"]
        before = files(device)
        code, err, _ = apply(capfd, device, world.bad, *how, f"{loss - 0.01}")
        assert code == 80 and files(device) == before
        assert f"the tolerance of {loss - 0.01:g} points" in err
        assert apply(capfd, device, world.bad, *how, f"{loss}")[0] == 0
        assert files(device) == files(world.spoilt)

    def test_a_model_that_cannot_answer_is_worse_whatever_the_tolerance(
        self, world: World, device: Path, tmp_path: Path, capfd: Capture
    ) -> None:
        after = Device.open(device).read_overlay()
        for name, value in after.items():
            if name.endswith("norm.weight"):
                value[:] = np.finfo(np.float32).max
        update = tmp_path / "diverged.cdcca"
        update.write_bytes(worlds.file_of(to(Device.open(device), after)))
        before = files(device)
        how = ["--if-better", world.probe, "--tolerance", "1000"]
        code, err, found = apply(capfd, device, update, *how)
        assert code == 80 and "not finite" in err and err.count("\n") == 1
        assert found["status"] == "refused" and found["measured"] is None
        assert files(device) == before

    def test_a_dry_run_says_so_too(self, world: World, device: Path, capfd: Capture) -> None:
        before = files(device)
        how = ["--if-better", world.probe, "--dry-run"]
        assert apply(capfd, device, world.bad, *how)[0] == 80
        assert files(device) == before


class TestBetter:
    def test_it_is_applied_as_it_would_be_without(
        self, world: World, spoilt: Path, tmp_path: Path, capfd: Capture
    ) -> None:
        plain = shutil.copytree(world.spoilt, tmp_path / "plain")
        assert run("apply", plain, world.good) == 0
        code, err, found = apply(capfd, spoilt, world.good, "--if-better", world.probe)
        assert code == 0
        assert files(spoilt) == files(plain) != files(world.spoilt)
        assert (found["status"], found["digest"]) == ("applied", Device.open(plain).digest)
        assert found["measured"]["difference"]["low"] > 0
        assert ": applied: sequence 2, sha256:" in err and "; DA 0.00 to " in err

    def test_as_good_is_good_enough(
        self, world: World, device: Path, tmp_path: Path, capfd: Capture
    ) -> None:
        """A change that no answer hangs on, and --tolerance 0."""
        after = Device.open(device).read_overlay()
        name = next(name for name in after if name.endswith("norm.weight"))
        after[name] = after[name] * np.float32(1 + 1e-6)
        update = tmp_path / "same.cdcca"
        update.write_bytes(worlds.file_of(to(Device.open(device), after)))
        code, _, found = apply(capfd, device, update, "--if-better", world.probe)
        assert (code, found["measured"]["difference"]["value"]) == (0, 0)
        assert Device.open(device).sequence == 1

    def test_a_dry_run_measures_and_changes_nothing(
        self, world: World, spoilt: Path, capfd: Capture
    ) -> None:
        how = ["--if-better", world.probe, "--dry-run"]
        code, err, found = apply(capfd, spoilt, world.good, *how)
        assert (code, found["status"]) == (0, "would apply")
        assert ": would apply: sequence 2, sha256:" in err and "; DA 0.00 to " in err
        assert files(spoilt) == files(world.spoilt)

    def test_again_and_with_another_batch_size_it_is_the_same(
        self, world: World, spoilt: Path, capfd: Capture
    ) -> None:
        found = [
            apply(capfd, spoilt, world.good, "--if-better", world.probe, "--dry-run", *how)
            for how in ([], [], ["--batch-size", "3"])
        ]
        told = [
            (code, re.sub(r" \(in [\d.]+ s\)", "", err), report | {"time": None})
            for code, err, report in found
        ]
        assert told[0] == told[1] == told[2]

    def test_from_stdin(self, world: World, spoilt: Path) -> None:
        with world.good.open("rb") as source:
            done = subprocess.run(
                [*CDCCA, "apply", spoilt, "--if-better", world.probe],
                stdin=source,
                capture_output=True,
                text=True,
            )
        assert done.returncode == 0, done.stderr
        assert Device.open(spoilt).sequence == 2

    def test_what_the_device_uses_is_compared_and_not_the_updates_base(
        self, world: World, device: Path, tmp_path: Path, capfd: Capture
    ) -> None:
        """Against sequence 0, which is kept, and no better than it; but the device is spoilt."""
        mirror = shutil.copytree(world.spoilt, tmp_path / "mirror")
        base, start = Device.open(mirror), Device.open(device).read_overlay()
        after = {name: value * np.float32(1 + 1e-6) for name, value in start.items()}
        how = CompressSettings(codec="exact", since=0)
        made = sender.compress(worlds.adaptation(after, base), base, how)
        update = tmp_path / "past.cdcca"
        update.write_bytes(worlds.file_of(made.update))
        code, _, found = apply(capfd, mirror, update, "--if-better", world.probe)
        assert (code, found["measured"]["before"]) == (0, 0)
        assert found["measured"]["after"] > 40

    def test_a_damaged_overlay_is_repaired_if_that_is_better(
        self, world: World, spoilt: Path, capfd: Capture
    ) -> None:
        """The device uses the spoilt one that it keeps; the update of the damaged one comes."""
        assert run("apply", spoilt, world.good) == 0
        (spoilt / Device.open(spoilt).current.file).write_bytes(b"")
        code, _, found = apply(capfd, spoilt, world.good, "--if-better", world.probe)
        assert (code, found["status"], found["measured"]["before"]) == (0, "applied", 0)
        Device.open(spoilt).read_overlay()
        assert Device.open(spoilt).digest == found["digest"] == Device.open(world.device).digest


class TestDrift:
    """`--max-drift`: how far the model would be from the one of sequence 0, without labels."""

    def pictures(self, world: World, folder: Path) -> Path:
        """The probe's pictures alone: captions are asked, and no answer is known."""
        folder.mkdir()
        for picture in world.probe.glob("*.jpg"):
            shutil.copy(picture, folder)
        return folder

    def test_an_update_that_moves_too_far_is_refused(
        self, world: World, device: Path, tmp_path: Path, capfd: Capture
    ) -> None:
        pictures, before = self.pictures(world, tmp_path / "frames"), files(device)
        how = ["--if-better", pictures, "--max-drift"]
        code, err, found = apply(capfd, device, world.bad, *how, "0.5")
        assert code == 80 and files(device) == before
        moved = found["measured"]["drift"]
        assert moved > 0.5 and found["measured"] == {"drift": moved}
        assert "update 1 moves this device too far, nothing" in err
        assert f"nothing was changed: {moved:.3g} nats from sequence 0, more than 0.5" in err
        code, err, found = apply(capfd, device, world.bad, *how, f"{moved * 1.01}")
        assert code == 0 and found["measured"] == {"drift": pytest.approx(moved)}
        assert f"; drift {moved:.3g} nats" in err
        assert files(device) == files(world.spoilt)

    def test_the_way_back_to_sequence_0_has_none(
        self, world: World, spoilt: Path, capfd: Capture
    ) -> None:
        """With labels, the score is compared as well."""
        how = ["--if-better", world.probe, "--max-drift", "0.001"]
        code, _, found = apply(capfd, spoilt, world.good, *how)
        assert code == 0
        assert found["measured"]["drift"] == pytest.approx(0, abs=1e-6)
        assert found["measured"]["metric"] == "da"

    def test_outputs_that_are_no_numbers_are_too_far(
        self, world: World, device: Path, tmp_path: Path, capfd: Capture
    ) -> None:
        after = Device.open(device).read_overlay()
        for name, value in after.items():
            if name.endswith("norm.weight"):
                value[:] = 1e38
        broken = tmp_path / "broken.cdcca"
        broken.write_bytes(worlds.file_of(to(Device.open(device), after)))
        pictures = self.pictures(world, tmp_path / "frames")
        how = ["--if-better", pictures, "--max-drift", "1000"]
        code, _, _ = apply(capfd, device, broken, *how)
        assert code == 80

    def test_frames_without_labels_need_it(
        self, world: World, device: Path, tmp_path: Path, capfd: Capture
    ) -> None:
        pictures = self.pictures(world, tmp_path / "frames")
        code, err, _ = apply(capfd, device, world.bad, "--if-better", pictures)
        assert code == 65 and "labels" in err
        code, err, _ = apply(capfd, device, world.bad, "--max-drift", "1")
        assert code == 2 and "--max-drift: does nothing without --if-better" in err


@pytest.mark.usefixtures("no_model")
class TestNotMeasured:
    def test_the_update_that_the_device_is_at(
        self, world: World, spoilt: Path, capfd: Capture
    ) -> None:
        code, _, found = apply(capfd, spoilt, world.bad, "--if-better", world.probe)
        assert (code, found["status"]) == (0, "already applied")
        assert "measured" not in found
        assert files(spoilt) == files(world.spoilt)

    def test_a_trust_list(self, world: World, device: Path, tmp_path: Path) -> None:
        key = signatures.generate()
        key_files.write_key_pair(tmp_path / "ann", key)
        made = tmp_path / "1.trust"
        how = ["--after", device, "--sign", tmp_path / "ann", "-o", made]
        assert run("trust", "--key", tmp_path / "ann.pub", *how) == 0
        assert run("apply", device, made, "--unsigned", "--if-better", tmp_path / "absent") == 0
        trust = Device.open(device).trust
        assert trust is not None and trust.keys == (key.public,)

    def test_what_the_channel_refuses(
        self, world: World, device: Path, spoilt: Path, tmp_path: Path, capfd: Capture
    ) -> None:
        """Each with its own code, also where the probe is not there."""
        newer = tmp_path / "newer.cdcca"
        newer.write_bytes(world.bad.read_bytes().replace(rb"\"version\":2", rb"\"version\":3"))
        cut = tmp_path / "cut.cdcca"
        cut.write_bytes(world.bad.read_bytes()[:-1])
        assert run("apply", spoilt, world.good) == 0
        for folder, update, code in (
            (device, cut, 65),
            (device, newer, 76),
            (device, world.good, 78),
            (spoilt, world.bad, 79),
        ):
            before = files(folder)
            for probe in (world.probe, tmp_path / "absent"):
                assert run("apply", folder, update, "--if-better", probe) == code
            assert files(folder) == before

    @pytest.mark.parametrize(
        ("labels", "code", "reason"),
        [
            ({}, 65, "no labels in it"),
            ({"answers": ["red"], "difficult_direct_answer": True}, 65, "for da, mc, cider"),
            ({"answers": ["red"], "image": "absent.jpg"}, 66, "no image"),
            (None, 66, "no such file or folder"),
        ],
    )
    def test_probes_that_cannot_be(
        self,
        world: World,
        device: Path,
        tmp_path: Path,
        capfd: Capture,
        labels: dict[str, object] | None,
        code: int,
        reason: str,
    ) -> None:
        probe = tmp_path / "probe.jsonl"
        if labels is not None:
            image = next(world.probe.glob("*.jpg")).name
            probe.write_text(json.dumps({"id": "1", "image": image, "prompt": "what?"} | labels))
        before = files(device)
        found = apply(capfd, device, world.bad, "--if-better", probe, "--images", world.probe)
        assert found[0] == found[2]["exit_code"] == code and "measured" not in found[2]
        assert reason in found[1] and found[1].count("\n") == 1
        assert files(device) == before

    @pytest.mark.parametrize(
        ("options", "reason"),
        [
            (["--metric", "bleu4"], "bleu4: expected one of da, mc, cider"),
            (["--tolerance", "-1"], "-1.0: expected 0 or more points"),
            (["--tolerance", "nan"], "nan: expected 0 or more points"),
            (["--tolerance", "inf"], "inf: expected 0 or more points"),
            (["--compute", "tpu"], "--compute tpu: expected one of"),
            (["--batch-size", "0"], "batch-size 0: expected 1 or more"),
            (["--rollback"], "--rollback takes no update"),
        ],
    )
    def test_options_that_cannot_be(
        self, world: World, device: Path, capfd: Capture, options: list[str], reason: str
    ) -> None:
        before = files(device)
        update = [] if "--rollback" in options else [world.bad]
        assert run("apply", device, *update, "--if-better", world.probe, *options) == 2
        assert reason in capfd.readouterr().err
        assert files(device) == before

    @pytest.mark.parametrize(
        "options", [["--metric", "da"], ["--tolerance", "1"], ["--images", "."]]
    )
    def test_options_that_need_it(
        self, world: World, device: Path, capfd: Capture, options: list[str]
    ) -> None:
        assert run("apply", device, world.bad, *options) == 2
        assert "does nothing without --if-better" in capfd.readouterr().err
        assert Device.open(device).sequence == 0

    def test_a_metric_that_the_labels_do_not_allow(
        self, world: World, device: Path, tmp_path: Path, capfd: Capture
    ) -> None:
        probe = tmp_path / "probe.jsonl"
        image = next(world.probe.glob("*.jpg")).name
        probe.write_text(json.dumps({"id": "1", "image": image, "captions": ["a red kite"]}))
        how = ["--if-better", probe, "--images", world.probe, "--metric", "da"]
        assert run("apply", device, world.bad, *how) == 2
        assert "has no labels for it, only for cider" in capfd.readouterr().err


class TestSigned:
    @pytest.fixture
    def key(self) -> signatures.PrivateKey:
        return signatures.generate()

    @pytest.fixture
    def trusting(self, spoilt: Path, key: signatures.PrivateKey) -> Path:
        Device.open(spoilt).install_trust(Trust(1, 1, (key.public,)))
        return spoilt

    def test_an_unsigned_one_is_refused_before_torch_is_imported(
        self, world: World, trusting: Path
    ) -> None:
        program = (
            "import sys; from cdcca_cli.main import main; code = main(sys.argv[1:]);"
            "heavy = {'torch', 'transformers', 'PIL'} & set(sys.modules);"
            "sys.exit(str(heavy) if heavy else code)"
        )
        before = files(trusting)
        command = [sys.executable, "-c", program, "apply", trusting, world.good]
        done = subprocess.run([*command, "--if-better", world.probe], capture_output=True)
        assert done.returncode == 77, done.stderr
        assert files(trusting) == before

    def test_a_signed_one_is_measured_and_applied(
        self, world: World, trusting: Path, key: signatures.PrivateKey, tmp_path: Path
    ) -> None:
        with world.good.open("rb") as source:
            update = signatures.sign(read_update(source), [key])
        path = tmp_path / "signed.cdcca"
        path.write_bytes(worlds.file_of(update))
        assert run("apply", trusting, path, "--if-better", world.probe) == 0
        assert Device.open(trusting).current.signed_by == (key.public,)


class TestMeanwhile:
    """Another process changes the folder while the update is measured. No model is needed here."""

    @pytest.fixture
    def folders(self, tmp_path: Path) -> tuple[Device, Device]:
        """A device and its mirror at sequence 1, which keep two overlays."""
        device, mirror = (
            Device.create(tmp_path / name, worlds.SETTINGS, worlds.overlay(), keep=2)
            for name in ("device", "mirror")
        )
        first = worlds.next_update(mirror)
        for folder in (device, mirror):
            receiver.apply(folder, first)
        return device, mirror

    def received(
        self,
        monkeypatch: pytest.MonkeyPatch,
        device: Device,
        update: Update,
        meanwhile: Callable[[Device], object],
    ) -> Any:
        """Measuring finds the update good; `meanwhile` happens while it does."""

        def measure(*_: object) -> None:
            meanwhile(Device.open(device.path))

        monkeypatch.setattr(acceptance, "measure", measure)
        trial = AcceptanceSettings(Path("probe"))
        data = BytesIO(worlds.file_of(update))
        return acceptance.receive(Device.open(device.path), data, trial, where="file")

    def test_an_overlay_that_it_was_not_measured_against(
        self, folders: tuple[Device, Device], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Its base is kept and it is newer, so the ordinary checks alone would let it pass."""
        device, mirror = folders
        second = worlds.next_update(mirror, seed=2)
        receiver.apply(mirror, second)
        third = worlds.next_update(mirror, seed=3, settings=CompressSettings(since=0))
        with pytest.raises(WrongBase, match=r"which is now at .*: apply the update again"):
            self.received(monkeypatch, device, third, lambda it: receiver.apply(it, second))
        device = Device.open(device.path)
        assert device.digest == second.target
        assert receiver.apply(device, third).status == "applied"

    def test_a_rollback(
        self, folders: tuple[Device, Device], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        device, mirror = folders
        with pytest.raises(WrongBase, match="the device was rolled back to 0"):
            self.received(monkeypatch, device, worlds.next_update(mirror), receiver.rollback)
        assert Device.open(device.path).sequence == 0

    def test_the_very_update(
        self, folders: tuple[Device, Device], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        device, mirror = folders
        update = worlds.next_update(mirror)
        done = self.received(monkeypatch, device, update, lambda it: receiver.apply(it, update))
        assert done.status == "already applied"

    def test_nothing(self, folders: tuple[Device, Device], monkeypatch: pytest.MonkeyPatch) -> None:
        device, mirror = folders
        update = worlds.next_update(mirror)
        assert self.received(monkeypatch, device, update, lambda _: None).status == "applied"
        assert Device.open(device.path).digest == update.target
