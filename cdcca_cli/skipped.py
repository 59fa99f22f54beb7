"""Bad members of a run: each is named on stderr, counted and left out, or stops the run.

One damaged picture, one prompt that is too long or one record that is not finite must not stop the
rest. Where the whole run is asked to be strict, it does.

Does not decide what is bad: the caller catches the error and hands it over.
"""

from collections import Counter

from cdcca_cli import streams
from cdcca_cli.errors import BadData, CdccaError

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
        self._first: CdccaError | None = None
        self.num_sound = 0

    def add(self, kind: str, error: CdccaError) -> None:
        """Leave out one member.

        Args: kind: what it is, such as `frame`. error: which one, and why.
        Raises: `error`, if the run is strict.
        """
        if self._strict:
            raise error
        self._first = self._first or error
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
        if self._first is not None and not self.num_sound:
            others = f"; none of {self.count} is sound" if self.count > 1 else ""
            raise BadData(f"{self._first}{others}")

    def __str__(self) -> str:
        """For a summary: `, 2 frames and 1 question left out`, or nothing."""
        parts = [f"{n:,} {kind}{'s' if n > 1 else ''}" for kind, n in self._counts.items()]
        return f", {' and '.join(parts)} left out" if parts else ""
