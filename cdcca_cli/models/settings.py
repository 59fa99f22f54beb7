"""The settings of `cdcca init`, and the length limits of answers. Imports nothing slow."""

from dataclasses import dataclass

from cdcca_cli.errors import SettingError
from cdcca_cli.formats.names import GROUP_NAMES, GROUPS, QUANTIZATIONS
from cdcca_cli.settings import check, setting

MAX_NEW_TOKENS = {"vqa": 16, "caption": 40}
"""The default length limit of an answer, in tokens, by task."""


@dataclass(frozen=True)
class InitSettings:
    """How a device is made from a checkpoint."""

    groups: tuple[str, ...] = setting(
        GROUPS,
        "Groups of parameters that are trained and sent, between commas",
        choices=GROUP_NAMES,
        usually=",".join(GROUPS),
    )
    lora_rank: int = setting(16, "Rank of the LoRA matrices", at_least=1)
    lora_alpha: float | None = setting(
        None, "Scale of LoRA, which is divided by its rank", above=0, usually="2 x rank"
    )
    qformer_layers: int | None = setting(
        None, "Number of Q-Former layers to keep, from the first", at_least=1, usually="all"
    )
    quantize: str = setting(
        "none", "How the device holds the language model", choices=QUANTIZATIONS
    )
    revision: str | None = setting(None, "Revision of a hub id")
    template: str | None = setting(
        None,
        "Template of prompts, with {prompt} and the picture's mark, such as <image>",
        usually="the checkpoint's chat template",
    )
    seed: int = setting(0, "Seed of the LoRA start; device and mirror need the same", at_least=0)
    keep: int = setting(1, "Number of overlays kept before the current one", at_least=1)

    def __post_init__(self) -> None:
        if not self.groups:
            raise SettingError("groups", f"expected some of {', '.join(GROUPS)}, found none")
        check(self)

    @property
    def alpha(self) -> float:
        """LoRA's scale is alpha / rank."""
        return 2.0 * self.lora_rank if self.lora_alpha is None else float(self.lora_alpha)
