"""Shards to labels through a chat server, or through a file of its answers.

A question is asked freely, with the frame's own picture. If the answer is none of its choices it is
asked once more by their letters, and the likeliest is its answer, as with a local teacher.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from hashlib import sha256
from itertools import chain, groupby, islice
from typing import TYPE_CHECKING, TextIO

import numpy as np

from cdcca_cli import distributed, streams
from cdcca_cli.errors import BadData, SettingError
from cdcca_cli.formats.label_tops import LOWEST, Top, rest_of
from cdcca_cli.formats.labels import (
    Entry,
    Label,
    Source,
    payload_digest,
    question_digest,
)
from cdcca_cli.formats.shard import Question, Shard
from cdcca_cli.models.settings import MAX_NEW_TOKENS
from cdcca_cli.serving.address import Address
from cdcca_cli.serving.in_order import in_order
from cdcca_cli.serving.openai import Reply
from cdcca_cli.skipped import Skipped
from cdcca_cli.teachers import batch, chat, signal
from cdcca_cli.teachers.batch import Answers
from cdcca_cli.teachers.chat import Ask
from cdcca_cli.teachers.server import Server
from cdcca_cli.teachers.settings import ServerSettings
from cdcca_cli.text import counted

if TYPE_CHECKING:
    from cdcca_cli.teachers.labelling import Lacks

LETTER_TOKENS = 8
"""Longest answer by letter, in tokens: a letter with what some models write around it."""
_BODY_BYTES = 400  # of a request beside the picture and the words


class Refused(BadData):
    """The teacher declined to answer."""


class Empty(BadData):
    """The teacher answered with nothing."""


@dataclass(frozen=True)
class Job:
    """One question about one frame. letter: the request by letter, if it has choices.

    payload, digest: the keys of its label.
    """

    shard: Shard
    payload: str
    digest: str
    question: Question
    free: Ask
    letter: Ask | None


@dataclass
class Estimate:
    """How much is asked at most. checked: the frames that are also asked with a blank picture."""

    num_checked: int = 0
    num_questions: int = 0
    num_requests: int = 0
    num_bytes: int = 0
    checked: set[str] = field(default_factory=set)

    def add(self, job: Job) -> None:
        """Count one question."""
        self.num_questions += 1
        asks = [job.free, job.letter]
        if len(self.checked) < self.num_checked and job.payload not in self.checked:
            asks += [job.free] * (2 if self.checked else 3)  # the first settles what is asked
            self.checked.add(job.payload)
        for ask in filter(None, asks):
            self.num_requests += 1
            self.num_bytes += 4 * -(-len(ask.picture.data) // 3)
            self.num_bytes += len(ask.text.encode()) + _BODY_BYTES

    def __str__(self) -> str:
        return (
            f"{counted(self.num_questions, 'question')}: at most "
            f"{counted(self.num_requests, 'request')} of {self.num_bytes / 1e6:,.1f} MB"
        )


def check_picture(shard: Shard) -> None:
    """Refuse a shard of tokens, which no server reads. Raises: BadData."""
    if shard.picture is None:
        raise BadData(
            f"frame {shard.frame[:80]}: has tokens, which a served teacher cannot read: sample "
            "with `payload` frame, or name a local teacher that shares the device's tower"
        )


def jobs_of(shard: Shard, places: Iterable[int]) -> list[Job]:
    """The questions of a shard at some places. Raises: BadData for a shard without a picture."""
    check_picture(shard)
    assert shard.picture is not None
    payload = payload_digest(shard)
    found = []
    for question in map(shard.questions.__getitem__, places):
        digest = question_digest(question)
        name = sha256(f"{payload} {digest}".encode()).hexdigest()[:48]
        limit = MAX_NEW_TOKENS[question.task]
        free = Ask(f"{name}-answer", chat.free_text(question), shard.picture, limit)
        letter = None
        if 2 <= len(question.choices or ()) <= len(chat.LETTERS):
            text, letters = chat.letter_text(question)
            letter = Ask(f"{name}-letter", text, shard.picture, LETTER_TOKENS, letters)
        found.append(Job(shard, payload, digest, question, free, letter))
    return found


def write_requests(
    shards: Iterable[Shard], lacks: "Lacks", out: TextIO, model: str, settings: ServerSettings
) -> Estimate:
    """Write what would be asked, one line a request, each once.

    Questions with choices are also asked by letter, since nobody knows yet which of them need it.
    """
    written, found = set[int](), Estimate()
    for shard in shards:
        for job in jobs_of(shard, lacks.of_shard(shard)):
            key = int(job.free.key[:16], 16)
            if key in written:
                continue
            written.add(key)
            found.add(job)
            for ask in filter(None, (job.free, job.letter)):
                batch.write_request(out, ask, model, chat.first_dialect(settings))
    return found


# ---------------------------------------------------------------- one question


def label_of(job: Job, answer: Callable[[Ask], Reply], *, always_by_letter: bool = False) -> Label:
    """The label of one question.

    Raises: BadData without an answer; what `answer` raises.
    """
    free = answer(job.free)
    choices, text = job.question.choices or [], free.text.strip()
    is_one = _place(text, choices) is not None
    by_letter = None
    if job.letter is not None and (always_by_letter or not is_one):
        by_letter = answer(job.letter)
        scores = chat.letter_scores(by_letter, job.letter.letters)
        if not is_one:
            return _chosen(by_letter, scores, job.letter.letters, choices)
        return _free(free, text, scores)
    if choices and not is_one:
        raise BadData(f"its answer {text[:80]!r} is none of {len(choices)} choices")
    return _free(free, text, None)


def _free(reply: Reply, text: str, scores: list[float] | None) -> Label:
    _require_answer(reply)
    end = "length" if reply.is_cut else "stop" if reply.finish == "stop" else None
    return Label(answer=text, nats=reply.nats, end=end, scores=scores, top=top_of(reply))  # type: ignore[arg-type]


def _chosen(
    reply: Reply, scores: list[float] | None, letters: str, choices: Sequence[str]
) -> Label:
    """The likeliest choice; without log-probabilities the one that is named."""
    _require_answer(reply)
    if scores is not None:
        place = int(np.argmax(scores))
        return Label(choices[place], nats=-scores[place], end="choice", scores=scores)
    letter = chat.letter_of(reply.text, letters)
    found = letters.index(letter) if letter is not None else _place(reply.text, choices)
    if found is None:
        raise BadData(f"its answer {reply.text[:80]!r} is none of {len(choices)} choices")
    return Label(choices[found], end="choice")


def _require_answer(reply: Reply) -> None:
    if reply.is_refused:
        raise Refused("the teacher refused to answer")
    if not reply.text.strip():
        raise Empty(f"the teacher answered with nothing{' before it was cut' * reply.is_cut}")


def _place(answer: str, choices: Sequence[str]) -> int | None:
    """Which choice an answer is, but for case and blanks around it."""
    plain = [choice.strip().casefold() for choice in choices]
    word = answer.strip().casefold()
    return plain.index(word) if word in plain else None


def top_of(reply: Reply) -> Top | None:
    """The likeliest tokens of an answer; None if the server did not list them for each token."""
    tokens = reply.tokens or ()
    if not tokens or not all(token.top for token in tokens):
        return None
    most = max(len(token.top) for token in tokens)
    logp_AK = np.full((len(tokens), most), LOWEST, np.float32)
    pieces_AK = []
    for row, token in zip(logp_AK, tokens, strict=True):
        row[: len(token.top)] = [max(logp, LOWEST) for _, logp in token.top]
        missing = most - len(token.top)
        pieces_AK.append([piece for piece, _ in token.top] + [b""] * missing)
    return Top(logp_AK, rest_of(logp_AK), pieces_AK=pieces_AK)


# ---------------------------------------------------------------- teachers


class _Asked:
    """What a server and a file of its answers have in common."""

    def __init__(self, source: Source, settings: ServerSettings) -> None:
        self._source, self._settings = source, settings
        self._counts = Counter[str]()

    @property
    def source(self) -> Source:
        """Whose labels these are."""
        return self._source

    def check(self, shard: Shard) -> None:
        """Refuse a shard that this teacher cannot answer. Raises: BadData."""
        check_picture(shard)

    def _entries(
        self,
        outcomes: Iterable[tuple[Job, Label | BadData]],
        lacks: "Lacks",
        skipped: Skipped,
    ) -> Iterator[Entry]:
        """The labels of one shard after another; a question without one is named and left out."""
        for _, group in groupby(outcomes, key=lambda outcome: outcome[0].shard):
            labels: dict[str, Label] = {}
            for job, found in group:
                shard = job.shard
                self._count(found)
                if isinstance(found, Label):
                    labels[job.digest] = found
                    continue
                name = f"frame {shard.frame[:80]}: question {job.question.id[:80]}"
                skipped.add("question", BadData(f"{name}: {found}"))
            if not labels:
                continue
            # The same frame may have been sent twice, and asked about twice at the same time.
            entry = lacks.of(Entry(shard.frame, job.payload, self.source, labels))
            if entry.labels:
                yield entry
        if words := self.counted():
            streams.message(words)

    def _count(self, found: Label | BadData) -> None:
        self._counts["asked"] += 1
        kinds = {"refused": Refused, "empty": Empty}
        for name, kind in kinds.items():
            self._counts[name] += isinstance(found, kind)
        self._counts["cut"] += isinstance(found, Label) and found.end == "length"

    def counted(self) -> str:
        """How many answers were refused, empty or cut, in a line; "" if none."""
        parts = [f"{self._counts[name]:,} {name}" for name in ("refused", "empty", "cut")]
        parts = [part for part in parts if not part.startswith("0 ")]
        return f"of {self._counts['asked']:,} answers {', '.join(parts)}" if parts else ""


class ServedTeacher(_Asked):
    """A server that answers questions about frames (`labelling.Teacher`)."""

    def __init__(self, address: Address, settings: ServerSettings) -> None:
        super().__init__(Source(str(address)), settings)
        self._server = Server(address, settings)
        self._is_settled = False

    @property
    def _num_checked(self) -> int:
        return 0 if self._settings.skip_check else signal.NUM_FRAMES

    def announce(self, shards: Iterable[Shard], lacks: "Lacks") -> Estimate:
        """Say how much will be asked. Raises: SettingError if that is more than `max_requests`."""
        found = Estimate(self._num_checked)
        for shard in shards:
            for job in jobs_of(shard, lacks.of_shard(shard)):
                found.add(job)
        most = self._settings.max_requests
        if most is not None and found.num_requests > most:
            raise SettingError("max_requests", f"{found}", most)
        streams.message(f"{self.source.name}: {found}")
        return found

    def label(self, shards: Iterable[Shard], lacks: "Lacks", skipped: Skipped) -> Iterator[Entry]:
        """The labels that are missing, in the order of the shards; `labelling.Teacher`.

        Of several processes the first one asks.
        Raises: Unavailable if the server cannot be asked, or does not receive pictures;
            SettingError where `max_requests` ends the run.
        """
        if not distributed.is_first():
            return
        asked = Estimate(self._num_checked)
        jobs = self._jobs(shards, lacks, asked)
        if not self._is_settled:
            jobs = self._settle(jobs)
        always = self._settings.letter == "always"

        def work(job: Job) -> Label:
            return label_of(job, self._server.ask, always_by_letter=always)

        yield from self._entries(in_order(work, jobs, self._settings.num_workers), lacks, skipped)
        most = self._settings.max_requests
        if most is not None and asked.num_requests > most:
            raise SettingError("max_requests", "the next question may need more", most)

    def _jobs(self, shards: Iterable[Shard], lacks: "Lacks", asked: Estimate) -> Iterator[Job]:
        most = self._settings.max_requests
        for shard in shards:
            for job in jobs_of(shard, lacks.of_shard(shard)):
                asked.add(job)
                if most is not None and asked.num_requests > most:
                    return
                yield job

    def _settle(self, jobs: Iterator[Job]) -> Iterator[Job]:
        """Learn what the server takes from the first frames, and whether it sees them."""
        first: list[Job] = []
        frames = dict[str, Ask]()
        while len(frames) < signal.NUM_FRAMES and (more := list(islice(jobs, 1))):
            first += more
            frames.setdefault(more[0].payload, more[0].free)
        if frames:
            self._server.settle([*frames.values()])
            if not self._settings.skip_check:
                signal.check([*frames.values()], self._server.ask, self.source.name)
            self._is_settled = True
        return chain(first, jobs)

    def close(self) -> None:
        """Close the connections."""
        self._server.close()


class AnsweredTeacher(_Asked):
    """A file of a server's answers to a file of requests (`labelling.Teacher`)."""

    def __init__(self, answers: Answers, settings: ServerSettings) -> None:
        super().__init__(Source(f"batch#{answers.model}"), settings)
        self._answers = answers

    def label(self, shards: Iterable[Shard], lacks: "Lacks", skipped: Skipped) -> Iterator[Entry]:
        """The labels that are missing, in the order of the shards; `labelling.Teacher`."""
        always = self._settings.letter == "always"

        def outcomes() -> Iterator[tuple[Job, Label | BadData]]:
            for shard in shards:
                for job in jobs_of(shard, lacks.of_shard(shard)):
                    try:
                        found = label_of(job, self._answers.ask, always_by_letter=always)
                    except BadData as error:
                        yield job, error
                    else:
                        yield job, found

        yield from self._entries(outcomes(), lacks, skipped)

    def announce(self, shards: Iterable[Shard], lacks: "Lacks") -> None:
        """Nothing: the answers are here."""

    def close(self) -> None:
        """Nothing to free."""
