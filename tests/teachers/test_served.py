"""Labels through an address and through batch files."""

import io
import json
import math
from collections.abc import Iterable
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cdcca_cli.errors import BadData, SettingError, Unavailable
from cdcca_cli.formats import label_stream, labels
from cdcca_cli.formats.labels import Entry, Label, question_digest
from cdcca_cli.formats.shard import Question, Shard
from cdcca_cli.serving import openai
from cdcca_cli.serving.address import Address
from cdcca_cli.skipped import Skipped
from cdcca_cli.teachers import batch, chat, served, signal
from cdcca_cli.teachers.labelling import Lacks, add_missing
from cdcca_cli.teachers.served import AnsweredTeacher, ServedTeacher
from cdcca_cli.teachers.settings import ServerSettings
from tests.teachers import server as fakes
from tests.teachers.server import END, Hashed, Request, Said, answering, completion, once
from tests.teachers.shards import shard, usual
from tests.teachers.test_server import FAULTS

QUICK = ServerSettings(backoff=0.01, timeout=5, concurrency=4)
SHARDS = [shard(number) for number in range(10)]
SUFFIX = "\nAnswer the question using a single word or phrase."


@pytest.fixture
def messages(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    said: list[str] = []
    monkeypatch.setattr(served.streams, "message", said.append)
    return said


def ask(
    address: str,
    shards: Iterable[Shard] = SHARDS,
    settings: ServerSettings = QUICK,
    lacks: Lacks | None = None,
    skipped: Skipped | None = None,
) -> list[Entry]:
    teacher = ServedTeacher(Address.parse(address), settings)
    try:
        return [*teacher.label(shards, lacks or Lacks(), skipped or Skipped())]
    finally:
        teacher.close()


def coded(entries: Iterable[Entry], name: str = "any") -> bytes:
    """The records of entries, as of one teacher and one computer."""
    source = labels.Source(name)
    return b"".join(labels.encode(replace(entry, source=source), 16) for entry in entries)


@pytest.fixture(scope="module")
def undisturbed() -> bytes:
    with answering(Hashed()) as server:
        found = ask(server.address)
    ends = [label.end for entry in found for label in entry.labels.values()]
    assert len(ends) == 30 and {*ends} == {"stop", "choice"}
    return coded(found)


def test_each_answer_is_what_the_teacher_says() -> None:
    """The same answers from `Hashed` itself: freely, then by letter if that was no choice."""
    with answering(Hashed()) as server:
        entries = ask(server.address)
        assert {body["temperature"] for body in server.bodies} == {0}
    for one, entry in zip(SHARDS, entries, strict=True):
        assert one.picture is not None
        assert entry.frame == one.frame and entry.payload == labels.payload_digest(one)
        assert entry.source.name == server.address
        for question in one.questions:
            label = entry.labels[question_digest(question)]
            said = _said(one, chat.free_text(question))
            text = b"".join(said.pieces[:-1]).decode()
            if question.choices is None or text in question.choices:
                values = [
                    dict(top)[piece] for piece, top in zip(said.pieces, said.tops, strict=True)
                ]
                assert label.answer == text and label.end == "stop"
                assert label.nats == pytest.approx(-sum(values) / len(values))
                assert label.top is not None and label.top.pieces_AK is not None
                assert [row[0] for row in label.top.pieces_AK] == [*said.pieces[:-1], b""]
                shares = np.exp(label.top.logp_AK).sum(1) + np.exp(label.top.rest_A)
                np.testing.assert_allclose(shares, 1, atol=1e-5)
            else:
                said = _said(one, chat.letter_text(question)[0])
                place = "ABCD".index(said.pieces[0].decode())
                assert label.answer == question.choices[place] and label.end == "choice"
                assert label.scores is not None and label.top is None
                assert int(np.argmax(label.scores)) == place
                assert label.nats == pytest.approx(-label.scores[place])
                assert np.exp(label.scores).sum() <= 1 + 1e-6


def _said(one: Shard, text: str) -> Said:
    body = chat.body(chat.Ask("", text, one.picture, 16), "m", openai.Dialect())  # type: ignore[arg-type]
    return Hashed()(Request(body))


@pytest.mark.parametrize("name", FAULTS)
def test_after_a_fault_of_each_request_the_labels_are_the_same(
    name: str, undisturbed: bytes
) -> None:
    with answering(Hashed(), once(FAULTS[name])) as server:
        assert coded(ask(server.address)) == undisturbed


def test_a_run_that_was_stopped_goes_on_with_the_same_bytes(
    tmp_path: Path, undisturbed: bytes
) -> None:
    path = tmp_path / "any.labels"
    for number in (3, 4, 100):
        with answering(Hashed()) as server:
            address = server.address
            teacher = ServedTeacher(Address.parse(address), QUICK)
            teacher._source = labels.Source("any")
            with label_stream.writing(path, 16, teacher="any") as write:
                assert write.labels is not None
                entries = teacher.label(SHARDS, Lacks(write.labels), Skipped())
                for entry in islice(entries, number):
                    write(entry)
            teacher.close()
            if number == 100:  # the three last frames, of three questions; the picture is checked
                assert server.asked.total() <= 3 * (3 + 1 + 2) + 1
    assert path.read_bytes() == undisturbed


def test_a_frame_that_is_sent_twice_is_labelled_once(tmp_path: Path) -> None:
    twice = [SHARDS[0], SHARDS[1], replace(SHARDS[0], frame="again")]
    for concurrency in (1, 8):
        path = tmp_path / f"{concurrency}.labels"
        with answering(Hashed()) as server:
            settings = replace(QUICK, concurrency=concurrency)
            teacher = ServedTeacher(Address.parse(server.address), settings)
            teacher._source = labels.Source("any")
            with label_stream.writing(path, 16, teacher="any") as write:
                assert write.labels is not None
                assert add_missing(teacher, twice, write, Lacks(write.labels), Skipped()) == 6
            teacher.close()
    assert (tmp_path / "1.labels").read_bytes() == (tmp_path / "8.labels").read_bytes()


def test_a_question_that_fails_is_named_and_the_rest_is_labelled() -> None:
    def unlucky(handler: Any, reply: dict[str, Any], number: int) -> bool:
        is_it = "boat in 7" in str(handler.asked_for)
        if is_it:
            handler.send(500, b"{}")
        return is_it

    skipped = Skipped(quiet=True)
    with answering(Hashed(), unlucky) as server:
        found = ask(server.address, settings=replace(QUICK, attempts=2), skipped=skipped)
        assert skipped.count == 1 and str(skipped) == ", 1 question left out"
        assert [len(entry.labels) for entry in found] == [3] * 7 + [2] + [3] * 2
        with pytest.raises(BadData, match="frame-007: question 7-a: failed 2 times: HTTP 500"):
            ask(server.address, settings=replace(QUICK, attempts=2), skipped=Skipped(strict=True))


def test_the_letter_can_be_asked_always() -> None:
    with answering(Hashed()) as server:
        usual = ask(server.address)
        always = ask(server.address, settings=replace(QUICK, letter="always"))
    for one, other in zip(usual, always, strict=True):
        for before, after in zip(one.labels.values(), other.labels.values(), strict=True):
            assert before.answer == after.answer
    of_choices = [entry.labels[question_digest(each.questions[1])]
                  for each, entry in zip(SHARDS, always, strict=True)]  # fmt: skip
    assert all(label.scores is not None for label in of_choices)


def test_letters_without_log_probabilities_are_read_as_text() -> None:
    with answering(Hashed()) as server:
        found = ask(server.address, settings=replace(QUICK, top_logprobs=0))
        full = ask(server.address)
    for one, other in zip(found, full, strict=True):
        for label, known in zip(one.labels.values(), other.labels.values(), strict=True):
            assert (label.answer, label.end) == (known.answer, known.end)
            assert label.nats is label.top is label.scores is None


def test_a_shard_of_tokens_is_refused() -> None:
    tokens = replace(SHARDS[0], picture=None, tokens=np.zeros((4, 2), np.float32))
    with answering(Hashed()) as server:
        teacher = ServedTeacher(Address.parse(server.address), QUICK)
        with pytest.raises(BadData, match=r"frame-000: has tokens.*`payload` frame"):
            teacher.check(tokens)
        with pytest.raises(BadData, match="has tokens"):
            ask(server.address, [tokens])
        assert not server.bodies


def test_many_choices_are_not_asked_by_letter() -> None:
    few = Question("q", "Which?", "vqa", [f"word {number}" for number in range(27)])
    skipped = Skipped(quiet=True)
    with answering(Hashed()) as server:
        found = ask(server.address, [shard(1, [*usual(1), few])], skipped=skipped)
    assert len(found[0].labels) == 3 and skipped.count == 1


# ---------------------------------------------------------------- how much


def test_how_much_is_asked_is_said_before_and_limited(messages: list[str]) -> None:
    """10 frames of 3 questions, one of them with choices: 40; 6 frames are also asked without
    their picture and with it once more, and the first one to learn what the server takes."""
    with answering(Hashed()) as server:
        teacher = ServedTeacher(Address.parse(server.address), replace(QUICK, max_requests=53))
        found = teacher.announce(SHARDS, Lacks())
        assert (found.num_questions, found.num_requests) == (30, 40 + 13)
        assert messages == [f"{server.address}: 30 questions: at most 53 requests of 0.2 MB"]
        assert len([*teacher.label(SHARDS, Lacks(), Skipped())]) == 10
        assert server.asked.total() <= 53
        size = sum(len(json.dumps(body)) for body in server.bodies)
        assert found.num_bytes == pytest.approx(size * 53 / server.asked.total(), rel=0.2)
        teacher.close()
        few = ServedTeacher(Address.parse(server.address), replace(QUICK, max_requests=52))
        with pytest.raises(SettingError, match=r"max_requests.* 52: 30 questions: at most 53"):
            few.announce(SHARDS, Lacks())


def test_a_run_that_was_not_announced_ends_at_the_limit() -> None:
    with answering(Hashed()) as server:
        teacher = ServedTeacher(Address.parse(server.address), replace(QUICK, max_requests=30))
        found = []
        with pytest.raises(SettingError, match="max_requests"):
            for entry in teacher.label(SHARDS, Lacks(), Skipped()):
                found.append(entry)
        assert 2 <= len(found) < 10 and server.asked.total() <= 30


# ---------------------------------------------------------------- the picture


@pytest.mark.parametrize("top", [20, 0])
def test_a_teacher_that_does_not_receive_the_picture_is_refused(top: int) -> None:
    settings = replace(QUICK, top_logprobs=top)
    with answering(Hashed(sees=False)) as server:
        with pytest.raises(Unavailable, match="does not receive the picture: 6 questions"):
            ask(server.address, settings=settings)
        assert server.asked.total() == 13
        assert len(ask(server.address, settings=replace(settings, skip_check=True))) == 10
    with answering(Hashed()) as server:
        assert len(ask(server.address, settings=settings)) == 10


def test_a_picture_that_moves_a_log_probability_alone_is_received() -> None:
    def sure(request: Request) -> Said:
        share = 0.6 + 0.3 * (len(request.picture) % 7) / 7
        top = [(b"yes", math.log(share)), (b"no", math.log(1 - share))]
        return Said([b"yes", END], [top, [(END, 0.0)]])

    with answering(sure) as server:
        assert len(ask(server.address)) == 10


def test_noise_of_a_server_is_no_picture() -> None:
    """Servers that answer several requests at once change the last bits of a log-probability."""
    count = 0

    def noisy(request: Request) -> Said:
        nonlocal count
        count += 1
        top = [(b"yes", -0.5 - 0.01 * (count % 5)), (b"no", -1.0)]
        return Said([b"yes", END], [top, [(END, 0.0)]])

    with answering(noisy) as server, pytest.raises(Unavailable, match="does not receive"):
        ask(server.address)


def test_a_teacher_that_says_nothing_is_refused_before_the_work() -> None:
    with (
        answering(lambda request: Said([], [], "length")) as server,
        pytest.raises(Unavailable, match="thinks first"),
    ):
        ask(server.address, settings=replace(QUICK, top_logprobs=0))


@pytest.mark.parametrize("media", ["image/png", "image/jpeg", "image/webp", "image/avif"])
def test_a_blank_picture_has_the_size_and_type_of_the_frame(media: str) -> None:
    from cdcca_cli.formats.pictures import bare
    from cdcca_cli.payloads.pictures import can_encode

    if not can_encode(media):
        pytest.skip(f"this Pillow cannot write {media}")
    picture = shard(1, media=media).picture
    assert picture is not None
    blank = signal.blank_like(picture)
    found = bare(blank.data)
    assert (found.media, found.size) == (blank.media, blank.size) == (media, picture.size)


def test_how_far_two_answers_are_apart_by_hand() -> None:
    """The second token moves by 0.5; the third is not compared, for the texts part before it."""

    def reply(*rows: tuple[bytes, float]) -> openai.Reply:
        tokens = tuple(openai.Token(piece, logp, ((piece, logp),)) for piece, logp in rows)
        return openai.Reply("".join(piece.decode() for piece, _ in rows), "stop", tokens)

    one = reply((b"a", -0.1), (b"b", -0.5), (b"c", -0.1))
    assert signal.moved(one, one) == 0
    assert signal.moved(one, reply((b"a", -0.1), (b"b", -1.0))) == pytest.approx(0.5)
    assert signal.moved(openai.Reply("a"), openai.Reply(" a")) == 0
    assert signal.moved(openai.Reply("a"), openai.Reply("b")) == math.inf


def test_refused_empty_and_cut_answers_are_counted(messages: list[str]) -> None:
    def moody(handler: Any, reply: dict[str, Any], number: int) -> bool:
        asked = str(handler.asked_for)
        choice = reply["choices"][0]
        if "boat in 1?" in asked:
            choice["finish_reason"] = "content_filter"
        elif "boat in 2?" in asked:
            choice["message"] = {"content": None, "refusal": "I cannot."}
        elif "boat in 3?" in asked:
            choice["message"]["content"] = " "
        elif "boat in 4?" in asked:
            choice["finish_reason"] = "length"
        handler.send(200, json.dumps(reply).encode())
        return True

    skipped = Skipped(quiet=True)
    with answering(Hashed(), moody) as server:
        found = ask(server.address, skipped=skipped)
    assert messages[-1] == "of 30 answers 2 refused, 1 empty, 1 cut"
    assert skipped.count == 3
    assert [len(entry.labels) for entry in found] == [3, 2, 2, 2] + [3] * 6
    (cut,) = [label for entry in found for label in entry.labels.values() if label.end == "length"]
    assert cut.answer


# ---------------------------------------------------------------- batch files


def run_batch(requests: str, answer: fakes.Answer = Hashed()) -> list[str]:
    """What an engine makes of a file of requests."""
    lines = []
    for line in requests.splitlines():
        asked = json.loads(line)
        assert (asked["method"], asked["url"]) == ("POST", "/v1/chat/completions")
        body = completion(answer(Request(asked["body"])), asked["body"])
        response = {"status_code": 200, "request_id": "1", "body": body}
        made = {"id": "1", "custom_id": asked["custom_id"], "response": response, "error": None}
        lines.append(json.dumps(made))
    return lines


def requests(shards: Iterable[Shard] = SHARDS, lacks: Lacks | None = None) -> str:
    out = io.StringIO()
    served.write_requests(shards, lacks or Lacks(), out, "model", QUICK)
    return out.getvalue()


def answered(
    lines: Iterable[str], shards: Iterable[Shard] = SHARDS
) -> tuple[list[Entry], list[BadData], Skipped]:
    refused: list[BadData] = []
    source = io.BytesIO("".join(f"{line}\n" for line in lines).encode())
    teacher = AnsweredTeacher(batch.Answers(source, "a.jsonl", refused.append), QUICK)
    assert teacher.source.name == "batch#model"
    skipped = Skipped(quiet=True)
    return [*teacher.label(shards, Lacks(), skipped)], refused, skipped


def test_labels_by_batch_file_equal_those_by_address(undisturbed: bytes) -> None:
    lines = run_batch(requests())
    for order in (lines, lines[::-1], lines + lines[:5]):
        found, refused, skipped = answered(order)
        assert coded(found) == undisturbed and not refused and not skipped.count


def test_each_request_has_an_id_of_its_own_and_stands_once() -> None:
    written = requests([*SHARDS, *SHARDS[:3]])
    ids = [json.loads(line)["custom_id"] for line in written.splitlines()]
    assert len(ids) == len(set(ids)) == 40
    assert all(len(one) <= 64 and one.replace("-", "").isalnum() for one in ids)
    assert written == requests()


def test_bad_lines_are_named_and_left_out() -> None:
    lines = run_batch(requests())
    bad = ["{", "[]", "null", '{"custom_id": 1}', '{"custom_id": "a"}', requests().splitlines()[0],
           '{"custom_id": "a", "response": NaN}', "x" * 100]  # fmt: skip
    mixed = [one for pair in zip(lines, [*bad, *[""] * len(lines)], strict=False) for one in pair]
    found, refused, skipped = answered(mixed)
    assert sum(len(entry.labels) for entry in found) == 30 and not skipped.count
    assert len(refused) == len(bad)
    assert str(refused[0]).startswith("a.jsonl: line 2: ")
    assert any("these are the requests" in str(error) for error in refused)


def test_answers_that_are_missing_or_errors_are_named() -> None:
    lines = run_batch(requests())
    free = [place for place, line in enumerate(lines) if '-answer"' in line]
    made = [json.loads(line) for line in lines]
    made[free[0]]["response"] = {"status_code": 500, "body": {"error": {"message": "no memory"}}}
    made[free[3]]["error"] = {"message": "expired"}
    made[free[6]]["response"] = None
    made[free[9]]["response"]["body"]["choices"] = []
    del made[free[12]]
    found, refused, skipped = answered(map(json.dumps, made))
    assert not refused and skipped.count == 5
    assert sum(len(entry.labels) for entry in found) == 25


def test_answers_from_a_pipe_are_read(tmp_path: Path, undisturbed: bytes) -> None:
    data = "\n".join(run_batch(requests())).encode()

    class Pipe(io.BytesIO):
        def seekable(self) -> bool:
            return False

    teacher = AnsweredTeacher(batch.Answers(Pipe(data), "-", pytest.fail), QUICK)
    assert coded(teacher.label(SHARDS, Lacks(), Skipped())) == undisturbed


def test_only_what_is_missing_is_written(tmp_path: Path) -> None:
    path = tmp_path / "some.labels"
    with answering(Hashed()) as server:
        entries = ask(server.address, SHARDS[:8])
        with label_stream.writing(path, 16, teacher=server.address) as write:
            for entry in entries:
                write(entry)
            assert write.labels is not None
            written = requests(lacks=Lacks(write.labels))
    assert written == requests(SHARDS[8:])


def test_a_file_of_any_lines_is_read(tmp_path: Path) -> None:
    """Any bytes give answers or named refusals."""
    source = np.random.default_rng(0)
    good = "\n".join(run_batch(requests(SHARDS[:2]))).encode()
    for _ in range(200):
        data = bytearray(good)
        for place in source.integers(0, len(data), 20):
            data[place] = source.integers(0, 256)
        refused: list[BadData] = []
        answers = batch.Answers(io.BytesIO(bytes(data)), "x", refused.append)
        found = AnsweredTeacher(answers, QUICK).label(SHARDS[:2], Lacks(), Skipped(quiet=True))
        assert all(isinstance(label, Label) for entry in found for label in entry.labels.values())
