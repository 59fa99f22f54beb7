"""`cdcca eval`: streams, exit codes, one JSON object, tables on a terminal."""

import json
import os
import random
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
from PIL import Image

from cdcca_cli.main import main

ROOT = Path(__file__).parents[2]


@dataclass(frozen=True)
class Run:
    returncode: int
    stdout: bytes
    stderr: bytes


Eval = Callable[..., Run]


@pytest.fixture
def cdcca_eval(capfdbinary: pytest.CaptureFixture[bytes], tmp_path: Path) -> Eval:
    """Runs `cdcca eval` in this process, with its own three streams."""

    def run(*options: object, stdin: bytes = b"") -> Run:
        (tmp_path / "stdin").write_bytes(stdin)
        kept = os.dup(0)
        with open(tmp_path / "stdin", "rb") as file:
            os.dup2(file.fileno(), 0)
        try:
            code = main(["eval", *map(str, options)])
        finally:
            os.dup2(kept, 0)
            os.close(kept)
        return Run(code, *capfdbinary.readouterr())

    return run


def prediction(number: int, draw: random.Random) -> dict[str, object]:
    vqa = number % 2 == 0
    return {
        "v": 1,
        "id": str(number),
        "image": "a.png",
        "task": "vqa" if vqa else "caption",
        "prompt": "?" if vqa else None,
        "answer": draw.choice(["dog", "cat"]) if vqa else " ".join(draw.choices("abcd", k=6)),
        "choice": draw.choice(["dog", "cat"]) if vqa else None,
        "choices": ["dog", "cat"] if vqa else None,
        "choice_scores": [-1.0, -2.0] if vqa else None,
        "entropy": {"mean": 0.5, "sum": 1.0, "max": 0.7, "first": 0.3},
        "token_entropies": None,
        "model": "sha256:" + "0" * 64,
        "domain": None,
    }


@pytest.fixture
def world(tmp_path: Path) -> tuple[Path, list[str]]:
    """A folder of 20 frames with one question or one caption each, and predictions as lines."""
    draw = random.Random(0)
    with open(tmp_path / "frames.jsonl", "w") as file:
        for number in range(20):
            line: dict[str, object] = {"id": number, "image": f"{number}.png"}
            if number % 2 == 0:
                line |= {"prompt": "?", "choices": ["dog", "cat"], "correct_choice_idx": 0}
                line |= {"answers": ["dog"] * 3, "kind": "animal"}
            else:
                line |= {"captions": [" ".join(draw.choices("abcd", k=6)) for _ in range(2)]}
            file.write(json.dumps({**line, "domain": "near" if number < 10 else "far"}) + "\n")
            Image.new("RGB", (8, 8)).save(tmp_path / f"{number}.png")
    return tmp_path, [json.dumps(prediction(number, draw)) for number in range(20)]


def save(path: Path, lines: list[str]) -> Path:
    path.write_text("\n".join(lines) + "\n")
    return path


def test_order_splitting_and_pipe_change_nothing(
    world: tuple[Path, list[str]], cdcca_eval: Eval
) -> None:
    folder, lines = world
    whole = save(folder / "p", lines)
    turned = lines[::-1]
    first, second = save(folder / "1", turned[:7]), save(folder / "2", turned[7:])
    runs = [
        cdcca_eval(whole, "--references", folder),
        cdcca_eval(second, first, "--references", folder / "frames.jsonl"),
        cdcca_eval("--references", folder, stdin="\n".join(turned).encode()),
        cdcca_eval("-", first, "--references", folder, stdin=second.read_bytes()),
    ]
    for run in runs:
        assert (run.returncode, run.stderr) == (0, b"")
        assert run.stdout == runs[0].stdout
    report = json.loads(runs[0].stdout)
    assert set(report["scores"]) == {"mc", "da", "bleu4", "cider"}
    mc = report["scores"]["mc"]
    assert (mc["n"], mc["frames"], set(mc["domains"]), set(mc["kinds"])) == (
        10,
        10,
        {"near", "far"},
        {"animal"},
    )
    right = sum(json.loads(line)["choice"] == "dog" for line in lines)
    assert mc["score"] == pytest.approx(10 * right)


def test_marks(world: tuple[Path, list[str]], cdcca_eval: Eval) -> None:
    folder, lines = world
    path = save(folder / "p", lines)
    assert cdcca_eval(path, "--references", folder, "--fail-under", "mc=0,cider=0").returncode == 0
    run = cdcca_eval(path, "--references", folder, "--fail-under", "mc=101,cider=0")
    assert run.returncode == 3
    assert b"mc is" in run.stderr and b"under 101" in run.stderr
    assert "scores" in json.loads(run.stdout)  # said before it fails
    questions = save(folder / "q", lines[::2])
    run = cdcca_eval(questions, "--references", folder, "--fail-under", "cider=0", "--quiet")
    assert run.returncode == 3
    assert run.stderr == b"cdcca: cider was not scored (mark 0)\n"


def test_against(world: tuple[Path, list[str]], cdcca_eval: Eval) -> None:
    folder, lines = world
    better = [line.replace('"choice": "cat"', '"choice": "dog"') for line in lines]
    report = json.loads(
        cdcca_eval(
            save(folder / "p", better),
            "--references",
            folder,
            "--against",
            save(folder / "q", lines),
        ).stdout
    )
    mc = report["against"]["mc"]
    wrong = sum('"choice": "cat"' in line for line in lines)
    assert mc["difference"] == pytest.approx(10 * wrong)
    assert mc["interval"][0] > 0
    assert report["against"]["da"]["difference"] == 0
    assert set(mc["domains"]) == {"near", "far"}


def test_what_is_odd_is_said(world: tuple[Path, list[str]], cdcca_eval: Eval) -> None:
    folder, lines = world
    stranger = lines[0].replace('"id": "0"', '"id": "stranger"')
    path = save(folder / "p", [*lines[:5], lines[2], stranger])
    run = cdcca_eval(path, "--references", folder)
    report = json.loads(run.stdout)
    assert (report["unknown_ids"], report["duplicates"], report["predictions"]) == (1, 1, 6)
    assert report["scores"]["mc"]["missing"] == 7
    said = run.stderr.decode()
    assert "'stranger'" in said and "twice" in said and "7 of 10 asks" in said
    report = json.loads(cdcca_eval(path, "--references", folder, "--answered-only").stdout)
    assert (report["scores"]["mc"]["n"], report["scores"]["mc"]["missing"]) == (3, 0)


@pytest.mark.parametrize(
    ("options", "stdin", "code", "said"),
    [
        ((), b"", 2, "--references"),
        (("p",), b"", 2, "--references"),
        (("--references", "frames.jsonl", "--task", "ocr", "p"), b"", 2, "--task"),
        (("--references", "frames.jsonl", "--fail-under", "meteor=3", "p"), b"", 2, "meteor"),
        (("--references", "frames.jsonl", "--fail-under", "mc", "p"), b"", 2, "mc"),
        (("--references", "frames.jsonl", "--fail-under", "mc=nan", "p"), b"", 2, "nan"),
        (("--references", "nothing.jsonl", "p"), b"", 66, "nothing.jsonl"),
        (("--references", "frames.jsonl", "nothing"), b"", 66, "nothing"),
        (("--references", "frames.jsonl"), b"", 65, "no predictions"),
        (("--references", "frames.jsonl"), b"hello\n", 65, "standard input"),
        (("--references", "frames.jsonl"), b'{"v": 1, "id": "0"}\n', 65, "line 1"),
        (("--references", "p", "p"), b"", 65, "p"),
        (("--uplink", "p"), b"", 65, "p"),
        (("--raw", "nowhere"), b"", 66, "nowhere"),
    ],
)
def test_faults(
    world: tuple[Path, list[str]],
    cdcca_eval: Eval,
    monkeypatch: pytest.MonkeyPatch,
    options: tuple[str, ...],
    stdin: bytes,
    code: int,
    said: str,
) -> None:
    folder, lines = world
    save(folder / "p", lines)
    monkeypatch.chdir(folder)
    run = cdcca_eval(*options, stdin=stdin)
    assert run.returncode == code
    assert said in run.stderr.decode()
    assert len(run.stderr.splitlines()) == 1
    assert run.stdout == b""


def test_output_file(world: tuple[Path, list[str]], cdcca_eval: Eval) -> None:
    folder, lines = world
    run = cdcca_eval(save(folder / "p", lines), "--references", folder, "-o", folder / "scores")
    assert run.stdout == b""
    assert json.loads((folder / "scores").read_text())["kind"] == "scores"


def test_through_a_pipe(world: tuple[Path, list[str]], cdcca_eval: Eval) -> None:
    folder, lines = world
    inside = cdcca_eval(save(folder / "p", lines), "--references", folder)
    command = [sys.executable, "-m", "cdcca_cli", "eval", "--references", str(folder)]
    text = "\n".join(lines).encode()
    outside = subprocess.run(command, input=text, capture_output=True, check=True, cwd=ROOT)
    assert (outside.stdout, outside.stderr) == (inside.stdout, b"")


def test_link_alone(world: tuple[Path, list[str]], cdcca_eval: Eval) -> None:
    folder, _ = world
    report = json.loads(cdcca_eval("--raw", folder).stdout)
    assert report["link"]["raw"]["bytes"]["raw_rgb"] == 20 * 8 * 8 * 3
    assert "scores" not in report


def test_table_on_a_terminal(world: tuple[Path, list[str]]) -> None:
    pty = pytest.importorskip("pty")
    folder, lines = world
    path = save(folder / "p", lines)
    master, slave = pty.openpty()
    command = [sys.executable, "-m", "cdcca_cli", "eval", str(path), "--references", str(folder)]
    with subprocess.Popen(
        [*command, "--against", str(path), "--raw", str(folder)],
        stdin=subprocess.DEVNULL,
        stdout=slave,
        stderr=subprocess.PIPE,
        env={**os.environ, "COLUMNS": "100"},
        cwd=ROOT,
    ) as process:
        os.close(slave)
        shown = b""
        while True:
            try:
                piece = os.read(master, 65536)
            except OSError:
                break
            if not piece:
                break
            shown += piece
    os.close(master)
    assert process.returncode == 0
    for word in (b"BLEU-4", b"CIDEr", b"domain near", b"kind animal", b"difference", b"webp_q75"):
        assert word in shown
    assert b"{" not in shown
