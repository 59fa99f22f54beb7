"""Bad members of a run: each is named on stderr, counted and left out, or stops the run.

One damaged picture, one prompt that is too long or one record that is not finite must not stop the
rest. Where the whole run is asked to be strict, it does.

Does not decide what is bad: the caller catches the error and hands it over.
"""

from collections import Counter

from cdcca_cli import streams
from cdcca_cli.errors import BadData, CdccaError
from cdcca_cli.text import counted

NUM_NAMED = 10


class Skipped:
    """What one run left out because it is bad.

    The first NUM_NAMED members are named, even when quiet; the others are counted.

    Args: strict: raise the first error instead.
    Attributes: num_sound: how many members were good, counted by the caller.
    """

    def __init__(self, *, strict: bool = False) -> None:
        self._strict = strict
        self._counts: Counter[str] = Counter()
        self.num_sound = 0

    def add(self, kind: str, error: CdccaError) -> None:
        """Leave out one member.

        Args: kind: what it is, such as `frame`. error: which one, and why.
        Raises: `error`, if the run is strict.
        """
        if self._strict:
            raise error
        self._counts[kind] += 1
        if self.count <= NUM_NAMED:
            streams.complain(f"left out: {error}")
        elif self.count == NUM_NAMED + 1:
            streams.complain("left out: more, which are only counted")

    @property
    def count(self) -> int:
        return self._counts.total()

    def refuse_if_all(self) -> None:
        """A run without one good member has failed. Raises: BadData (65)."""
        if self.count and not self.num_sound:
            raise BadData(f"nothing is left: {self._words()} left out")

    def __str__(self) -> str:
        """For a summary: `, 2 frames and 1 question left out`, or nothing."""
        return f", {self._words()} left out" if self.count else ""

    def _words(self) -> str:
        return " and ".join(counted(number, kind) for kind, number in self._counts.items())
