"""What `compress` is asked for: what is sent, how exactly, in what terms.

At most one of a budget, bits, an error and a loss decides how exactly; a codec takes some of them.
Options and their names only: `sender` does what they say.
"""

import time
from dataclasses import dataclass, replace

from cdcca_cli.downlink import codecs, exact, nf4_mixed, ternary, usq
from cdcca_cli.downlink.expiry import parse_expiry
from cdcca_cli.downlink.groups import PAPER
from cdcca_cli.errors import UsageError

MAX_LOSS = 0.01
"""The share by which the held-out loss may grow where nothing else is asked for."""
NAMES = {"nf4": nf4_mixed.CODEC}
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

    select: tuple[str, ...] | None = None
    budget_bytes: int | None = None
    max_error: float | None = None
    bits: float | None = None
    max_loss: float | None = None
    gain: bool = False
    codec: str = codecs.DEFAULT
    since: int | None = None
    expires: int | None = None
    num_signatures: int = 0

    def __post_init__(self) -> None:
        asked = [
            option
            for option, value in (
                ("--budget", self.budget_bytes),
                ("--max-error", self.max_error),
                ("--bits", self.bits),
                ("--max-loss", self.max_loss),
            )
            if value is not None
        ]
        if len(asked) > 1:
            raise UsageError(f"{' and '.join(asked)} exclude each other: give one")
        if self.max_error is not None and not 0 < self.max_error < 1:
            raise UsageError(f"--max-error {self.max_error:g}: expected a number between 0 and 1")
        if self.bits is not None and not 0 < self.bits <= 32:
            raise UsageError(f"--bits {self.bits:g}: expected a number above 0, at most 32")
        if self.codec not in codecs.CODECS:
            raise UsageError(
                f"--codec {self.codec}: expected one of {', '.join([*NAMES, *codecs.CODECS])}"
            )
        if self.gain and self.codec != usq.CODEC:
            raise UsageError(f"--gain is for --codec {usq.CODEC}: leave one out")
        possible = _POSSIBLE.get(self.codec, ())
        if asked and asked[0] not in possible:
            raise UsageError(
                f"--codec {self.codec} cannot be used with {asked[0]}: "
                f"it takes {' or '.join(possible) or 'neither budget nor limit'}"
            )

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
        return self.codec == exact.CODEC and self.since is not None


_POSSIBLE = {
    usq.CODEC: ("--budget", "--bits", "--max-error", "--max-loss"),
    nf4_mixed.CODEC: ("--budget", "--bits", "--max-error"),
    ternary.CODEC: ("--budget", "--bits"),
}
PRESETS = {"paper": CompressSettings(select=PAPER, codec=nf4_mixed.CODEC)}


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
    if preset is None:
        return CompressSettings(
            select=None if select is None else tuple(group.strip() for group in select.split(",")),
            budget_bytes=budget_bytes,
            max_error=max_error,
            bits=bits,
            max_loss=max_loss,
            gain=gain,
            codec=codecs.DEFAULT if codec is None else NAMES.get(codec, codec),
        )
    if preset not in PRESETS:
        raise UsageError(f"--preset {preset}: expected {' or '.join(PRESETS)}")
    if gain or {select, codec, budget_bytes, max_error, bits, max_loss} != {None}:
        raise UsageError(
            f"--preset {preset} decides what is sent and how: leave out --select, --codec, "
            "--budget, --bits, --max-error, --max-loss and --gain"
        )
    return PRESETS[preset]
