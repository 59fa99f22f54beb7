"""The README says what is true: its tables and commands come from, or are held to, the code."""

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from cdcca_cli.errors import exit_codes
from cdcca_cli.main import COMMANDS

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")


def test_exit_codes_are_those_of_the_classes() -> None:
    table = "".join(f"| {code} | {meaning} |\n" for code, meaning in exit_codes())
    assert "| code | means |\n|---|---|\n" + table in README


def test_every_command_is_named() -> None:
    for command in COMMANDS:
        assert f"cdcca {command}" in README, command


def test_every_example_is_named_and_exists() -> None:
    named = set(re.findall(r"`(examples/[\w./-]+)`", README))
    for path in named:
        assert (ROOT / path).exists(), path
    for script in (ROOT / "examples").glob("*.sh"):
        assert f"examples/{script.name}" in named, script.name


def test_families_are_those_that_load() -> None:
    from cdcca_cli.families import FAMILIES

    table = README.split("## Models")[1].split("##")[0]
    assert set(re.findall(r"^\| `([\w-]+)` \|", table, re.MULTILINE)) == set(FAMILIES)


def _command_lines() -> list[str]:
    """The cdcca commands of the README's shell blocks, one a pipe's stage."""
    blocks = re.findall(r"```sh\n(.*?)```", README, re.DOTALL)
    text = "\n".join(blocks).replace("\\\n", " ")
    text = re.sub(r"#.*", "", text)
    parts = re.split(r"\||&&|\n", text)
    return [part.strip() for part in parts if part.strip().startswith("cdcca ")]


@pytest.mark.parametrize("line", _command_lines())
def test_every_option_it_shows_exists(line: str, capfd: pytest.CaptureFixture[str]) -> None:
    from cdcca_cli.main import main

    words = shlex.split(line)
    assert main([words[1], "--help"]) == 0
    shown = capfd.readouterr().out
    for word in words[2:]:
        if word.startswith("-"):
            assert re.search(rf"(?<![\w-]){re.escape(word)}(?![\w-])", shown), word


@pytest.mark.slow
def test_every_block_runs_as_it_stands_and_warns_of_nothing(tmp_path: Path) -> None:
    """One after the other, in one folder, as a reader would type them (but the installation)."""
    command = tmp_path / "bin" / "cdcca"
    command.parent.mkdir()
    command.write_text(
        f"#!/bin/sh\nPYTHONPATH='{ROOT}' exec '{sys.executable}' -m cdcca_cli \"$@\"\n"
    )
    command.chmod(0o755)
    parts = re.split(r"^## ", README, flags=re.MULTILINE)
    blocks = [
        block for part in parts[1:] for block in re.findall(r"```sh\n(.*?)```", part, re.DOTALL)
    ]
    assert len(blocks) == 8
    done = subprocess.run(
        ["bash", "-euxo", "pipefail", "-c", "\n".join(blocks)],
        cwd=tmp_path,
        env=os.environ | {"PATH": f"{command.parent}:{os.environ['PATH']}", "OMP_NUM_THREADS": "1"},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=900,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert "warning" not in done.stderr.lower()
    assert (tmp_path / "rounds.svg").exists() and (tmp_path / "rate.png").exists()
