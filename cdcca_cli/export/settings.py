"""The settings of `export`. Imports nothing heavy."""

from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

from cdcca_cli.errors import SettingError
from cdcca_cli.formats.names import GROUP_NAMES, split_groups
from cdcca_cli.settings import check, setting

TARGETS = ("gguf", "peft", "transformers")


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
    drop: tuple[str, ...] | None = setting(
        None, "Groups of parameters that may stay behind", choices=GROUP_NAMES
    )
    probe: bool | None = setting(
        None,
        "Record answers of the exported model, for an effect check",
        usually="where torch and the checkpoint are",
    )
    check: str | None = setting(None, "Server that the export is checked on, once it is written")

    def __post_init__(self) -> None:
        check(self)
        if self.to == "gguf" and self.base is None:
            raise SettingError("base", "name the GGUF file of the frozen language model")

    @property
    def dropped(self) -> Collection[str]:
        """The groups that may stay behind, `lora` as its two parts."""
        return split_groups(self.drop or ())
