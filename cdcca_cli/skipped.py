"""Bad members of a run: each is named on stderr, counted and left out, or stops a strict run."""

from collections import Counter

from cdcca_cli import streams
from cdcca_cli.errors import BadData, CdccaError
from cdcca_cli.text import counted

NUM_NAMED = 10


class Skipped:
    """What one run left out. The first NUM_NAMED members are named, even when quiet.

    strict: raise the first error instead. quiet: name none, as in a process that is not first.
    num_sound: number of good members, counted by the caller.
    """

    def __init__(self, *, strict: bool = False, quiet: bool = False) -> None:
        self._strict, self._quiet = strict, quiet
        self._counts: Counter[str] = Counter()
        self.num_sound = 0

    def add(self, kind: str, error: CdccaError) -> None:
        """Leave out one member, such as a `frame`; a strict run raises `error`."""
        if self._strict:
            raise error
        self._counts[kind] += 1
        if self._quiet:
            return
        if self.count <= NUM_NAMED:
            streams.complain(f"left out: {error}")
        elif self.count == NUM_NAMED + 1:
            streams.complain("left out: more, which are only counted")

    @property
    def is_models_fault(self) -> bool:
        """Whether answers that the model could not give were left out."""
        return self._counts["answer"] > 0

    @property
    def count(self) -> int:
        return self._counts.total()

    def counts(self) -> dict[str, int]:
        """How many were left out of each kind."""
        return dict(self._counts)

    def refuse_if_all(self) -> None:
        """Raises: BadData (65) if members were left out and none was good."""
        if self.count and not self.num_sound:
            raise BadData(f"nothing is left: {self._words()} left out")

    def __str__(self) -> str:
        """For a summary: `, 2 frames and 1 question left out`, or nothing."""
        return f", {self._words()} left out" if self.count else ""

    def _words(self) -> str:
        return " and ".join(counted(number, kind) for kind, number in self._counts.items())
