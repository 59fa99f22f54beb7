"""Answers from a server that runs the device's model: `cdcca infer` without torch.

A frame becomes the tower's picture by the rule of the device's profile (`formats.profile`), as PNG,
so that nothing is left for the server to do; where there is no rule it goes as it is. `asked` asks.
"""

import hashlib
import io
import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cdcca_cli import streams
from cdcca_cli.datasets import Frame, LabelledQuestion, image_name, load_image
from cdcca_cli.errors import BadData, CdccaError, MissingInput, SettingError, UsageError
from cdcca_cli.formats.device import Device
from cdcca_cli.formats.digest import is_digest, short
from cdcca_cli.formats.pictures import Picture
from cdcca_cli.formats.predictions import Prediction
from cdcca_cli.formats.profile import Profile
from cdcca_cli.models.settings import MAX_NEW_TOKENS
from cdcca_cli.payloads.pictures import PNG
from cdcca_cli.payloads.preparing import prepared
from cdcca_cli.serving.address import Address
from cdcca_cli.serving.http import Final
from cdcca_cli.serving.in_order import in_order
from cdcca_cli.serving.llama import EVERY, LlamaServer
from cdcca_cli.serving.openai import ChatServer, Dialect
from cdcca_cli.skipped import Skipped
from cdcca_cli.text import read_json
from cdcca_cli.uplink.asked import NUM_TOP, Answer, Asked, ChatAsked, LlamaAsked
from cdcca_cli.uplink.entropies import summarise
from cdcca_cli.uplink.settings import AnswerSettings, ServedSettings

_EXPORT, _MOST_BYTES = "export.json", 1 << 24


@dataclass(frozen=True)
class Served:
    """A server that answers for a device. model: the digest that its predictions name."""

    asked: Asked
    profile: Profile
    model: str


def open_served(settings: ServedSettings, device: Device) -> Served:
    """Find out what a server is, and wait for it if it is starting.

    Raises: Unavailable; UsageError for an address that names no model, and none or several there;
        MissingInput, BadData for a device without profile, and for what is no export of it.
    """
    assert settings.server is not None
    address = Address.parse(settings.server, "server", needs_model=False)
    profile = device.profile()
    overlay, names = _exported(settings.export, device)
    llama = LlamaServer.open(address, settings.connection, wait_seconds=settings.wait)
    if llama is None:
        if settings.exact_entropy:
            raise SettingError("exact_entropy", f"needs llama-server, which {address} is not")
        chat, address = _chat_server(address, settings)
        asked: Asked = ChatAsked(chat, profile, settings.concurrency)
        file = ""
    else:
        try:
            asked = LlamaAsked(llama, profile, EVERY if settings.exact_entropy else NUM_TOP)
        except BaseException:
            llama.close()
            raise
        file = llama.props.file
        if names and file not in names:
            streams.message(f"{address} runs {file}, which is no file of {settings.export}")
    if profile.picture is None:
        streams.message(
            "the device's profile has no rule for pictures: frames are sent as they are, and the "
            "server makes of them what it does"
        )
    return Served(asked, profile, overlay or digest_of(address, file))


def _exported(folder: Path | None, device: Device) -> tuple[str | None, set[str]]:
    """The digest of the overlay in an export, and the names of its files and inputs."""
    if folder is None:
        return None, set()
    value = read_json(folder / _EXPORT, _MOST_BYTES)
    of = value.get("device") if isinstance(value, dict) and value.get("kind") == "export" else None
    if not isinstance(of, dict) or not is_digest(of.get("overlay")):
        raise BadData(f"{folder}: is no export of cdcca")
    if of.get("model") != device.model:
        raise BadData(f"{folder}: is an export of another model than {device.path}")
    overlay: str = of["overlay"]
    if overlay != device.digest:
        streams.message(
            f"{folder} has the overlay {short(overlay)}, the device is at {short(device.digest)}: "
            "export again, and restart the server"
        )
    parts = (value.get(name) for name in ("files", "inputs"))
    return overlay, {name for part in parts if isinstance(part, dict) for name in part}


def _chat_server(address: Address, settings: ServedSettings) -> tuple[ChatServer, Address]:
    """A server, and its address with the model that it serves."""
    if address.url.count("/") == 2:  # a host alone
        address = Address(f"{address.url}/v1", address.model)
    server = ChatServer(address, settings.connection, Dialect(top=NUM_TOP))
    if address.model:
        return server, address
    try:
        named = server.client.ask("/models", None, _model_names)
    finally:
        server.close()
    if len(named) != 1:
        listed = ", ".join(named[:5]) or "none"
        raise UsageError(f"`server` {address}: name its model behind a #, of {listed}")
    return _chat_server(Address(address.url, named[0]), settings)


def _model_names(value: Any) -> list[str]:
    rows = value.get("data") if isinstance(value, dict) else None
    if not isinstance(rows, list):
        raise BadData("a malformed list of models")
    return [row["id"] for row in rows if isinstance(row, dict) and isinstance(row.get("id"), str)]


def digest_of(address: Address, file: str) -> str:
    """What names a model that only its address is known of: its URL, its name and its file."""
    text = "\n".join(("cdcca served 1", address.url, address.model, file))
    return f"sha256:{hashlib.sha256(text.encode()).hexdigest()}"


Outcome = Prediction | tuple[str, CdccaError]
"""A prediction, or what is left out and why."""


def answer_frames(
    served: Served,
    frames: Iterable[Frame],
    settings: AnswerSettings | None = None,
    skipped: Skipped | None = None,
    *,
    is_live: bool = False,
) -> Iterator[Prediction]:
    """Answer every question of every frame, in order, as many frames at once as the server takes.

    Args: skipped: counts bad frames and questions, which are left out; None: they are errors.
        is_live: the next frame may be far off, so each is answered before it.
    Raises: BadData, MissingInput for the first bad frame or question, if it may not be left out;
        Unavailable if the server is down or too slow.
    """
    settings = settings or AnswerSettings()
    skipped = skipped or Skipped(strict=True)

    def work(frame: Frame) -> list[Outcome]:
        return [*_answers(served, frame, settings)]

    try:
        if is_live:
            found = (outcome for frame in frames for outcome in work(frame))
        else:
            done = in_order(work, frames, served.asked.num_at_once)
            found = (outcome for _, made in done if isinstance(made, list) for outcome in made)
        for outcome in found:
            if isinstance(outcome, Prediction):
                skipped.num_sound += 1
                yield outcome
            else:
                skipped.add(*outcome)
    finally:
        served.asked.close()


def _answers(served: Served, frame: Frame, settings: AnswerSettings) -> Iterator[Outcome]:
    try:
        picture = shown(frame, served.profile)
    except (BadData, MissingInput) as error:
        yield "frame", error
        return
    for question in frame.questions:
        limit = settings.max_new_tokens or MAX_NEW_TOKENS[question.task]
        choices = (question.choices or []) if settings.score_choices else []
        try:
            answer = served.asked.answer(picture, question, limit, choices)
            yield _prediction(served, frame, question, answer, settings.per_token)
        except BadData as fault:
            name = frame.id if question.id == frame.id else f"{frame.id}: question {question.id}"
            kind = "answer" if isinstance(fault, Final) else "question"
            yield kind, BadData(f"{name}: {fault}")


def _prediction(
    served: Served, frame: Frame, question: LabelledQuestion, answer: Answer, per_token: bool
) -> Prediction:
    steps, scores = answer.steps, answer.scores
    if not steps:
        raise Final("the server answered with no token that it describes")
    is_exact = all(step.is_exact for step in steps)
    choices = question.choices or []
    least = None if is_exact else summarise([max(0.0, step.least) for step in steps])
    most = [max(0.0, step.most) for step in steps]
    return Prediction(
        id=question.id,
        image=image_name(frame),
        task=question.task,
        prompt=question.prompt,
        answer=answer.text,
        choice=None if scores is None else choices[scores.index(max(scores))],
        choices=question.choices,
        choice_scores=scores,
        entropy=summarise(most),
        token_entropies=most if per_token else None,
        model=served.model,
        domain=frame.domain,
        margin=min(1.0, max(0.0, math.fsum(step.margin for step in steps) / len(steps))),
        entropy_of=None if is_exact else f"top{answer.num_top}",
        entropy_least=least,
    )


def shown(frame: Frame, profile: Profile) -> Picture:
    """The picture that the tower sees, as a PNG file; the frame as it is where no rule makes it.

    Raises: BadData, MissingInput.
    """
    image = load_image(frame).convert("RGB")
    if profile.picture is not None:
        image = prepared(image, profile.picture)
    image.info = {}
    out = io.BytesIO()
    image.save(out, "PNG")
    return Picture(out.getvalue(), PNG, image.size)
