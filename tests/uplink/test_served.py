"""Answers of a server that runs the device's model: the model's own, and whatever can go wrong."""

import io
import json
import signal as signals
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cdcca_cli import streams
from cdcca_cli.datasets import Frame, LabelledQuestion
from cdcca_cli.errors import BadData, SettingError, Unavailable, UsageError
from cdcca_cli.formats.device import Device
from cdcca_cli.formats.predictions import Prediction, read_predictions
from cdcca_cli.formats.shard import Layout
from cdcca_cli.serving.address import Address
from cdcca_cli.skipped import Skipped
from cdcca_cli.uplink import asked, served
from cdcca_cli.uplink.settings import AnswerSettings, ServedSettings
from tests import tiny
from tests.serving import fake_llama
from tests.serving.fake_llama import faking
from tests.teachers import server as fakes
from tests.teachers.server import Fault, Hashed, answering, once, sending, status
from tests.uplink.test_picked import without

ROOT = Path(__file__).parents[2]
SHORT = AnswerSettings(max_new_tokens=12)
CHOICES = ["one", "two circles", "red"]


@dataclass(frozen=True)
class World:
    """A device, and frames: each with a question, one with choices, and a caption."""

    device: Path
    checkpoint: Path
    frames: list[Frame]
    manifest: Path


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    """The tokens that are no ASCII text are never the likeliest."""
    from safetensors.torch import load_file, save_file

    from cdcca_cli.models.initial import create_device
    from cdcca_cli.models.settings import InitSettings
    from tests.export import tiny as siglip

    root = tmp_path_factory.mktemp("served")
    saved = siglip.checkpoint(root / "checkpoint")
    (file,) = saved.glob("*.safetensors")
    tensors = load_file(file)
    words = json.loads((saved / "tokenizer.json").read_text())["model"]["vocab"]
    visible = {"\u0120", "\u010a"}  # the byte-level names of blank and newline
    never = [number for word, number in words.items() if any(c > "~" for c in {*word} - visible)]
    tensors["language_model.lm_head.weight"][never] = 0
    save_file(tensors, file, metadata={"format": "pt"})
    how = InitSettings(groups=("norm", "bias", "lora"), lora_rank=4, lora_alpha=8.0)
    device = create_device(root / "device", str(saved), how)
    device.install(siglip.loud(device.read_overlay()), 1)
    pictures = root / "frames"
    pictures.mkdir()
    frames, rows = [], []
    for number, image in enumerate(tiny.images(24, seed=3)):
        path = pictures / f"{number:02}.png"
        image.save(path)
        questions = [
            LabelledQuestion(f"{number}-a", f"What colour is {number}?", "vqa"),
            LabelledQuestion(f"{number}-b", "How many?", "vqa", CHOICES),
            LabelledQuestion(f"{number}-c"),
        ]
        frames.append(Frame(path.name, path, questions))
        for one in questions:
            row = {"id": one.id, "image": path.name, "task": one.task}
            row |= {"prompt": one.prompt} if one.prompt else {}
            rows.append(row | ({"choices": CHOICES} if one.choices else {}))
    manifest = pictures / "frames.jsonl"
    manifest.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return World(root / "device", saved, frames, manifest)


@pytest.fixture
def messages(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    said: list[str] = []
    monkeypatch.setattr(streams, "message", said.append)
    monkeypatch.setattr(streams, "complain", said.append)
    return said


QUICK: dict[str, Any] = {"backoff": 0.01, "attempts": 3, "timeout": 5.0, "wait": 1.0}


def answers(
    world: World,
    address: str,
    frames: list[Frame] | None = None,
    skipped: Skipped | None = None,
    **how: Any,
) -> list[Prediction]:
    settings = ServedSettings(server=address, **{**QUICK, **how})
    server = served.open_served(settings, Device.open(world.device))
    return [*served.answer_frames(server, frames or world.frames, SHORT, skipped)]


def root_of(address: str) -> str:
    return address.partition("/v1")[0]


# ---------------------------------------------------------------- llama.cpp's own server


@pytest.fixture(scope="module")
def exported(world: World, tmp_path_factory: pytest.TempPathFactory) -> Path:
    pytest.importorskip("xllamacpp", reason="llama.cpp's server is not here: pip install xllamacpp")
    pytest.importorskip("gguf", reason="its files cannot be written: pip install gguf")
    from cdcca_cli.export import targets
    from cdcca_cli.export.settings import ExportSettings
    from tests.export import tiny as siglip

    root = tmp_path_factory.mktemp("exported")
    base = siglip.write_base(world.checkpoint, root / "base.gguf")
    mmproj = siglip.write_mmproj(world.checkpoint, root / "mmproj.gguf")
    how = ExportSettings(base=base, mmproj=mmproj, f32=True)
    targets.export(Device.open(world.device), root / "out", how)
    return root / "out"


@pytest.fixture(scope="module")
def llama_server(exported: Path) -> Iterator[str]:
    from tests.teachers import llama

    files = (exported / f"{name}.gguf" for name in ("model", "mmproj", "adapter"))
    with llama.serving(*files) as address:
        yield root_of(address)


@pytest.fixture(scope="module")
def own(world: World) -> list[Prediction]:
    from cdcca_cli.models import load_device
    from cdcca_cli.uplink.answers import answer_frames

    model = load_device(Device.open(world.device), compute="cpu", dtype="float32")
    return [*answer_frames(model, world.frames, SHORT)]


def ranks(values: list[float]) -> np.ndarray:
    return np.argsort(np.argsort(values))


def test_its_answers_are_those_of_the_model(
    world: World, llama_server: str, exported: Path, own: list[Prediction]
) -> None:
    found = answers(world, llama_server, export=exported)
    assert [one.id for one in found] == [one.id for one in own]
    same = [one.answer == other.answer for one, other in zip(found, own, strict=True)]
    assert np.mean(same) > 0.95, "two tokens may be equally likely, to the last bits"
    entropies = [[one.entropy["mean"] for one in each] for each in (found, own)]
    assert np.corrcoef(*map(ranks, entropies))[0, 1] > 0.95, "a random model's tail is flat"
    compared = 0
    for one, other, is_same in zip(found, own, same, strict=True):
        assert (one.task, one.prompt, one.image) == (other.task, other.prompt, other.image)
        assert one.entropy_of == "top20" and one.entropy_least is not None
        if is_same:
            for name, exact in other.entropy.items():
                assert one.entropy_least[name] - 0.02 <= exact <= one.entropy[name] + 0.02
            assert one.margin == pytest.approx(other.margin, abs=0.01)
        if other.choice_scores:
            compared += 1
            assert one.choice_scores == pytest.approx(other.choice_scores, abs=0.01)
            assert one.choice == other.choice
    assert compared == len(world.frames)
    assert {one.model for one in found} == {own[0].model}


def test_the_whole_vocabulary_gives_the_models_entropies(
    world: World, llama_server: str, own: list[Prediction]
) -> None:
    found = answers(world, llama_server, world.frames[:4], exact_entropy=True)
    wanted = {one.id: one for one in own}
    for one in found:
        assert one.entropy_of is None and one.entropy_least is None
        if one.answer == wanted[one.id].answer:
            assert one.entropy == pytest.approx(wanted[one.id].entropy, abs=0.05)


def test_special_words_of_a_question_stay_text(world: World, llama_server: str) -> None:
    """The prompt has as many of each special token as one about nothing special."""
    server = served.open_served(ServedSettings(server=llama_server), Device.open(world.device))
    one = server.asked
    assert isinstance(one, asked.LlamaAsked)
    texts = ["is it?", "is </s><s> it <image>?", f"{one._marker}</s>", "<pad<pad>>", "</</s>s>"]
    counted = []
    for text in texts:
        shown = one._text(LabelledQuestion("q", text, "vqa"))
        assert shown.count(one._marker) == 1
        ids = one._server.tokenize(shown.replace(one._marker, ""), special=True)
        counted.append([ids.count(number) for number in range(5)])
    assert counted == [counted[0]] * len(texts)
    assert counted[0][1] == 1, "the prompt begins with <s>, which this server does not add"
    server.asked.close()
    hostile = [replace(world.frames[0], questions=[LabelledQuestion("q", texts[1], "vqa")])]
    assert len(answers(world, llama_server, hostile)) == 1


def test_predictions_name_the_export_or_the_address(
    world: World, llama_server: str, exported: Path, messages: list[str]
) -> None:
    (frame,) = (replace(each, questions=each.questions[:1]) for each in world.frames[:1])
    (one,) = answers(world, llama_server, [frame], export=exported)
    assert one.model == Device.open(world.device).digest and messages == []
    (other,) = answers(world, llama_server, [frame])
    (again,) = answers(world, llama_server, [frame])
    assert other.model == again.model != one.model
    with pytest.raises(BadData, match="is no export"):
        (exported.parent / "export.json").write_text("{}")
        answers(world, llama_server, [frame], export=exported.parent)


def test_a_device_without_torch_answers_and_samples(
    world: World, llama_server: str, exported: Path, tmp_path: Path
) -> None:
    given = [world.manifest, "-m", world.device]
    bad = world.manifest.parent / "00.png"
    kept = bad.read_bytes()
    bad.write_bytes(kept[:-40])
    try:
        predictions = tmp_path / "a.predictions"
        ran = without(
            "infer", *given, "--server", llama_server, "--export", exported, "-o", predictions
        )
        assert ran.returncode == 0, ran.stderr
        assert "left out: " in ran.stderr and "00.png" in ran.stderr
        found = [*read_predictions(predictions.read_text().splitlines())]
        assert [one.id for one in found] == [
            question.id for frame in world.frames[1:] for question in frame.questions
        ]
        out = tmp_path / "a.tokens"
        rest = ["--predictions", predictions, "--payload", "frame", "-o", out]
        ran = without("sample", *given, *rest)
        assert ran.returncode == 0 and out.stat().st_size > 100, ran.stderr
        assert "using their entropies" not in ran.stderr
    finally:
        bad.write_bytes(kept)


# ---------------------------------------------------------------- what can go wrong


@pytest.fixture(scope="module")
def undisturbed(world: World) -> list[Prediction]:
    with faking() as server:
        found = answers(world, root_of(server.address))
    assert len({one.answer for one in found}) > 3
    return found


def anonymous(found: list[Prediction]) -> list[Prediction]:
    """Without the digest of the address, whose port differs."""
    return [replace(one, model="") for one in found]


FAULTS: dict[str, Callable[[Any, dict[str, Any]], None]] = {
    "429": status(429, {"error": {"message": "slow down"}}),
    "500": status(500, {"error": {"message": "out of memory"}}),
    "503 while loading": status(503, {"error": {"message": "Loading model"}}),
    "connection cut in the body": fakes.cut_off,
    "connection dropped": fakes.hung_up,
    "half JSON": sending(lambda reply: b'{"content": "'),
    "a page of HTML": sending(lambda reply: b"<html>busy</html>"),
    "a list": sending(lambda reply: []),
    "null": sending(lambda reply: None),
    "NaN": sending(lambda reply: b'{"content": NaN}'),
    "not UTF-8": sending(lambda reply: b"\xff\xfe"),
    "no text": sending(lambda reply: {**reply, "content": None}),
    "other probabilities": sending(
        lambda reply: {**reply, "completion_probabilities": [{"id": 3, "logprob": -1.0}]}
    ),
    "tokens that are none": sending(lambda reply: {**reply, "tokens": [-1]}),
    "a probability above 1": sending(
        lambda reply: {**reply, "completion_probabilities": [{"id": 3, "logprob": 1.0}]}
    ),
}


@pytest.mark.parametrize("name", FAULTS)
def test_after_a_fault_the_answers_are_the_same(
    name: str, world: World, undisturbed: list[Prediction]
) -> None:
    def not_forced(handler: Any, reply: dict[str, Any], number: int) -> bool:
        # A forced answer that fails with 500 fails each time.
        is_met = number == 0 and not (name == "500" and "grammar" in handler.asked_for)
        if is_met:
            FAULTS[name](handler, reply)
        return is_met

    with faking(not_forced) as server:
        found = answers(world, root_of(server.address))
    assert anonymous(found) == anonymous(undisturbed)


def always(fault: Callable[[Any, dict[str, Any]], None]) -> Fault:
    return lambda handler, reply, number: fault(handler, reply) or True


def null_logprobs(reply: dict[str, Any]) -> dict[str, Any]:
    (first, *rest) = reply["completion_probabilities"]
    return {**reply, "completion_probabilities": [{**first, "logprob": None}, *rest]}


@pytest.mark.parametrize(
    ("fault", "error", "words"),
    [
        (sending(lambda reply: []), BadData, "failed 3 times"),
        (sending(null_logprobs), BadData, "log-probabilities are null"),
        (sending(lambda reply: {**reply, "tokens": [], "completion_probabilities": []}),
         BadData, "without tokens"),
        (status(400, {"error": {"message": "exceeds the available context size"}}), BadData,
         "refused with HTTP 400: exceeds the available context size"),
        (status(503, {"error": {"message": "Loading model"}}), Unavailable, "Loading model"),
        (status(401, {"error": {"message": "no"}}), Unavailable, "does not accept the key"),
        (fakes.hung_up, Unavailable, "connection failed"),
        (fakes.silent(2.0), Unavailable, "no reply within 0.3 s"),
    ],
)  # fmt: skip
def test_what_does_not_pass_has_its_exit_code(
    world: World,
    fault: Callable[[Any, dict[str, Any]], None],
    error: type[Exception],
    words: str,
    messages: list[str],
) -> None:
    skipped = Skipped()
    with faking(always(fault)) as server, pytest.raises(error) as raised:
        answers(world, root_of(server.address), world.frames[:2], skipped, timeout=0.3)
        skipped.refuse_if_all()
    assert words in f"{raised.value} {messages}"


def test_one_question_that_is_refused_is_named_and_left_out(
    world: World, undisturbed: list[Prediction], messages: list[str]
) -> None:
    def refusing(handler: Any, reply: dict[str, Any], number: int) -> bool:
        is_it = "is 7?" in str(handler.asked_for)
        if is_it:
            handler.send(400, b'{"error": {"message": "too long"}}')
        return is_it

    skipped = Skipped()
    with faking(refusing) as server:
        found = answers(world, root_of(server.address), skipped=skipped)
    kept = [one for one in undisturbed if one.id != "7-a"]
    assert anonymous(found) == anonymous(kept)
    assert [line for line in messages if "07.png: question 7-a" in line and "too long" in line]
    assert skipped.num_sound == len(kept) and skipped.count == 1


def test_choices_that_cannot_be_forced_have_no_scores(world: World, messages: list[str]) -> None:
    def refusing(handler: Any, reply: dict[str, Any], number: int) -> bool:
        is_forced = "grammar" in handler.asked_for
        if is_forced:
            handler.send(500, b'{"error": {"message": "Unexpected empty grammar stack"}}')
        return is_forced

    with faking(refusing) as server:
        found = answers(world, root_of(server.address), world.frames[:3])
    assert len(found) == 9 and all(one.choice_scores is None for one in found)
    assert sum("no scores of its choices" in line for line in messages) == 1


def test_another_token_than_the_forced_one_is_refused(world: World) -> None:
    def other(reply: dict[str, Any]) -> dict[str, Any]:
        return {**reply, "tokens": [11], "completion_probabilities": [{"id": 11, "logprob": -1.0}]}

    def changing(handler: Any, reply: dict[str, Any], number: int) -> bool:
        is_forced = "grammar" in handler.asked_for
        if is_forced:
            sending(other)(handler, reply)
        return is_forced

    with faking(changing) as server:
        found = answers(world, root_of(server.address), world.frames[:1])
    assert all(one.choice_scores is None for one in found)


def test_half_a_character_leaves_an_answer_whole(
    world: World, undisturbed: list[Prediction]
) -> None:
    """The fake leaves out the first byte of \u00e9, as llama.cpp does; its step is asked for."""
    (one, *_) = [one for one in undisturbed if one.answer == "caf\u00e9"]
    assert set(one.entropy) == {"mean", "sum", "max", "first"}
    with faking() as server:
        settings = ServedSettings(server=root_of(server.address), **QUICK)
        device = served.open_served(settings, Device.open(world.device))
        frame = next(each for each in world.frames if one.id in {q.id for q in each.questions})
        how = AnswerSettings(per_token=True)
        again = {p.id: p for p in served.answer_frames(device, [frame], how)}[one.id]
    assert again.token_entropies is not None
    assert len(again.token_entropies) == len("caf\u00e9".encode()) + 1


def test_the_whole_vocabulary_of_a_server_is_exact_whatever_the_head_has(world: World) -> None:
    """A head may have rows for pictures that the server's file leaves out."""
    from cdcca_cli.serving.llama import EVERY

    device = Device.open(world.device)
    profile = device.profile()
    wider = replace(profile, language=replace(profile.language, vocabulary=400))
    with faking() as server:
        settings = ServedSettings(server=root_of(server.address), **QUICK)
        one = served.open_served(settings, device)
        assert isinstance(one.asked, asked.LlamaAsked)
        every = asked.LlamaAsked(one.asked._server, wider, EVERY)
        found = served.answer_frames(replace(one, asked=every), world.frames[:1], SHORT)
        assert [each.entropy_of for each in found] == [None] * 3


def test_as_many_frames_are_in_flight_as_the_server_has_slots(
    world: World, undisturbed: list[Prediction]
) -> None:
    with faking(seconds=0.02, slots=4) as server:
        found = answers(world, root_of(server.address))
        assert server.most_at_once == 4
    assert anonymous(found) == anonymous(undisturbed)


def test_a_server_with_any_number_of_slots_gets_no_more_than_is_set(world: World) -> None:
    with faking(slots=1 << 30) as server:
        settings = ServedSettings(server=root_of(server.address), concurrency=3)
        opened = served.open_served(settings, Device.open(world.device))
        opened.asked.close()
    assert opened.asked.num_at_once == 3


def test_a_server_that_is_starting_is_waited_for(world: World) -> None:
    """The port refuses connections, then says 503, then answers."""
    with faking() as server:
        port = server.port
    address = f"http://127.0.0.1:{port}"
    with pytest.raises(Unavailable, match=r"after 0\.3 s"):
        answers(world, address, wait=0.3)
    code = (
        "import sys, time\n"
        "from tests.serving.fake_llama import FakeLlama\n"
        "from tests.teachers import server\n"
        f"server.PORT = {port}\n"
        "time.sleep(0.5)\n"
        "with server.responding(FakeLlama()):\n"
        "    time.sleep(30)\n"
    )
    child = subprocess.Popen([sys.executable, "-c", code], cwd=ROOT)
    try:
        assert len(answers(world, address, world.frames[:1], wait=20.0)) == 3
    finally:
        child.kill()
        child.wait()


def test_a_server_without_its_vision_part_is_refused(world: World) -> None:
    fake = fake_llama.FakeLlama()

    def blind(path: str, body: dict[str, Any] | None) -> dict[str, Any] | None:
        found = fake(path, body)
        return {**found, "modalities": {"vision": False}} if path == "/props" and found else found

    with fakes.responding(blind) as server, pytest.raises(Unavailable, match="vision part"):
        answers(world, root_of(server.address))


def test_ctrl_c_ends_it_at_once(world: World) -> None:
    with faking(always(fakes.silent(20.0))) as server:
        words = ["infer", world.manifest, "-m", world.device, "-o", "-"]
        words += ["--server", root_of(server.address)]
        child = subprocess.Popen(
            [sys.executable, "-m", "cdcca_cli", *map(str, words)],
            cwd=ROOT,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        while not any("n_predict" in body for body in server.bodies):
            assert child.poll() is None
            time.sleep(0.02)
        begin = time.monotonic()
        child.send_signal(signals.SIGINT)
        out, errors = child.communicate(timeout=15)
        assert time.monotonic() - begin < 3
    assert child.returncode == 130 and out == b"" and b"Traceback" not in errors


# ---------------------------------------------------------------- by chat


def test_another_server_is_asked_by_chat(world: World, messages: list[str]) -> None:
    with answering(Hashed()) as server:
        found = answers(world, f"{root_of(server.address)}/v1")
        texts = {body["messages"][0]["content"][1]["text"] for body in server.bodies}
        assert {body["model"] for body in server.bodies} == {"model"}
    assert len(found) == 72 and {one.entropy_of for one in found} == {"top20"}
    assert "How many?\nAnswer the question using a single word or phrase." in texts
    assert "Describe the image in one short sentence." in texts
    assert all(one.choice_scores is None and one.choice is None for one in found)
    assert [line for line in messages if "scores no choices" in line] == messages
    with answering(Hashed()) as server:
        named = answers(world, root_of(server.address) + "#model")
    assert anonymous(named) == anonymous(found)


def test_a_chat_server_that_tells_no_log_probabilities_is_refused(
    world: World, messages: list[str]
) -> None:
    def without_any(reply: dict[str, Any]) -> dict[str, Any]:
        (choice,) = reply["choices"]
        return {**reply, "choices": [{**choice, "logprobs": None}]}

    skipped = Skipped()
    with answering(Hashed(), always(sending(without_any))) as server:
        assert answers(world, server.address, world.frames[:1], skipped) == []
    with pytest.raises(BadData):
        skipped.refuse_if_all()
    assert any("without log-probabilities" in line for line in messages)


def test_a_fault_of_a_chat_server_passes(world: World) -> None:
    with answering(Hashed()) as server:
        wanted = answers(world, server.address, world.frames[:3])
    with answering(Hashed(), once(status(503))) as server:
        assert anonymous(answers(world, server.address, world.frames[:3])) == anonymous(wanted)


def test_what_only_llama_server_can_is_refused_elsewhere(world: World) -> None:
    with answering(Hashed()) as server, pytest.raises(SettingError, match="needs llama-server"):
        answers(world, server.address, exact_entropy=True)
    for name in ("exact_entropy", "export"):
        with pytest.raises(SettingError, match="is of a `server`"):
            ServedSettings(**{name: True})
    with pytest.raises(UsageError, match=r"not an address|expected an address"):
        answers(world, "here")


# ---------------------------------------------------------------- pictures and prompts


def test_the_picture_is_what_the_tower_sees(world: World) -> None:
    """So that nothing is left for the server to do; without a rule it is the frame's own."""
    from PIL import Image

    from cdcca_cli.models import load

    profile = Device.open(world.device).profile()
    model = load(str(world.checkpoint), compute="cpu")
    for frame in world.frames[:3]:
        with Image.open(frame.image) as image:
            levels, own = model.seen_levels(image.convert("RGB")), image.size
        shown = served.shown(frame, profile)
        with Image.open(io.BytesIO(shown.data)) as sent:
            assert sent.format == "PNG" and sent.size == shown.size
            np.testing.assert_array_equal(np.asarray(sent), levels)
        assert served.shown(frame, replace(profile, picture=None)).size == own


def test_marks_that_llama_cpp_adds_are_not_doubled(world: World) -> None:
    profile = Device.open(world.device).profile()

    def text(template: str, marks: str | None = None) -> str:
        layout = None if marks is None else Layout(marks=marks)
        made = replace(profile, prompts={"vqa": template, "caption": template}, layout=layout)
        return asked.with_marker(made, "vqa", "<M>")

    assert text("U: {picture}\n{prompt}", "") == "U: <M>\n{prompt}"
    qwen = "<|vision_start|>{picture}<|vision_end|>{prompt}"
    assert text(qwen) == "<M>{prompt}"
    gemma = "\n\n<start_of_image>{256}<end_of_image>\n\n"
    assert text("U{picture}{prompt}", gemma) == "U\n\n<M>\n\n{prompt}"
    assert text("[INST]{picture}[IMG_END]{prompt}") == "[INST]<M>{prompt}"
    assert text("<box>{picture}</box>{prompt}") == "<box><M></box>{prompt}"
    assert text("{picture}{prompt}", "<r>{4}<r>{4}") == "<M>{prompt}"
    assert text("{prompt}") == "<M>{prompt}"


@given(st.text(st.sampled_from("<>/s|im_pad "), max_size=24))
def test_no_special_word_is_left_in_a_question(words: str) -> None:
    special = ["</s>", "<s>", "<pad>", "<|im|>", "s/"]
    found = asked.as_text(words, asked._pattern(special))
    assert not any(one in found for one in special)
    assert found.replace(" ", "") == words.replace(" ", "")


def test_an_address_s_digest_is_its_own() -> None:
    address = Address("http://h:1", "m")
    others = [Address("http://h:2", "m"), Address("http://h:1", "n")]
    found = {served.digest_of(each, "f") for each in (address, *others)}
    assert len(found | {served.digest_of(address, "g")}) == 4
