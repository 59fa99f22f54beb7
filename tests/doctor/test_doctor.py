"""`cdcca doctor` as a whole: a machine, checkpoints, device folders, pairs, a repository."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from cdcca_cli import models
from cdcca_cli.doctor import checkpoint, frame, identities, machine, memory
from cdcca_cli.families import FAMILIES
from cdcca_cli.formats.device import Device
from cdcca_cli.main import main
from cdcca_cli.memory import Memory
from tests import tiny
from tests.doctor.conftest import MADE, Checkpoints
from tests.doctor.hub import Hub, serving

ROOT = Path(__file__).parents[2]
LLAVA = "llava with CLIP"


@pytest.fixture(autouse=True)
def small_frame(monkeypatch: pytest.MonkeyPatch) -> None:
    """A frame that is coded in no time."""
    monkeypatch.setattr(frame, "SIZE", (192, 108))


def doctor(capfd: pytest.CaptureFixture[str], *arguments: object, code: int = 0) -> tuple[Any, str]:
    """The JSON object, if any, and stderr."""
    found = main(["doctor", *map(str, arguments), "--json", "--threads", "1"])
    out, err = capfd.readouterr()
    assert found == code, err
    return json.loads(out) if out else None, err


def test_the_machine(capfd: pytest.CaptureFixture[str]) -> None:
    found, _ = doctor(capfd)
    assert found["kind"] == "machine"
    assert {"torch", "4 bits", "Java", "PyAV"} <= {check["name"] for check in found["checks"]}


def test_a_machine_without_something_needed_is_shown_and_refused(
    capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(machine.REQUIRED, "no-such-package", "does nothing")
    found, err = doctor(capfd, code=69)
    assert found["kind"] == "machine"
    assert "needed and missing: no-such-package: pip install no-such-package" in err


@pytest.mark.parametrize("name", [name for name in MADE if name.startswith("zoo: ")])
def test_every_family(
    name: str, checkpoints: Checkpoints, capfd: pytest.CaptureFixture[str]
) -> None:
    """What README's table of families needs is there and right."""
    folder = checkpoints[name]
    if json.loads((folder / "config.json").read_text())["model_type"] not in FAMILIES:
        pytest.skip(f"{name} is not in the table of families")
    found, _ = doctor(capfd, folder)
    model = models.load(folder, compute="cpu")
    (seen,) = model.see(model.prepare([frame.like_a_photograph(*frame.SIZE)]))
    count, channels = seen.tokens.shape
    assert (found["family"], found["architecture"]) == (model.family, model.row.architecture)
    assert (found["frame"]["tokens"], found["frame"]["channels"]) == (count, channels)
    assert found["frame"]["bytes"]["int8"] == count * (channels + 4)
    assert found["frame"]["bytes"]["float16"] == 2 * count * channels
    assert found["frame"]["bytes"]["jpeg"] > 100
    parameters = sum(one.numel() for one in model.module.parameters())
    assert sum(found["parameters"].values()) == parameters
    assert found["stored_bytes"]["float32"] >= 4 * parameters
    assert found["digests"]["tower"] == model.tower_digest
    assert all(needs["train"] >= needs["infer"] > 0 for needs in found["memory_bytes"].values())
    assert len(found["identities"]["tried"]) == 4
    assert not any(one["fails"] for one in found["identities"]["tried"])
    explained = [one["note"] for one in found["identities"]["tried"] if one["note"]]
    assert all(note in found["exceptions"] for note in explained)
    overlay = model.initial_overlay(("norm", "bias", "query", "lora"), 16, 0)
    assert sum(found["groups"].values()) == sum(array.size for array in overlay.values())


def test_a_device_folder_is_its_checkpoint(
    tmp_path: Path, checkpoints: Checkpoints, capfd: pytest.CaptureFixture[str]
) -> None:
    device = tmp_path / "device"
    options = ["--groups", "norm,lora", "--lora-rank", "3", "--qformer-layers", "1"]
    named = ["--checkpoint", str(checkpoints["blip_2"])]
    assert main(["init", str(device), *named, *options]) == 0
    capfd.readouterr()
    found, _ = doctor(capfd, device)
    whole, _ = doctor(capfd, checkpoints["blip_2"])
    assert found["checkpoint"] == whole["checkpoint"] == str(checkpoints["blip_2"])
    assert found["digests"] == whole["digests"]
    assert found["parameters"]["connector"] < whole["parameters"]["connector"]
    assert set(found["groups"]) == {"norm", "lora.language", "lora.connector"}
    assert not any(one["fails"] for one in found["identities"]["tried"])
    overlay = Device.open(device).read_overlay()
    assert sum(found["groups"].values()) == sum(array.size for array in overlay.values())


def test_a_device_folder_of_another_tower_is_refused(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    folder = tiny.llava_checkpoint(tmp_path / "checkpoint")
    assert main(["init", str(tmp_path / "device"), "--checkpoint", str(folder)]) == 0
    capfd.readouterr()
    tiny.llava_checkpoint(folder, seed=1)
    _, err = doctor(capfd, tmp_path / "device", code=65)
    assert "restore that checkpoint" in err


def test_the_shipped_student(capfd: pytest.CaptureFixture[str]) -> None:
    found, _ = doctor(capfd, "shipped:student")
    assert found["identities"]["tried"] and found["digests"]["tower"]


def test_settings_without_weights(
    tmp_path: Path, checkpoints: Checkpoints, capfd: pytest.CaptureFixture[str]
) -> None:
    """All sizes are known from the settings; nothing is tried."""
    folder = tmp_path / "settings"
    shutil.copytree(checkpoints[LLAVA], folder)
    (folder / "model.safetensors").unlink()
    found, _ = doctor(capfd, folder)
    whole, _ = doctor(capfd, checkpoints[LLAVA])
    assert found["digests"] == {**whole["digests"], "tower": None}
    assert found["identities"] == {"tried": [], "why_not": "the checkpoint has no weights here"}
    for name in ("parameters", "frame", "groups"):
        assert found[name] == whole[name]
    assert found["memory_bytes"]["float32"] == whole["memory_bytes"]["float32"]


def test_a_model_that_does_not_fit_is_not_loaded(
    checkpoints: Checkpoints,
    capfd: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(checkpoint.machine, "main_memory", lambda: Memory(10**8, 10**9))
    found, _ = doctor(capfd, checkpoints[LLAVA], "--compute", "cpu")
    why = found["identities"]["why_not"]
    assert why.startswith("loading it in float32 needs about 55") and "100 MB is free" in why


def test_an_identity_that_fails_is_shown_and_refused(
    checkpoints: Checkpoints,
    capfd: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(identities, "next_logits", lambda *_: torch.zeros(()))
    found, err = doctor(capfd, checkpoints[LLAVA], code=69)
    assert [one["name"] for one in found["identities"]["tried"] if one["fails"]] == [
        "stored = pixels"
    ]
    assert "stored = pixels does not hold" in err and "METHOD" not in err


@pytest.mark.parametrize(
    ("operand", "code", "words"),
    [
        ("gone/", 66, "no such checkpoint folder"),
        ("empty", 66, "it has no config.json"),
        ("text", 2, "not a vision-language family"),
    ],
)
def test_what_is_no_checkpoint_is_refused(
    operand: str, code: int, words: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "empty").mkdir()
    tiny.text_checkpoint(tmp_path / "text")
    path = f"{tmp_path}/{operand}"
    for operands in ([path], [path, "shipped:teacher"], ["shipped:student", path]):
        found, err = doctor(capfd, *operands, code=code)
        assert found is None and words in err and err.count("\n") == 1


def test_a_model_that_cannot_look_at_a_frame_is_refused(
    tmp_path: Path, checkpoints: Checkpoints, capfd: pytest.CaptureFixture[str]
) -> None:
    """Its tiles are other ones than its connector takes."""
    folder = Path(shutil.copytree(checkpoints["zoo: smolvlm"], tmp_path / "faulty"))
    settings = json.loads((folder / "preprocessor_config.json").read_text())
    del settings["max_image_size"]
    (folder / "preprocessor_config.json").write_text(json.dumps(settings))
    _, err = doctor(capfd, folder, code=65)
    assert "it cannot look at a picture" in err and err.count("\n") == 1


# ---- pairs


def test_the_shipped_pair(capfd: pytest.CaptureFixture[str]) -> None:
    found, _ = doctor(capfd, "shipped:student", "shipped:teacher")
    assert found["tower"]["is_shared"] and found["vocabulary"]["is_shared"]
    assert not any(found["open"]["payloads"].values())
    assert not any(found["open"]["methods"].values())
    assert found["open"]["kl"] == ""


def test_a_pair_that_shares_its_tower(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    student = tiny.q_checkpoint(tmp_path / "student")
    teacher = tiny.q_checkpoint(
        tmp_path / "teacher", width=128, seed=1, tower=tiny.tower_of(student)
    )
    found, _ = doctor(capfd, student, teacher)
    digest = models.load(student, compute="cpu").tower_digest
    assert found["tower"] == {"is_shared": True, "digest": digest, "difference": None}
    # The vision tower is all that is compared: a Q-Former with as many queries is enough.
    assert found["places"]["are_common"]


def test_a_pair_with_other_values_in_its_tower(
    tmp_path: Path, checkpoints: Checkpoints, capfd: pytest.CaptureFixture[str]
) -> None:
    """The name of the first parameter that differs; a Q-Former's queries can still be compared."""
    folder = checkpoints["blip_2"]
    shutil.copytree(folder, tmp_path / "other")
    tensors = load_file(folder / "model.safetensors")
    name = "vision_model.encoder.layers.1.mlp.fc1.bias"
    tensors[name] = tensors[name] + 1
    save_file(tensors, tmp_path / "other" / "model.safetensors", {"format": "pt"})
    found, _ = doctor(capfd, folder, tmp_path / "other")
    assert found["tower"]["difference"] == "encoder.layers.1.mlp.fc1.bias: other values"
    assert found["open"]["payloads"]["tokens"] and not found["open"]["payloads"]["frame"]
    assert found["open"]["methods"]["akd"] == found["open"]["kl"] == ""


def test_a_pair_of_two_families(
    checkpoints: Checkpoints, capfd: pytest.CaptureFixture[str]
) -> None:
    found, _ = doctor(capfd, checkpoints["blip_2"], checkpoints[LLAVA])
    assert not found["tower"]["is_shared"] and not found["places"]["are_common"]
    assert "send payload frame" in found["open"]["payloads"]["tokens"]
    assert found["open"]["methods"]["pseudo-label"] == ""
    assert "`method` kd" in found["open"]["methods"]["akd"]


def test_vocabularies(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """Another word in the tokenizer is another vocabulary."""
    student = tiny.llava_checkpoint(tmp_path / "student")
    teacher = tiny.llava_checkpoint(tmp_path / "teacher", width=128)
    assert doctor(capfd, student, teacher)[0]["open"]["kl"] == ""
    path = teacher / "tokenizer.json"
    table = json.loads(path.read_text())
    table["model"]["merges"].pop()
    words = table["model"]["vocab"]
    words["zebra"] = words.pop(max(words, key=words.get))
    path.write_text(json.dumps(table))
    found, _ = doctor(capfd, student, teacher)
    assert not found["vocabulary"]["is_shared"] and "leave `kl` out" in found["open"]["kl"]


def test_a_pair_without_weights(
    tmp_path: Path, checkpoints: Checkpoints, capfd: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "settings"
    shutil.copytree(checkpoints[LLAVA], folder)
    (folder / "model.safetensors").unlink()
    found, _ = doctor(capfd, folder, checkpoints[LLAVA])
    assert "not known" in found["tower"]["difference"]


# ---- the hub


def on_hub(root: Path, *operands: str) -> tuple[subprocess.CompletedProcess[str], Hub]:
    """A run in a process of its own, whose hub has `root`/repository as owner/name."""
    with serving(Hub(root / "repository", "owner/name")) as hub:
        environment = {
            **os.environ,
            "HF_ENDPOINT": hub.endpoint,
            "HF_HOME": str(root / "home"),
            "HF_HUB_OFFLINE": "0",
            "NO_PROXY": "127.0.0.1",
            "PYTHONPATH": str(ROOT),
        }
        command = [sys.executable, "-m", "cdcca_cli", "doctor", *operands, "--json"]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)
    return done, hub


def test_a_repository_is_examined_without_its_language_model(tmp_path: Path) -> None:
    """Of the 20 MB of a language model nothing is fetched."""
    folder = tiny.llava_checkpoint(tmp_path / "repository", width=512, text_layers=3)
    size = (folder / "model.safetensors").stat().st_size
    assert size > 20_000_000
    done, hub = on_hub(tmp_path, "owner/name", str(folder))
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["tower"]["is_shared"] and found["student"]["checkpoint"] == "owner/name"
    assert hub.sent["model.safetensors"] < 3 << 20
    assert not list((tmp_path / "home").rglob("model.safetensors"))


def test_a_repository_that_brings_its_own_code_is_refused_with_the_cure(tmp_path: Path) -> None:
    """As OpenGVLab's InternVL: transformers does not know its type, and would ask to trust it."""
    settings = {"model_type": "internvl_chat", "auto_map": {"AutoConfig": "its_own.Config"}}
    (tmp_path / "repository").mkdir()
    (tmp_path / "repository" / "config.json").write_text(json.dumps(settings))
    done, _ = on_hub(tmp_path, "owner/name")
    assert done.returncode == 2 and done.stderr.count("\n") == 1
    assert "never run: use internvl" in done.stderr


def test_a_repository_cannot_be_fetched_offline(
    capfd: pytest.CaptureFixture[str],
) -> None:
    _, err = doctor(capfd, "owner/name", code=69)
    assert "not a folder here" in err


# ---- for people


def test_the_lines_for_people(
    checkpoints: Checkpoints,
    capfd: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("cdcca_cli.streams.is_terminal", lambda which: which == "stdout")
    text = {}
    llava = str(checkpoints[LLAVA])
    for operands in ((), (llava,), (llava, str(checkpoints["blip_2"]))):
        assert main(["doctor", *operands, "--threads", "1"]) == 0
        text[len(operands)] = capfd.readouterr().out
    assert "\ntorch " in text[0] and torch.__version__ in text[0]
    assert "9 tokens of 32 channels" in text[1]
    assert "stored = pixels" in text[1] and "holds (off by" in text[1]
    assert "about 501 MB to infer" in text[1]
    assert "estimated from sizes" in text[1] and "one model that was measured" in text[1]
    assert "same vision tower" in text[2] and "no (" in text[2]
    assert "`" not in "".join(text.values()), "names of settings, not options, for people"


def test_the_frame_is_like_a_photograph() -> None:
    """Its amplitude falls with frequency to the power of 1.2; the same each time."""
    image = frame.like_a_photograph(256, 256)
    assert image.tobytes() == frame.like_a_photograph(256, 256).tobytes()
    assert image.tobytes() != frame.like_a_photograph(256, 256, seed=1).tobytes()
    grey = np.asarray(image, np.float64).mean(2)
    amplitude = np.abs(np.fft.rfft2(grey - grey.mean()))[1:64, 1:64]
    frequency = np.hypot(*np.meshgrid(np.arange(1, 64), np.arange(1, 64)))
    slope, _ = np.polyfit(np.log(frequency).ravel(), np.log(amplitude).ravel(), 1)
    assert slope == pytest.approx(-1.2, abs=0.1)


def test_every_format_has_its_memory() -> None:
    assert set(memory.NUM_BYTES) == {"float32", "bfloat16", "int8", "nf4"}
