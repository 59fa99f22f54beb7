"""Sampling by predictions without a model: the same bytes as with it, and nothing heavy loaded."""

import io
import json
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from cdcca_cli.datasets import open_frames
from cdcca_cli.errors import BadData, Unavailable
from cdcca_cli.formats import shard_stream
from cdcca_cli.formats.device import Device
from cdcca_cli.formats.predictions import ENTROPIES, Prediction, encode_line, read_predictions
from cdcca_cli.models import LoadedModel, load_device
from cdcca_cli.models.initial import create_device
from cdcca_cli.skipped import Skipped
from cdcca_cli.text import parse_amount
from cdcca_cli.uplink.coding import Coder
from cdcca_cli.uplink.picked import KnownModel, known_model
from cdcca_cli.uplink.running import Running
from cdcca_cli.uplink.sampling import sample_frames
from cdcca_cli.uplink.settings import PayloadSettings, SampleSettings
from tests import tiny

WITHOUT = """
import sys
sys.modules.update(dict.fromkeys(("torch", "transformers", "peft", "torchvision")))
from cdcca_cli.main import main
sys.exit(main(sys.argv[1:]))
"""
"""A command where nothing heavy can be imported."""


@dataclass(frozen=True)
class World:
    """Devices by name, a manifest of frames, and predictions for their questions."""

    devices: dict[str, Path]
    frames: Path
    predictions: Path


def _frames(folder: Path) -> Path:
    """Frames of all shapes and files, one of them damaged, and nearly the same picture twice."""
    folder.mkdir()
    draw = np.random.default_rng(7)
    sizes = [(61, 97), (97, 61), (48, 48), (30, 20), (200, 133), (20, 400), (400, 20)]
    rows = []
    for number, (width, height) in enumerate([*sizes, sizes[1]]):
        coarse = draw.integers(0, 256, (4, 5, 3), np.uint8)
        if number == len(sizes):
            coarse = np.random.default_rng(7).integers(0, 256, (2, 4, 5, 3), np.uint8)[1]
        name = f"{number}.{('png', 'jpg', 'webp')[number % 3]}"
        Image.fromarray(coarse).resize((width, height)).save(folder / name, quality=30)
        rows.append({"image": name, "prompt": f"what is in {number % 7}?", "id": f"{number}-q"})
        rows.append({"image": name, "task": "caption", "id": f"{number}-c"})
        choices = ["red", "two", "a blue circle"]
        rows.append({"image": name, "prompt": "which?", "choices": choices, "id": f"{number}-w"})
    (folder / "bad.jpg").write_bytes((folder / "1.jpg").read_bytes()[:-200])
    rows.append({"image": "bad.jpg", "prompt": "what?", "id": "bad-q"})
    manifest = folder / "frames.jsonl"
    manifest.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return manifest


def _predictions(frames: Path, path: Path, model: str, **more: Any) -> Path:
    draw = np.random.default_rng(5)
    lines = []
    for frame in open_frames(str(frames)):
        for question in frame.questions:
            entropy = dict.fromkeys(ENTROPIES, float(draw.random()))
            made = Prediction(
                question.id, "x", question.task, question.prompt, "a", None, question.choices,
                None, entropy, None, model, None, float(draw.random()), **more,
            )  # fmt: skip
            lines.append(encode_line(made))
    path.write_text("".join(lines))
    return path


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    root = tmp_path_factory.mktemp("picked")
    crop = tiny.llava_checkpoint(root / "clip", seed=2)
    squash = tiny.llava_checkpoint(root / "siglip", tower="siglip", strategy="full", seed=3)
    tiny.image_processor(squash)
    devices = {}
    for name, checkpoint in (("crop", crop), ("squash", squash)):
        create_device(root / name, str(checkpoint))
        devices[name] = root / name
    frames = _frames(root / "frames")
    model = Device.open(devices["crop"]).digest
    return World(devices, frames, _predictions(frames, root / "some.predictions", model))


def without(*arguments: object) -> "subprocess.CompletedProcess[str]":
    """Run a command where nothing heavy can be imported."""
    words = [sys.executable, "-c", WITHOUT, *map(str, arguments)]
    return subprocess.run(words, capture_output=True, text=True, check=False)


@pytest.fixture(scope="module")
def models(world: World) -> dict[str, LoadedModel]:
    return {
        name: load_device(Device.open(path), compute="cpu", dtype="float32")
        for name, path in world.devices.items()
    }


def stream(
    world: World,
    device: str,
    model: LoadedModel | KnownModel,
    how: SampleSettings,
    coding: PayloadSettings,
) -> bytes:
    coder = Coder(model, coding, Device.open(world.devices[device]).codebook())
    earlier = read_predictions(world.predictions.read_text().splitlines())
    out, frames = io.BytesIO(), open_frames(str(world.frames))
    with shard_stream.writer(out) as write:
        for coded in sample_frames(model, frames, how, earlier, Skipped(), coder):
            write(coded.shard, coded.picture)
    return out.getvalue()


CASES: dict[str, tuple[SampleSettings, dict[str, Any]]] = {
    "usual": (SampleSettings(), {}),
    "margin": (SampleSettings(select="margin", top=parse_amount("30%")), {}),
    "random": (SampleSettings(select="random", top=parse_amount("5")), {}),
    "threshold": (SampleSettings(threshold=0.5), {}),
    "running": (SampleSettings(running=0.4), {}),
    "budget": (SampleSettings(budget_bytes=6000), {}),
    "webp": (SampleSettings(top=parse_amount("100%")), {"media": "webp", "quality": 80}),
    "larger": (SampleSettings(top=parse_amount("100%")), {"side": 64}),
}


@pytest.mark.parametrize("device", ["crop", "squash"])
@pytest.mark.parametrize("case", CASES)
def test_the_stream_is_that_of_the_model(
    world: World, models: dict[str, LoadedModel], device: str, case: str
) -> None:
    how, more = CASES[case]
    coding = PayloadSettings(payload="frame", **more)
    known = known_model(Device.open(world.devices[device]), how, coding, has_predictions=True)
    assert isinstance(known, KnownModel)
    wanted = stream(world, device, models[device], how, coding)
    assert stream(world, device, known, how, coding) == wanted
    assert len(wanted) > 200


@pytest.mark.parametrize("device", ["crop", "squash"])
def test_the_command_needs_nothing_heavy(
    world: World, models: dict[str, LoadedModel], device: str, tmp_path: Path
) -> None:
    how = SampleSettings(top=parse_amount("100%"), repeats=True)
    wanted = stream(world, device, models[device], how, PayloadSettings(payload="frame"))
    out = tmp_path / "a.tokens"
    given = ["sample", world.frames, "-m", world.devices[device], "-o", out, "--payload", "frame"]
    given += ["--predictions", world.predictions, "--top", "100%", "--set", "repeats=true"]
    ran = without(*given)
    assert ran.returncode == 0, ran.stderr
    assert out.read_bytes() == wanted
    assert "bad.jpg" in ran.stderr


def test_a_bad_frame_is_named_and_a_repeat_is_not_sent(world: World, tmp_path: Path) -> None:
    out, state = tmp_path / "a.tokens", tmp_path / "a.state"
    given = ["sample", world.frames, "-m", world.devices["crop"], "--payload", "frame"]
    given += ["--predictions", world.predictions, "--top", "100%", "--state", state]
    first = without(*given, "-o", out)
    assert first.returncode == 0, first.stderr
    assert "not sent again" in first.stderr
    again = without(*given, "-o", tmp_path / "b.tokens")
    assert again.returncode == 0 and "0 of 0 frames picked" in again.stderr


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--payload", "auto"], "`--payload` auto sends tokens"),
        (["--payload", "frame", "--select", "bald"], "bald asks the model"),
        (["--payload", "frame", "--select", "k-center"], "k-center asks the model"),
    ],
)
def test_what_needs_the_model_says_so_in_a_line(
    world: World, options: list[str], words: str, tmp_path: Path
) -> None:
    given = ["sample", world.frames, "-m", world.devices["crop"], "-o", tmp_path / "a.tokens"]
    ran = without(*given, "--predictions", world.predictions, *options)
    assert ran.returncode == Unavailable.exit_code
    assert "the model needs the package torch" in ran.stderr and len(ran.stderr.splitlines()) == 1
    assert words.replace("`", "") in ran.stderr.replace("`", "")


def test_without_predictions_the_model_is_needed(world: World, tmp_path: Path) -> None:
    given = ["sample", world.frames, "-m", world.devices["crop"], "-o", tmp_path / "a.tokens"]
    ran = without(*given, "--payload", "frame")
    assert ran.returncode == Unavailable.exit_code and "predictions" in ran.stderr
    assert "pip install" in ran.stderr, "the other cure"


def test_tokens_cannot_be_kept_of_a_picture(world: World, tmp_path: Path) -> None:
    given = ["sample", world.frames, "-m", world.devices["crop"], "-o", tmp_path / "a.tokens"]
    ran = without(*given, "--payload", "frame", "--predictions", world.predictions, "--keep", "50%")
    assert ran.returncode == 2 and "sends pictures" in ran.stderr


def test_a_device_without_a_profile_needs_the_model(world: World) -> None:
    device = Device.open(world.devices["crop"])
    how, coding = SampleSettings(), PayloadSettings(payload="frame")
    assert isinstance(known_model(device, how, coding, has_predictions=True), KnownModel)
    file = device.path / "profile.json"
    kept = file.read_bytes()
    file.unlink()
    try:
        assert "profile.json" in str(known_model(device, how, coding, has_predictions=True))
    finally:
        file.write_bytes(kept)


def test_entropies_of_two_kinds_are_never_compared(world: World, tmp_path: Path) -> None:
    device = world.devices["crop"]
    least = dict.fromkeys(ENTROPIES, 0.0)
    model = Device.open(device).digest
    other = _predictions(
        world.frames, tmp_path / "b", model, entropy_of="top20", entropy_least=least
    )
    lines = world.predictions.read_text().splitlines()
    mixed = tmp_path / "mixed"
    mixed.write_text("\n".join([*lines[:5], *other.read_text().splitlines()[5:]]) + "\n")
    given = ["sample", world.frames, "-m", device, "--payload", "frame", "-o", tmp_path / "c"]
    ran = without(*given, "--predictions", mixed)
    assert ran.returncode == BadData.exit_code
    assert "all tokens and top20, which cannot be compared" in ran.stderr
    assert without(*given, "--predictions", mixed, "--select", "margin").returncode == 0


def test_a_share_of_a_stream_begins_anew_with_another_kind() -> None:
    """The scores of earlier questions are of the same kind, too."""
    running = Running()
    running.begin("entropy mean")
    running.takes("vqa", 0.5, 1.0, 0.5)
    running.begin("entropy mean top20")
    assert running.to_json()["tasks"] == {}
