"""A device with every group, its llama.cpp files, and a large random update installed."""

import os
from dataclasses import dataclass
from pathlib import Path

import pytest

from cdcca_cli.formats.device import Device
from tests.export import tiny


@pytest.fixture(autouse=True)
def unsynced(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leave fsync out: every disk is slow at it, and no test can see it."""
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)


@dataclass(frozen=True)
class Made:
    """device: at sequence 1; base, mmproj: files of its frozen model."""

    checkpoint: Path
    device: Path
    base: Path
    mmproj: Path


@pytest.fixture(scope="session")
def made(tmp_path_factory: pytest.TempPathFactory) -> Made:
    pytest.importorskip("gguf", reason="the package gguf is not installed")
    from cdcca_cli.models.initial import create_device
    from cdcca_cli.models.settings import InitSettings

    folder = tmp_path_factory.mktemp("export")
    saved = tiny.checkpoint(folder / "checkpoint")
    how = InitSettings(groups=("norm", "bias", "lora"), lora_rank=4, lora_alpha=8.0)
    device = create_device(folder / "device", str(saved), how)
    device.install(tiny.loud(device.read_overlay()), 1)
    base = tiny.write_base(saved, folder / "base.gguf")
    mmproj = tiny.write_mmproj(saved, folder / "mmproj-base.gguf")
    return Made(saved, folder / "device", base, mmproj)


@pytest.fixture
def device(made: Made) -> Device:
    return Device.open(made.device)
