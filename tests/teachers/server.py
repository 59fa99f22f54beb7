"""Servers for tests: they answer chat completions with pictures, or anything else, and fail.

`responding` serves any function; `answering(answer)` serves any function from a request to a
`Said`. `Hashed` needs no model: its words depend on the picture and the text alone. `Shipped` is
the teacher in the package. As vLLM and llama-server do, they list the end token among the
log-probabilities.
"""

import base64
import hashlib
import io
import json
import math
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

Top = list[tuple[bytes, float]]
END = b"</s>"
LETTERS = [bytes([code]) for code in range(65, 91)]
PORT = 0
"""Where to listen; 0: where it is free."""
WORDS = ("yes", "no", "red", "two dogs", "a small boat", "caf\u00e9", "7")


@dataclass(frozen=True)
class Said:
    """An answer: its tokens, the end token last unless it was cut, each with the likeliest."""

    pieces: list[bytes]
    tops: list[Top]
    finish: str = "stop"


class Request:
    """What a request asks. picture: its data; media: as it was declared."""

    def __init__(self, body: dict[str, Any]) -> None:
        (message,) = body["messages"]
        picture, text = message["content"]
        assert [picture["type"], text["type"]] == ["image_url", "text"]
        head, _, coded = picture["image_url"]["url"].partition(";base64,")
        self.media = head.removeprefix("data:")
        self.picture = base64.b64decode(coded, validate=True)
        self.text: str = text["text"]
        self.limit: int = body.get("max_tokens", body.get("max_completion_tokens"))
        self.num_top: int = body.get("top_logprobs", 0)


Answer = Callable[[Request], Said]


class Hashed:
    """Words by a hash of picture and text. sees: whether the picture counts."""

    def __init__(self, *, sees: bool = True) -> None:
        self._sees = sees

    def __call__(self, request: Request) -> Said:
        picture = request.picture if self._sees else b""
        digest = hashlib.sha256(picture + request.text.encode()).digest()
        letters = [line[0] for line in request.text.splitlines() if line[1:3] == ". "]
        words = letters or WORDS
        text = words[digest[0] % len(words)]
        pieces = [part.encode() for part in text.replace(" ", "\0 ").split("\0")]
        tops = []
        for place, piece in enumerate([*pieces, END]):
            others = [one.encode() for one in words if one.encode() != piece]
            first = 0.4 + 0.5 * digest[1 + place] / 255
            left = [(1 - first) / 2 ** (rank + 1) for rank in range(len(others))]
            pairs = [(piece, first), *zip(others, left, strict=True)]
            tops.append([(one, math.log(share)) for one, share in pairs][: request.num_top])
        return Said([*pieces, END], tops)


SHORT = "\nAnswer the question using a single word or phrase."


class Shipped:
    """The shipped teacher, one request at a time.

    It knows questions without the words that ask for a short answer, and no letters: asked for one
    it gives that of the likeliest choice.
    """

    def __init__(self) -> None:
        from cdcca_cli import models

        self.model = models.load("shipped:teacher", dtype="float32")
        self._lock = threading.Lock()

    def __call__(self, request: Request) -> Said:
        import torch
        from PIL import Image

        from cdcca_cli.families.family import SHORT_CAPTION
        from cdcca_cli.models.decoding import right_padded

        model, text = self.model, request.text
        lines = text.splitlines()
        choices = [line.partition(". ")[2] for line in lines if line[1:3] == ". "]
        is_question = bool(choices) or text.endswith(SHORT)
        words = lines[0] if choices else text.removesuffix(SHORT)
        with self._lock, torch.no_grad():
            image = Image.open(io.BytesIO(request.picture)).convert("RGB")
            seen = model.see(model.prepare([image]))
            asked = None if words == SHORT_CAPTION else words
            prompt = model.format_prompt(asked, "vqa" if is_question else "caption")
            spliced = model.read(seen, [prompt])
            if choices:
                (scores,) = model.score_choices(spliced, [choices])
                shares = torch.tensor(scores).log_softmax(0).tolist()
                top = sorted(zip(LETTERS, shares, strict=False), key=lambda one: -one[1])
                return Said([top[0][0], END], [top, [(END, 0.0)]])
            (ids,) = model.generate(spliced, request.limit).ids
            forward = model.forward(model.read(seen, [prompt]), right_padded([ids]))
            logp_AV = forward.logits[0].float().log_softmax(-1)
        tops: list[Top] = []
        for row in logp_AV:
            best = row.topk(max(request.num_top, 1))
            pairs = zip(best.indices.tolist(), best.values.tolist(), strict=True)
            tops.append([(self._piece(one), value) for one, value in pairs])
        is_cut = ids[-1] not in model.end_ids
        return Said([self._piece(one) for one in ids], tops, "length" if is_cut else "stop")

    def _piece(self, token: int) -> bytes:
        return str(self.model.tokenizer.decode([token])).encode()


@dataclass
class Served:
    """A running server. asked: number of requests, by the hash of their bodies."""

    port: int
    asked: Counter[str]
    bodies: list[dict[str, Any]]
    headers: list[dict[str, str]]
    most_at_once: int = 0

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.port}/v1#model"


# A fault: what to do instead of answering, for the n-th time (from 0) that a body comes. It gets
# the handler and the answer as JSON; returns whether it has answered.
Fault = Callable[[Any, dict[str, Any], int], bool]


def once(fault: Callable[[Any, dict[str, Any]], None]) -> Fault:
    """A fault of the first time that a request comes."""

    def first(handler: Any, reply: dict[str, Any], number: int) -> bool:
        if number == 0:
            fault(handler, reply)
        return number == 0

    return first


def status(code: int, body: object = None, **headers: str) -> Callable[[Any, dict[str, Any]], None]:
    return lambda handler, reply: handler.send(code, json.dumps(body).encode(), headers)


def sending(change: Callable[[dict[str, Any]], object]) -> Callable[[Any, dict[str, Any]], None]:
    """Send what `change` makes of the right reply: an object, or bytes as they are."""

    def send(handler: Any, reply: dict[str, Any]) -> None:
        made = change(reply)
        handler.send(200, made if isinstance(made, bytes) else json.dumps(made).encode())

    return send


def cut_off(handler: Any, reply: dict[str, Any]) -> None:
    """Half of the body, then the end of the connection."""
    data = json.dumps(reply).encode()
    handler.send(200, data[: len(data) // 2], length=len(data))
    handler.close_connection = True


def hung_up(handler: Any, reply: dict[str, Any]) -> None:
    """The end of the connection instead of an answer."""
    handler.close_connection = True


def silent(seconds: float) -> Callable[[Any, dict[str, Any]], None]:
    def wait(handler: Any, reply: dict[str, Any]) -> None:
        time.sleep(seconds)
        handler.close_connection = True

    return wait


def completion(said: Said, body: dict[str, Any]) -> dict[str, Any]:
    """An answer as a chat completion."""
    is_cut = said.finish == "length"
    text = b"".join(said.pieces if is_cut else said.pieces[:-1]).decode("utf-8", "replace")
    made: dict[str, Any] = {
        "index": 0,
        "message": {"role": "assistant", "content": text, "refusal": None},
        "finish_reason": said.finish,
        "logprobs": None,
    }
    if body.get("logprobs"):
        made["logprobs"] = {
            "content": [
                {**entry(piece, dict(top)[piece]), "top_logprobs": [entry(*one) for one in top]}
                for piece, top in zip(said.pieces, said.tops, strict=True)
            ]
        }
    return {"id": "1", "object": "chat.completion", "model": body["model"], "choices": [made]}


def entry(piece: bytes, logp: float) -> dict[str, Any]:
    return {"token": piece.decode("utf-8", "replace"), "bytes": [*piece], "logprob": logp}


def answering(
    answer: Answer, fault: Fault | None = None, *, seconds: float = 0.0
) -> AbstractContextManager[Served]:
    """Serve chat completions on loopback. Args: seconds: that each answer takes."""

    def respond(path: str, body: dict[str, Any] | None) -> dict[str, Any] | None:
        if path == "/v1/models":
            return {"object": "list", "data": [{"id": "model"}]}
        if path != "/v1/chat/completions" or body is None:
            return None
        return completion(answer(Request(body)), body)

    return responding(respond, fault, seconds=seconds)


@contextmanager
def responding(
    respond: Callable[[str, dict[str, Any] | None], dict[str, Any] | None],
    fault: Fault | None = None,
    *,
    seconds: float = 0.0,
    get: Callable[[Any], None] | None = None,
) -> Iterator[Served]:
    """Serve on loopback what `respond` makes of a path and a body (None: a GET); None: 404.

    Args: seconds: that each answer takes. fault: of POST alone. get: answers GET instead.
    """
    lock = threading.Lock()
    served = Served(0, Counter(), [], [])
    num_now = 0

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        disable_nagle_algorithm = True
        asked_for: dict[str, Any]

        def do_GET(self) -> None:
            if get is not None:
                get(self)
                return
            reply = respond(self.path, None)
            self.send(404 if reply is None else 200, json.dumps(reply).encode())

        def do_POST(self) -> None:
            nonlocal num_now
            data = self.rfile.read(int(self.headers["Content-Length"]))
            body = self.asked_for = json.loads(data)
            key = hashlib.sha256(data).hexdigest()
            with lock:
                number = served.asked[key]
                served.asked[key] += 1
                served.bodies.append(body)
                served.headers.append(dict(self.headers))
                num_now += 1
                served.most_at_once = max(served.most_at_once, num_now)
            try:
                time.sleep(seconds)
                reply = respond(self.path, body)
                if reply is None:
                    self.send(404, b"{}")
                elif fault is None or not fault(self, reply, number):
                    self.send(200, json.dumps(reply).encode())
            finally:
                with lock:
                    num_now -= 1

        def send(
            self,
            code: int,
            data: bytes,
            headers: dict[str, str] | None = None,
            length: int | None = None,
        ) -> None:
            self.send_response(code)
            for name, value in (headers or {}).items():
                self.send_header(name.replace("_", "-"), value)
            self.send_header("Content-Length", str(len(data) if length is None else length))
            self.end_headers()
            with suppress(OSError):
                self.wfile.write(data)

        def log_message(self, *_: object) -> None:
            pass

    class Quiet(ThreadingHTTPServer):
        daemon_threads = True
        request_queue_size = 256

        def handle_error(self, *_: object) -> None:
            pass

    server = Quiet(("127.0.0.1", PORT), Handler)
    served.port = server.server_port
    thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    try:
        yield served
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
