"""What works on a machine: each part present, missing or broken."""

import builtins
import json
import re
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest
import torch

from cdcca_cli import memory
from cdcca_cli.doctor import machine
from cdcca_cli.doctor.machine import Check, in_units
from cdcca_cli.errors import Unavailable
from cdcca_cli.memory import Memory, main_memory

ROOT = Path(__file__).parents[2]


def found(name: str, checks: list[Check]) -> Check:
    return next(check for check in checks if check.name == name)


def test_this_machine() -> None:
    """The tests run with everything that is installed with cdcca, and with PyAV."""
    checks = machine.checks()
    assert len({check.name for check in checks}) == len(checks)
    for check in checks:
        assert check.state in (machine.OK, machine.MISSING)
        assert check.cure or check.state == machine.OK
        assert check.state == machine.OK or not check.is_required
    assert found("torch", checks).found == torch.__version__
    assert found("4 bits", checks).state == machine.OK
    assert found("Pillow with jpeg", checks).state == machine.OK
    assert "libavformat" in found("PyAV", checks).found
    machine.require(checks)
    report = json.loads(json.dumps(machine.as_json(checks)))
    assert 0 < report["memory_bytes"]["free"] <= report["memory_bytes"]["total"]
    assert report["cpu_threads"] >= 1


def test_every_dependency_is_looked_for() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    names = {re.split("[<>=]", each)[0] for each in project["dependencies"]}
    interface = {"typer", "rich"}  # without them no command begins
    assert names - interface <= machine.REQUIRED.keys()


def test_a_package_that_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(machine.REQUIRED, "no-such-package", "does nothing")
    checks = list(machine._packages())
    assert found("no-such-package", checks).cure == "pip install no-such-package"
    with pytest.raises(Unavailable, match="needed and missing: no-such-package: pip install"):
        machine.require(checks)


def test_bitsandbytes_that_computes_nonsense(monkeypatch: pytest.MonkeyPatch) -> None:
    from bitsandbytes.nn import Linear4bit

    right = Linear4bit.forward
    (check,) = machine._quantization()
    assert check.state == machine.OK
    monkeypatch.setattr(Linear4bit, "forward", lambda self, x: 3 + right(self, x))
    (check,) = machine._quantization()
    assert check.state == machine.MISSING and "off by" in check.found


def test_packages_that_cannot_be_imported(monkeypatch: pytest.MonkeyPatch) -> None:
    real = builtins.__import__

    def refuse(name: str, *args: Any, **kwargs: Any) -> Any:
        if name.split(".")[0] in ("av", "bitsandbytes"):
            raise ImportError(f"no {name}")
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", refuse)
    assert machine._video().cure == "pip install 'cdcca[video]'"
    (check,) = machine._quantization()
    assert check.state == machine.MISSING


def test_a_machine_without_torch_is_still_looked_at() -> None:
    """In a process of its own, in which torch, numpy and Pillow cannot be imported."""
    code = (
        "import sys\n"
        "sys.modules.update(dict.fromkeys(['torch', 'numpy', 'PIL', 'huggingface_hub']))\n"
        "from cdcca_cli.main import main\n"
        "sys.exit(main(['doctor', '--json']))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 69, done.stderr
    assert "needed and missing: pictures" in done.stderr  # without torch it is a light installation
    checks = [Check(**each) for each in json.loads(done.stdout)["checks"]]
    assert "numpy" in found("pictures", checks).found or "PIL" in found("pictures", checks).found
    assert found("Java", checks).name == "Java"


def test_an_extra_that_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    """The cure is an extra of cdcca, which has the bounds that fit its torch."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]

    def missing(name: str) -> None:
        raise ModuleNotFoundError(name)

    monkeypatch.setattr(machine, "import_module", missing)
    checks = list(machine._extras())
    for extra in ("plot", "families"):
        for package in project["optional-dependencies"][extra]:
            name = re.split("[<>=]", package)[0]
            assert found(name, checks).cure == f"pip install 'cdcca[{extra}]'"


def test_an_extra_that_is_there_and_broken(monkeypatch: pytest.MonkeyPatch) -> None:
    """torchvision of another torch: RuntimeError: operator torchvision::nms does not exist."""

    def broken(name: str) -> None:
        raise RuntimeError("operator torchvision::nms does not exist")

    monkeypatch.setattr(machine, "import_module", broken)
    check = found("torchvision", list(machine._extras()))
    assert check.state == machine.MISSING and "nms" in check.found
    assert check.cure == "install the torchvision of this torch"


@pytest.mark.parametrize(
    ("version", "state", "cure"),
    [
        (None, "missing", "install Java 8"),
        ("1.8.0_402", "ok", ""),
        ("17.0.15", "ok", "not for SPICE, which needs Java 8"),
    ],
)
def test_java(version: str | None, state: str, cure: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from cdcca_cli.scoring.captions import java

    monkeypatch.setattr(java, "has_java", lambda: version is not None)
    monkeypatch.setattr(java, "version", lambda: version)
    check = machine._java()
    assert (check.state, check.found, check.cure) == (state, version or "", cure)


def test_the_limit_of_a_container_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    limit, used = tmp_path / "max", tmp_path / "current"
    monkeypatch.setattr(memory, "_CGROUPS", ((str(limit), str(used)),))
    outside = main_memory()
    limit.write_text("1000000\n")
    used.write_text("400000\n")
    assert main_memory() == Memory(600_000, 1_000_000)
    used.write_text("1100000\n")
    assert main_memory() == Memory(0, 1_000_000)
    limit.write_text("max\n")
    assert main_memory().total == outside.total


@pytest.mark.parametrize(
    ("has_card", "cuda", "cure"),
    [
        (False, None, "no NVIDIA card here"),
        (True, None, "this torch is built without CUDA: install one from pytorch.org"),
        (True, "13.0", "nvidia-smi: does the driver fit CUDA 13.0?"),
    ],
)
def test_no_cuda(
    has_card: bool, cuda: str | None, cure: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    monkeypatch.setattr(torch.version, "cuda", cuda)
    monkeypatch.setattr(machine.shutil, "which", lambda name: name if has_card else None)
    assert found("CUDA", list(machine._hardware())).cure == cure


def test_a_cuda_device(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda number: "Card")
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda number: (60 * 10**9, 80 * 10**9))
    assert found("CUDA", list(machine._hardware())).found == "Card, 60 GB free of 80 GB"
    assert machine.as_json([])["cuda"] == [
        {"name": "Card", "free_bytes": 60 * 10**9, "total_bytes": 80 * 10**9}
    ]


@pytest.mark.parametrize(
    ("num_bytes", "text"),
    [
        (0, "0 B"),
        (999, "999 B"),
        (1000, "1.0 kB"),
        (9949, "9.9 kB"),
        (9950, "10 kB"),
        (999_499, "999 kB"),
        (999_500, "1.0 MB"),
        (23_400_000_000, "23 GB"),
        (5e15, "5000 TB"),
    ],
)
def test_units(num_bytes: float, text: str) -> None:
    assert in_units(num_bytes) == text
