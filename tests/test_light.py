"""A light installation, as devices have it: what works without torch, and what the rest says.

`CDCCA_LIGHT_PYTHON` is the interpreter of one, or of several with colons between (.ci/run makes
them with the README's commands, one for each Python that it finds), and
`CDCCA_AARCH64_ROOT` a folder with a Python and packages for 64-bit ARM (tests/aarch64_root.sh).
Without them, the heavy packages are hidden from this interpreter.
"""

import json
import os
import re
import subprocess
import sys
import tomllib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from cdcca_cli import packages
from cdcca_cli.formats.adaptation import write_adaptation
from cdcca_cli.formats.device import Device
from cdcca_cli.main import COMMANDS
from tests.downlink import worlds
from tests.downlink.test_aarch64 import on_arm, root  # noqa: F401 (a fixture)

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
LIGHT_PYTHONS = [one for one in os.environ.get("CDCCA_LIGHT_PYTHON", "").split(":") if one]
MOST_MB = 160
HIDDEN = [*packages.LEFT_OUT, "timm", "torchvision", "matplotlib", "av", "fsspec", "scipy"]
# The paper's update changes 1,650,688 parameters.
SHAPES = {f"lm.layers.{n}.attn.q_proj.lora_B": (12_896, 32) for n in range(4)}
PROGRAM = """
import contextlib, io, json, sys, time
hidden, commands = json.loads(sys.argv[1]), json.loads(sys.argv[2])
sys.modules.update(dict.fromkeys(hidden))
from cdcca_cli.main import main
done = []
for command in commands:
    said, before = io.StringIO(), time.monotonic()
    with contextlib.redirect_stderr(said), contextlib.redirect_stdout(io.StringIO()):
        code = main(command)
    done.append([code, said.getvalue(), time.monotonic() - before])
heavy = sorted(name for name in hidden if sys.modules.get(name) is not None)
peak = int(open("/proc/self/status").read().split("VmHWM:")[1].split()[0]) / 1000
print(json.dumps({"done": done, "heavy": heavy, "peak_mb": peak}), file=sys.__stdout__)
"""


@dataclass(frozen=True)
class Line:
    """A command line; the exit code that it has; words of its message, or "": any."""

    words: tuple[str, ...]
    code: int = 0
    says: str = ""

    @property
    def name(self) -> str:
        return " ".join(word for word in self.words if "/" not in word)


def served_lines(at: Path, out: Path) -> list[Line]:
    """What a device does whose model another program runs, in a folder made by `served`."""
    device, frames = str(at / "device"), str(at / "frames")
    files = ("--base", str(at / "base.gguf"), "--mmproj", str(at / "mmproj.gguf"))
    sampled = ("--predictions", str(at / "predictions"), "--payload", "frame")
    return [
        Line(("export", device, *files, "-o", str(out / "gguf"))),
        Line(("export", device, "--to", "peft", "--drop", "norm,bias", "-o", str(out / "peft"))),
        Line(("export", device, "--to", "transformers", "-o", str(out / "tf")), 69, "the package"),
        Line(("sample", frames, "-m", device, *sampled, "-o", str(out / "up.tokens"))),
        Line(("infer", frames, "-m", device, "--server", "http://"), 2),  # what follows is HTTP's
    ]


def lines(folder: Path) -> list[Line]:
    """What a device does, in order, in a folder made by `prepared`."""
    at = {name: str(folder / name) for name in os.listdir(folder)}
    device, mirror, key = at["device"], at["mirror"], str(folder / "key")
    found = [
        Line(("doctor",)),
        Line(("inspect", device)),
        Line(("inspect", at["update"])),
        Line(("inspect", device, at["mirror"], at["update"])),
        Line(("inspect", at["shards"], "--text")),
        Line(("inspect", at["shards"], "-o", str(folder / "maps"))),
        Line(("eval", "--downlink", at["update"])),
        Line(("eval", "--uplink", at["shards"])),
        Line(("apply", device, at["update"])),
        Line(("apply", device, at["update"])),
        Line(("apply", device, "--rollback", "--notify", "true")),
        Line(
            ("compress", at["adaptation"], "--base", at["mirror"], "--no-measure", "-o", key + "u")
        ),
        Line(("keygen", key)),
        Line(("sign", key + "u", "--key", key, "-o", key + "s")),
        Line(("trust", "--key", key + ".pub", "--sign", key, "-o", key + "t")),
        Line(("apply", mirror, key + "t", "--unsigned")),
        Line(("apply", mirror, at["update"]), 77),
        Line(("apply", mirror, key + "s")),
        Line(("demo", "--export", str(folder / "frames"))),
        Line(("infer", str(folder / "frames" / "stream"), "-m", device), 69, "needs the package"),
        Line(("init", str(folder / "new")), 69, "needs the package torch, which a light"),
    ]
    return found + [Line((name, "--help")) for name in COMMANDS]


def prepared(folder: Path) -> list[Line]:
    """A device and its mirror, one update for both, an adaptation and shards."""
    for name in ("device", "mirror"):
        Device.create(folder / name, worlds.SETTINGS, worlds.overlay(shapes=SHAPES))
    mirror = Device.open(folder / "mirror")
    update = worlds.file_of(worlds.next_update(mirror))
    (folder / "update").write_bytes(update)
    with (folder / "adaptation").open("wb") as out:
        learnt = worlds.learnt(mirror.read_overlay())
        write_adaptation(out, worlds.adaptation(learnt, mirror))
    shards = ROOT / "tests" / "golden" / "valid" / "shards_v2_i8.shards"
    (folder / "shards").write_bytes(shards.read_bytes())
    return lines(folder)


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A device of a tiny LLaVA, its files for llama.cpp, frames, and answers to them."""
    pytest.importorskip("gguf", reason="the package gguf is not installed")
    from cdcca_cli.main import main
    from cdcca_cli.models.initial import create_device
    from cdcca_cli.models.settings import InitSettings
    from tests.export import tiny
    from tests.shipped import few_frames

    folder = tmp_path_factory.mktemp("served")
    saved = tiny.checkpoint(folder / "checkpoint")
    how = InitSettings(groups=("norm", "bias", "lora"), lora_rank=4)
    device = create_device(folder / "device", str(saved), how)
    device.install(tiny.loud(device.read_overlay()), 1)
    tiny.write_base(saved, folder / "base.gguf")
    tiny.write_mmproj(saved, folder / "mmproj.gguf")
    frames = few_frames(folder / "frames", "stream", 4)
    words = ["-m", folder / "device", "-o", folder / "predictions", "--quiet"]
    assert main(["infer", str(frames), *map(str, words)]) == 0
    return folder


Run = Callable[[Sequence[str], Sequence[Sequence[str]]], dict[str, Any]]


def by(python: str, **environment: str) -> Run:
    """Runs the program with an interpreter of this machine."""

    def run(hidden: Sequence[str], commands: Sequence[Sequence[str]]) -> dict[str, Any]:
        kept = {name: value for name, value in os.environ.items() if not name.startswith("CDCCA_")}
        done = subprocess.run(
            [python, "-c", PROGRAM, json.dumps(hidden), json.dumps(commands)],
            env=kept | {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"} | environment,
            cwd=Path(python).parent,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=300,
        )
        assert done.returncode == 0, done.stderr
        found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
        return found

    return run


def expect(line: Line, code: int, said: str) -> None:
    assert code == line.code, (line.name, said)
    assert line.says in said, line.name
    assert "a bug in cdcca" not in said and "Traceback" not in said, said
    if "the package" not in line.says:
        assert "needs the package" not in said, said


def measured(found: list[Line], run: Run, shown: Callable[[str], object]) -> None:
    """Each line in a process of its own, with its seconds and peak memory; of all help one."""
    for line in found:
        if "--help" in line.words:
            continue
        made = run([], [line.words])
        ((code, said, seconds),) = made["done"]
        expect(line, code, said)
        shown(f"  {seconds:6.2f} s {made['peak_mb']:5.0f} MB  cdcca {line.name}")
    helps = [line for line in found if "--help" in line.words]
    expect_all(helps, run)


def expect_all(found: list[Line], run: Run, hidden: Sequence[str] = ()) -> dict[str, Any]:
    """All lines in one process."""
    made = run(hidden, [line.words for line in found])
    for line, (code, said, _) in zip(found, made["done"], strict=True):
        expect(line, code, said)
    return made


def size_mb(folder: Path, without: Sequence[str] = ()) -> float:
    """The bytes of all files below a folder, but for what is in some of its folders."""
    return sum(
        path.lstat().st_size
        for path in folder.rglob("*")
        if path.is_file() and not path.relative_to(folder).parts[0].startswith(tuple(without))
    ) / 1e6  # fmt: skip


@pytest.fixture
def shown(capsys: pytest.CaptureFixture[str]) -> Callable[[str], None]:
    """Prints past pytest, into the log of CI."""

    def show(text: str) -> None:
        with capsys.disabled():
            sys.stderr.write(f"{text}\n")

    return show


def test_nothing_heavy_is_needed_or_imported(tmp_path: Path, served: Path) -> None:
    """One process for all; an attempt to import what is hidden ends with 69."""
    found = prepared(tmp_path) + served_lines(served, tmp_path)
    made = expect_all(found, by(sys.executable, PYTHONPATH=str(ROOT)), HIDDEN)
    assert made["heavy"] == []


def test_in_a_light_installation(
    tmp_path: Path, served: Path, shown: Callable[[str], None]
) -> None:
    """Of the first one each command is measured in a process of its own.

    The size is of all files in site-packages, with the byte code of what these commands import,
    without pip and setuptools.
    """
    if not LIGHT_PYTHONS:
        pytest.skip("CDCCA_LIGHT_PYTHON is not set: .ci/run makes such an environment")
    for number, python in enumerate(LIGHT_PYTHONS):
        folder = tmp_path / str(number)
        folder.mkdir()
        found = prepared(folder) + served_lines(served, folder)
        shown(f"\na light installation: {python}")
        if number == 0:
            measured(found, by(python), shown)
        else:
            expect_all(found, by(python))
        (site,) = Path(python).parents[1].glob("lib/python3.*/site-packages")
        size = size_mb(site, without=("pip", "setuptools", "pkg_resources", "_distutils_hack"))
        shown(f"  {size:.0f} MB in site-packages, without pip and setuptools")
        assert size <= MOST_MB


def test_on_64_bit_arm(
    tmp_path: Path,
    served: Path,
    root: Path,  # noqa: F811
    shown: Callable[[str], None],
) -> None:
    """All in one process, under qemu, which takes ten times the time and its own memory."""

    def run(hidden: Sequence[str], commands: Sequence[Sequence[str]]) -> dict[str, Any]:
        done = on_arm(root, "-c", PROGRAM, json.dumps(hidden), json.dumps(commands))
        assert done.returncode == 0, done.stderr
        found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
        return found

    if not (root / "site" / "PIL").exists():
        pytest.skip(f"{root} is an older one: make it again with tests/aarch64_root.sh")
    found = [line for line in prepared(tmp_path) if "--help" not in line.words]
    found += served_lines(served, tmp_path)
    made = expect_all(found, run)
    shown("\non 64-bit ARM, under qemu:")
    for line, (_, _, seconds) in zip(found, made["done"], strict=True):
        shown(f"  {seconds:6.2f} s  cdcca {line.name}")
    package = size_mb(Path(packages.__file__).parent)
    size = size_mb(root / "site") + package
    shown(f"  {made['peak_mb']:.0f} MB peak, qemu's own among them; {size:.0f} MB of packages")
    assert size <= MOST_MB


@pytest.mark.parametrize("module", ["torch", "torch.nn", "transformers", "tokenizers.models"])
def test_the_cure_is_all_that_is_left_out(module: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packages, "_is_here", lambda name: name not in packages.LEFT_OUT)
    cure = packages.cure_for(ModuleNotFoundError(name=module))
    assert cure is not None and "pip install " in cure
    for name in ("torch", "transformers", "peft", "bitsandbytes", "accelerate", "pycocoevalcap"):
        assert name in cure


def test_a_package_of_every_installation() -> None:
    assert packages.cure_for(ModuleNotFoundError(name="PIL.Image")) == (
        "needs the package pillow: pip install " + packages._specified("pillow")
    )


def test_a_module_that_nobody_has_is_a_bug() -> None:
    assert packages.cure_for(ModuleNotFoundError(name="no_such_module")) is None
    assert packages.cure_for(ModuleNotFoundError()) is None


def test_packages_are_those_of_the_project() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    names = {re.split("[<>=]", each)[0] for each in project["dependencies"]}
    brought = set(packages._BROUGHT_BY_OTHERS)
    assert {*packages.LEFT_OUT, *packages.LIGHT} - brought == names - {"typer", "rich"}
