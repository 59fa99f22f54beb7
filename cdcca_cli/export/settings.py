"""The settings of `export`. Imports nothing heavy."""

from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

from cdcca_cli.errors import SettingError
from cdcca_cli.formats.names import GROUP_NAMES, split_groups
from cdcca_cli.settings import check, setting
from cdcca_cli.text import parse_bytes

TARGETS = ("gguf", "peft", "transformers", "probe")


@dataclass(frozen=True)
class ExportSettings:
    """For which runtime, from which of its files, and what may be missing."""

    SELECTOR = ("to",)

    to: str = setting("gguf", "Whose files are written", choices=TARGETS)
    base: Path | None = setting(
        None, "GGUF file of the frozen language model, quantised or not", methods=("gguf",)
    )
    mmproj: Path | None = setting(
        None, "GGUF file of the vision tower and its connector", methods=("gguf",)
    )
    f32: bool = setting(False, "Write the adapter in float32 instead of float16", methods=("gguf",))
    weights: str = setting(
        "stored",
        "Type of merged weights: the checkpoint's own, or float32, which rounds nothing",
        choices=("stored", "float32"),
        methods=("transformers",),
    )
    shard_size: int = setting(
        5_000_000_000,
        "Largest file of merged weights, like 5GB",
        parse=parse_bytes,
        usually="5GB",
        methods=("transformers",),
    )
    drop: tuple[str, ...] | None = setting(
        None, "Groups of parameters that may stay behind", choices=GROUP_NAMES
    )
    probe: str = setting(
        "auto",
        "Answers that an effect check compares with: made, none, or the file of a probe",
        usually="made where torch and the checkpoint are",
        methods=("gguf",),
    )
    check: str | None = setting(
        None,
        "Address of a llama-server that runs these files: compare its answers with the probe",
        methods=("gguf",),
    )

    def __post_init__(self) -> None:
        check(self)
        if self.to == "gguf" and self.base is None:
            raise SettingError("base", "name the GGUF file of the frozen language model")

    @property
    def dropped(self) -> Collection[str]:
        """The groups that may stay behind, `lora` as its two parts."""
        return split_groups(self.drop or ())
