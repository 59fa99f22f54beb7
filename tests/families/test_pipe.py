"""Every family through all commands, as a user runs them, with a larger teacher of the same tower.

In one process, so that what is imported once is not imported for each command.
"""

from pathlib import Path

import pytest

from cdcca_cli.main import main
from tests import zoo


def run(*arguments: object) -> None:
    given = [str(argument) for argument in arguments]
    assert main([*given, "--quiet"] if given[0] != "inspect" else given) == 0, " ".join(given)


@pytest.mark.parametrize("payload", ["tokens", "frame"])
def test_the_whole_pipe(
    student: Path,
    teacher: Path,
    payload: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """The update changes the device, which then answers again."""
    frames, device, mirror = (tmp_path / name for name in ("frames", "device", "mirror"))
    shards, adaptation, update = (tmp_path / name for name in ("up.tokens", "a", "u.cdcca"))
    frames.mkdir()
    for seed in range(2):
        for shape, image in zoo.images(seed=seed).items():
            image.save(frames / f"{shape}-{seed}.png")
    for folder in (device, mirror):
        run("init", folder, "--checkpoint", student)
    before, after = tmp_path / "before", tmp_path / "after"
    asked = (frames, "-m", device, "--prompt", "what is it?", "--compute", "cpu")
    run("infer", *asked, "-o", before)
    run("sample", *asked, "--payload", payload, "--top", "100%", "-o", shards)
    trained = ("--teacher", teacher, "--student", mirror, "--epochs", 1, "--compute", "cpu")
    run("distill", shards, *trained, "-o", adaptation)
    run("compress", adaptation, "--base", mirror, "-o", update)
    run("apply", update, "-m", device)
    run("infer", *asked, "-o", after)
    assert before.read_text() != after.read_text()
    for path in (shards, adaptation, update, device):
        run("inspect", path)
    assert capsys.readouterr().err == ""
