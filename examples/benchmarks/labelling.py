"""Questions a second of labelling: by address beside a load generator, here beside `generate`.

    python examples/benchmarks/labelling.py [--questions 800] [--concurrency 8,32] [--latency 0.1]
    python examples/benchmarks/labelling.py --local [--questions 400]

Both ask the same server, in a process of its own, that answers each request after a fixed time with
20 log-probabilities a token; with the same bodies, in the same number of requests at a time, in
turns, `--runs` times each. The generator keeps its connections, sends bytes made before and reads
no answer; cdcca makes its requests from shards, reads and checks the answers and writes a file of
labels. Prints one JSON object for each concurrency: the best requests a second of each, and the
ratio of these.

With `--local` the shipped teacher answers the questions of the shipped stream: by `cdcca label`'s
library call from tokens, with distributions and features, and by transformers' processor and
`generate` from pixels, in batches of 64, text alone; in turns, CPU seconds of one thread.
"""

import argparse
import asyncio
import http.client
import io
import json
import math
import os
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from urllib.parse import urlsplit

import numpy as np

from cdcca_cli.formats.label_stream import writing
from cdcca_cli.formats.pictures import bare
from cdcca_cli.formats.shard import Layout, Question, Shard
from cdcca_cli.serving.address import Address
from cdcca_cli.serving.openai import Dialect
from cdcca_cli.skipped import Skipped
from cdcca_cli.teachers import chat
from cdcca_cli.teachers.labelling import Lacks, add_missing
from cdcca_cli.teachers.served import ServedTeacher, jobs_of
from cdcca_cli.teachers.settings import ServerSettings

QUESTIONS_A_FRAME = 4
SIZE = (336, 336)


def reply() -> bytes:
    """An answer of two tokens and the end token, each with 20 likeliest ones."""
    tokens = []
    for word in ("two", " dogs", "<|im_end|>"):
        top = [
            (word if rank == 0 else f"w{rank}", math.log(0.5 ** (rank + 1))) for rank in range(20)
        ]
        listed = [{"token": one, "bytes": [*one.encode()], "logprob": logp} for one, logp in top]
        tokens.append({**listed[0], "top_logprobs": listed})
    message = {"role": "assistant", "content": "two dogs"}
    choice = {"message": message, "finish_reason": "stop", "logprobs": {"content": tokens}}
    return json.dumps({"model": "m", "choices": [{"index": 0, **choice}]}).encode()


async def serve(latency: float) -> None:
    """Answer each request after `latency` seconds. Prints the port."""
    body = reply()
    answer = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%s"
    answer %= (len(body), body)

    async def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while True:
                head = (await reader.readuntil(b"\r\n\r\n")).lower()
                length = int(head.split(b"content-length:")[1].split(b"\r\n")[0])
                await reader.readexactly(length)
                await asyncio.sleep(latency)
                writer.write(answer)
                await writer.drain()
        except (asyncio.IncompleteReadError, ConnectionError):
            writer.close()

    server = await asyncio.start_server(connected, "127.0.0.1", 0, limit=1 << 22, backlog=1024)
    sys.stdout.write(f"{server.sockets[0].getsockname()[1]}\n")
    sys.stdout.flush()
    await server.serve_forever()


def frames(number: int) -> list[Shard]:
    """Frames with a JPEG of about 20 kB, as a camera's."""
    from PIL import Image

    found = []
    for place in range(number):
        values = np.random.default_rng(place).integers(0, 256, (42, 42, 3), dtype=np.uint8)
        out = io.BytesIO()
        Image.fromarray(values).resize(SIZE, Image.Resampling.BICUBIC).save(out, "JPEG", quality=75)
        questions = [
            Question(f"{place}-{n}", f"What is at {n}?", "vqa") for n in range(QUESTIONS_A_FRAME)
        ]
        found.append(
            Shard(
                frame=f"{place}",
                image=f"{place}.jpg",
                domain=None,
                tokens=np.zeros((0, 0), np.float32),
                positions=np.arange(4, dtype=np.int32),
                num_tokens=4,
                tower="sha256:" + 64 * "0",
                questions=questions,
                picture=bare(out.getvalue()),
                layout=Layout((2, 2)),
            )
        )
    return found


def generate(address: str, bodies: list[bytes], concurrency: int) -> float:
    """Seconds that the requests alone take."""
    parts = urlsplit(address)
    todo = iter(bodies)
    lock = threading.Lock()

    def run() -> None:
        connection = http.client.HTTPConnection(parts.hostname or "", parts.port)
        while True:
            with lock:
                body = next(todo, None)
            if body is None:
                break
            headers = {"Content-Type": "application/json"}
            connection.request("POST", f"{parts.path}/chat/completions", body, headers)
            connection.getresponse().read()
        connection.close()

    begin = time.perf_counter()
    threads = [threading.Thread(target=run) for _ in range(concurrency)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return time.perf_counter() - begin


def label(address: str, shards: list[Shard], concurrency: int) -> float:
    """Seconds that labelling takes, the file of labels included."""
    settings = ServerSettings(concurrency=concurrency, skip_check=True)
    with tempfile.TemporaryDirectory() as folder:
        begin = time.perf_counter()
        teacher = ServedTeacher(Address.parse(address), settings)
        with writing(Path(folder) / "a.labels", 16, teacher=teacher.source.name) as write:
            assert write.labels is not None
            count = add_missing(teacher, shards, write, Lacks(write.labels), Skipped(strict=True))
        seconds = time.perf_counter() - begin
        teacher.close()
    assert count == len(shards) * QUESTIONS_A_FRAME
    return seconds


def local(num_questions: int, runs: int) -> dict[str, float]:
    """Questions a CPU second of the shipped teacher: cdcca's, and a plain loop's."""
    import torch
    from training import Plain, make_shards

    from cdcca_cli.formats.shard_stream import read_shards
    from cdcca_cli.models import load
    from cdcca_cli.teachers.local import LocalTeacher

    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        make_shards({"folder": folder, "frames": num_questions // 4, "keep": "100%"})
        lines = (Path(folder) / "questions.jsonl").read_text().splitlines()
        with open(Path(folder) / "shards.tokens", "rb") as file:
            shards = list(read_shards(file))
    questions = list(map(json.loads, lines))
    plain, teacher = Plain(), LocalTeacher(load("shipped:teacher", compute="cpu", dtype="float32"))
    best: dict[str, float] = {"plain": 0.0, "cdcca": 0.0}
    for _ in range(runs):
        begin = time.process_time()
        with torch.no_grad():
            for at in range(0, len(questions), 64):
                plain.generate(questions[at : at + 64])
        middle = time.process_time()
        entries = list(teacher.label(shards, Lacks(), Skipped(strict=True)))
        end = time.process_time()
        assert entries
        best["plain"] = max(best["plain"], len(questions) / (middle - begin))
        best["cdcca"] = max(best["cdcca"], len(questions) / (end - middle))
    return {name: round(value, 1) for name, value in best.items()} | {
        "ratio": round(best["cdcca"] / best["plain"], 2),
        "questions": len(questions),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--questions", type=int, default=800)
    parser.add_argument("--concurrency", default="8,32")
    parser.add_argument("--latency", type=float, default=0.1)
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--local", action="store_true", help="the shipped teacher, loaded here")
    parser.add_argument("--serve", action="store_true", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.serve:
        asyncio.run(serve(given.latency))
        return
    if given.local:
        sys.stdout.write(json.dumps(local(given.questions, given.runs)) + "\n")
        return
    shards = frames(given.questions // QUESTIONS_A_FRAME)
    bodies = [
        json.dumps(chat.body(job.free, "m", Dialect())).encode()
        for shard in shards
        for job in jobs_of(shard, range(QUESTIONS_A_FRAME))
    ]
    words = [sys.executable, __file__, "--serve", "--latency", str(given.latency)]
    with subprocess.Popen(words, stdout=subprocess.PIPE, text=True) as child:
        assert child.stdout is not None
        address = f"http://127.0.0.1:{int(child.stdout.readline())}/v1#m"
        try:
            for concurrency in map(int, given.concurrency.split(",")):
                alone, labelled = [], []
                for _ in range(given.runs):
                    alone.append(len(bodies) / generate(address, bodies, concurrency))
                    labelled.append(len(bodies) / label(address, shards, concurrency))
                found = {
                    "concurrency": concurrency,
                    "latency_s": given.latency,
                    "request_kb": round(len(bodies[0]) / 1000, 1),
                    "most_possible": round(concurrency / given.latency, 1),
                    "generator": round(max(alone), 1),
                    "cdcca": round(max(labelled), 1),
                    "ratio": round(max(labelled) / max(alone), 3),
                    "cores": os.cpu_count(),
                }
                sys.stdout.write(json.dumps(found) + "\n")
                sys.stdout.flush()
        finally:
            child.kill()


if __name__ == "__main__":
    main()
