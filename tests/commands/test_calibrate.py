"""`cdcca calibrate`, as a user runs it; and the codebook that ships with the student."""

import json
from pathlib import Path
from typing import BinaryIO

import numpy as np
import pytest

import cdcca_cli
from cdcca_cli.downlink.signatures import signers
from cdcca_cli.formats.codebook import read_codebook
from cdcca_cli.main import main
from tests import tiny

Capture = pytest.CaptureFixture[str]
ASSETS = Path(cdcca_cli.__file__).parent / "assets"


def frames(folder: Path, count: int, seed: int) -> Path:
    """Pictures with one question each, and a file that is no picture."""
    folder.mkdir()
    lines = []
    for number, image in enumerate(tiny.images(count, seed=seed)):
        image.save(folder / f"{number}.png")
        lines.append(
            json.dumps({"image": f"{number}.png", "id": f"{number}", "prompt": "how many?"})
        )
    (folder / "frames.jsonl").write_text("\n".join(lines) + "\n")
    return folder


@pytest.fixture
def mirror(tiny_pair: tuple[Path, Path], tmp_path: Path) -> Path:
    assert (
        main(["init", str(tmp_path / "mirror"), "--checkpoint", str(tiny_pair[1]), "--quiet"]) == 0
    )
    return tmp_path / "mirror"


def test_a_signed_codebook(
    tiny_pair: tuple[Path, Path], mirror: Path, tmp_path: Path, capfd: Capture
) -> None:
    assert main(["keygen", str(tmp_path / "key"), "--quiet"]) == 0
    source, other = frames(tmp_path / "a", 9, seed=1), frames(tmp_path / "b", 3, seed=2)
    (source / "4.png").write_bytes(b"no picture")
    output = tmp_path / "tokens.codebook"
    arguments = ["calibrate", str(source), "--student", str(mirror), "--teacher", str(tiny_pair[0])]
    arguments += ["--evaluate", str(other), "--components", "5", "--set", "vectors=2"]
    assert main([*arguments, "--sign", str(tmp_path / "key"), "-o", str(output)]) == 0
    err = capfd.readouterr().err
    assert "left out: " in err and "a codebook of 5 of 32 components from 8 frames" in err
    with output.open("rb") as source_file:
        made = read_codebook(source_file)
    assert (made.components, made.num_frames, made.sequence) == (5, 8, 0)
    keys = [signature.key for signature in made.signatures]
    assert len(keys) == 1 and signers(made.signed_bytes(), made.signatures, keys) == (*keys,)
    assert main(["inspect", str(output)]) == 0
    found = json.loads(capfd.readouterr().out)
    assert found["digests"]["tower"] == made.tower and found["signatures_of"] == keys
    assert found["bytes"]["total"] == output.stat().st_size


def test_another_tower_is_refused(
    tiny_pair: tuple[Path, Path], blip2_opt: Path, mirror: Path, tmp_path: Path, capfd: Capture
) -> None:
    arguments = ["calibrate", str(frames(tmp_path / "a", 4, seed=1)), "--student", str(mirror)]
    output = tmp_path / "tokens.codebook"
    assert main([*arguments, "--teacher", str(blip2_opt), "-o", str(output)]) == 65
    assert "shares the student's tower" in capfd.readouterr().err
    assert not output.exists()


def test_the_shipped_codebook_is_the_shipped_pairs() -> None:
    """Its curve stays within the marks: 1.3 bits an element at less than 1 % of the loss."""
    from cdcca_cli import models

    with (ASSETS / "student/codebook.safetensors").open("rb") as source:
        found = read_codebook(source)
    teacher = models.load("shipped:teacher", compute="cpu")
    assert (found.tower, found.teacher) == (teacher.tower_digest, teacher.digest)
    assert teacher.can_read(found.num_tokens, found.channels) and found.num_frames == 80
    assert any(point.bits < 1.3 and point.loss < 0.01 for point in found.curve.tokens)


def test_from_what_a_device_sent(
    tiny_pair: tuple[Path, Path], mirror: Path, tmp_path: Path, capfd: Capture
) -> None:
    """Tokens as they were sent give the codebook of the frames themselves; half of them do not."""
    source, uplink = frames(tmp_path / "a", 9, seed=1), str(tmp_path / "up.tokens")
    sample = ["sample", str(source), "-m", str(mirror), "--top", "100%", "-o", uplink, "--quiet"]
    sample += ["--payload", "tokens", "--codec", "float32", "--set", "repeats=true"]
    arguments = ["--student", str(mirror), "--teacher", str(tiny_pair[0]), "--components", "5"]
    digests = []
    assert main(sample) == 0
    for name in (uplink, str(source)):
        output = tmp_path / "tokens.codebook"
        assert main(["calibrate", name, *arguments, "-o", str(output), "--quiet"]) == 0
        with output.open("rb") as file:
            digests.append({name: array.tobytes() for name, array in _tensors(file).items()})
    assert digests[0] == digests[1]
    assert main([*sample, "--keep", "50%"]) == 0
    assert main(["calibrate", uplink, *arguments, "-o", str(tmp_path / "no")]) == 65
    assert "only a part of its tokens was sent" in capfd.readouterr().err


def _tensors(file: BinaryIO) -> dict[str, np.ndarray]:
    return read_codebook(file).tensors()
