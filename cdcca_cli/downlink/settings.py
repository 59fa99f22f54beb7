"""What `compress` is asked for: what is sent, how exactly, in what terms.

At most one of a budget, bits, an error and a loss decides how exactly; a codec takes some of them.
Options and their names only: `sender` does what they say.
"""

import time
from dataclasses import dataclass, replace
from functools import partial

from cdcca_cli.downlink.expiry import parse_expiry
from cdcca_cli.downlink.groups import PAPER
from cdcca_cli.errors import SettingError, UsageError
from cdcca_cli.settings import GROUPS, check, setting
from cdcca_cli.text import parse_bytes, parse_share

MAX_LOSS = 0.01
"""The share by which the held-out loss may grow where nothing else is asked for."""
CODECS = ("usq", "nf4", "ternary", "sign", "exact")
NAMES = {"nf4": "nf4-mixed"}
"""What codecs are also called on a command line."""


@dataclass(frozen=True)
class CompressSettings:
    """What is sent of a change, and how exactly.

    Args:
        select: groups to send (`groups`), None for all.
        budget_bytes: the most that the whole file may have.
        max_error: the most that ||decoded - change|| / ||change|| of what is selected may be.
        bits: the most bits a parameter, of the whole file, over the tensors that changed.
        max_loss: the share by which the held-out loss may grow.
        gain: whether `usq` may make the change longer where the held-out loss falls (`steps`).
        codec: a name of `codecs.CODECS`.
        since: the sequence of the overlay that the update is against; None for the current one.
        expires: seconds since 1970 from which on devices refuse the update.
        num_signatures: how many will be added; their bytes are part of the file's.
    """

    select: tuple[str, ...] | None = setting(
        None, "Groups of parameters to send", choices=GROUPS, usually="all"
    )
    budget_bytes: int | None = setting(
        None,
        "Largest size of the update file: 200KB, 64KiB, 65536",
        at_least=1,
        unit="bytes",
        option="budget",
        parse=partial(parse_bytes, option="`budget_bytes`"),
    )
    max_error: float | None = setting(
        None, "Largest relative error of the change; the smallest such update", above=0, below=1
    )
    bits: float | None = setting(
        None, "Largest size of the update file in bits per changed parameter", above=0, at_most=32
    )
    max_loss: float | None = setting(
        None,
        "Largest growth of the held-out loss; the smallest such update",
        at_least=0,
        at_most=1,
        usually=f"{MAX_LOSS:.0%}",
        parse=partial(parse_share, option="`max_loss`", largest=1.0),
    )
    gain: bool = setting(False, "Let the held-out loss make the change longer, up to 1.3")
    codec: str = setting(
        None, "How the change is coded", choices=(*CODECS, "nf4-mixed"), usually=CODECS[0]
    )
    preset: str | None = setting(
        None, "paper: norm, bias and query in NF4, as the paper sends", choices=("paper",)
    )
    since: int | None = setting(
        None, "Sequence that the receiving device is still at; 0 for a new device", at_least=0
    )
    expires: int | None = setting(
        None,
        "When devices refuse the update: 30d, 12h, or a day like 2027-01-31 (UTC)",
        usually="never",
        parse=lambda text: parse_expiry(text, time.time()),
    )
    num_signatures: int = 0

    def __post_init__(self) -> None:
        check(self)
        asked = [name for name in _LIMITS if getattr(self, name) is not None]
        if self.preset is not None:
            given = [name for name in ("select", "codec") if getattr(self, name) is not None]
            if names := [*given, *asked, *(["gain"] if self.gain else [])]:
                left_out = ", ".join(f"`{name}`" for name in names)
                reason = f"decides what is sent and how: leave out {left_out}"
                raise SettingError("preset", reason, self.preset)
            self._set(select=PAPER, codec="nf4", preset=None)
        codec = self.codec or CODECS[0]
        self._set(codec=NAMES.get(codec, codec))
        if len(asked) > 1:
            names_of = " and ".join(f"`{name}`" for name in asked)
            raise UsageError(f"{names_of} exclude each other: give one")
        if self.gain and codec != "usq":
            raise UsageError("`gain` is for `codec` usq: leave one out")
        possible = _POSSIBLE.get(self.codec or "", ())
        if asked and asked[0] not in possible:
            takes = " or ".join(f"`{name}`" for name in possible) or "neither budget nor limit"
            raise SettingError(
                "codec", f"cannot be used with `{asked[0]}`: it takes {takes}", codec
            )

    def _set(self, **values: object) -> None:
        for name, value in values.items():
            object.__setattr__(self, name, value)

    def addressed(
        self, *, since: int | None, expires: str | None, num_signatures: int
    ) -> "CompressSettings":
        """The same for a certain receiver: an older base, an expiry in words, signatures to come.

        Raises: UsageError.
        """
        return replace(
            self,
            since=since,
            expires=None if expires is None else parse_expiry(expires, time.time()),
            num_signatures=num_signatures,
        )

    @property
    def is_catch_up(self) -> bool:
        """Whether, without an adaptation, this asks for what a device has missed."""
        return self.codec == "exact" and self.since is not None


_LIMITS = ("budget_bytes", "max_error", "bits", "max_loss")
_POSSIBLE = {
    "usq": _LIMITS,
    "nf4-mixed": ("budget_bytes", "bits", "max_error"),
    "ternary": ("budget_bytes", "bits"),
}


def settings_of(
    preset: str | None = None,
    select: str | None = None,
    codec: str | None = None,
    budget_bytes: int | None = None,
    max_error: float | None = None,
    bits: float | None = None,
    max_loss: float | None = None,
    gain: bool = False,
) -> CompressSettings:
    """The settings that a command line means; groups stand in one string, between commas.

    Raises: UsageError.
    """
    return CompressSettings(
        select=None if select is None else tuple(group.strip() for group in select.split(",")),
        budget_bytes=budget_bytes,
        max_error=max_error,
        bits=bits,
        max_loss=max_loss,
        gain=gain,
        codec=codec,  # type: ignore[arg-type]
        preset=preset,
    )
