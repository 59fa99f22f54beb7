"""Every family through all commands, as a user runs them, with a larger teacher of the same tower.

In one process, so that what is imported once is not imported for each command.
"""

import shutil
from pathlib import Path

import pytest

from cdcca_cli.main import main
from tests import zoo


def run(*arguments: object) -> None:
    given = [str(argument) for argument in arguments]
    assert main([*given, "--quiet"] if given[0] != "inspect" else given) == 0, " ".join(given)


def test_the_whole_pipe(
    student: Path, teacher: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Each payload gives an update that changes a device, which then answers again."""
    frames, device, mirror = (tmp_path / name for name in ("frames", "device", "mirror"))
    frames.mkdir()
    for shape, image in zoo.images().items():
        image.save(frames / f"{shape}.png")
    for folder in (device, mirror):
        run("init", folder, "--checkpoint", student)
    asked = (frames, "--prompt", "what is it?", "--compute", "cpu")
    run("infer", *asked, "-m", device, "-o", tmp_path / "before")
    trained = ("--teacher", teacher, "--student", mirror, "--epochs", 1, "--compute", "cpu")
    for payload in ("tokens", "frame"):
        other = Path(shutil.copytree(device, tmp_path / payload))
        shards, adaptation, update, after = (
            tmp_path / f"{payload}.{name}" for name in ("tokens", "safetensors", "cdcca", "jsonl")
        )
        sent = ("--payload", payload, "--top", "100%")
        run("sample", *asked, *sent, "-m", device, "-o", shards)
        run("distill", shards, *trained, "-o", adaptation)
        run("compress", adaptation, "--base", mirror, "-o", update)
        run("apply", other, update)
        run("infer", *asked, "-m", other, "-o", after)
        assert after.read_text() != (tmp_path / "before").read_text()
        for path in (shards, adaptation, update, other):
            run("inspect", path)
    assert capsys.readouterr().err == ""
