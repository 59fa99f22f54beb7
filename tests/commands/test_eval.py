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
from cdcca_cli.scoring.tasks import METRICS, TASKS

ROOT = Path(__file__).parents[2]
DATA = ROOT.parent / "shared" / "data"
real = pytest.mark.skipif(
    not DATA.is_dir(), reason="the real annotations are not beside the project"
)


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
    assert tuple(report["scores"]) == TASKS["manifest"].metrics
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
    groups = "mc.near=0,mc.animal=0,cider.far=0,da_norm=0,rouge_l=0"
    assert cdcca_eval(path, "--references", folder, "--fail-under", groups).returncode == 0
    run = cdcca_eval(path, "--references", folder, "--fail-under", "mc.near=101,mc.west=0")
    assert run.returncode == 3
    assert b"mc.near is" in run.stderr and b"mc.west was not scored" in run.stderr
    questions = save(folder / "q", lines[::2])
    run = cdcca_eval(questions, "--references", folder, "--fail-under", "cider=0", "--quiet")
    assert run.returncode == 3
    assert run.stderr.startswith(b"cdcca eval: cider was not scored (mark 0)\n")


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
    # Each of 10 frames changes its side with probability 1/2, and those that differ must agree.
    assert mc["p"] == pytest.approx(2 / 2**wrong, abs=0.01)
    assert (mc["better"], mc["worse"], mc["same"]) == (wrong, 0, 10 - wrong)
    assert report["against"]["da"]["difference"] == 0
    assert report["against"]["da"]["p"] == 1
    assert report["against"]["bleu4"]["better"] is None
    assert report["test"]["permutations"] == 10_000
    assert set(mc["domains"]) == {"near", "far"}


def test_what_is_odd_about_the_other_side_is_said(
    world: tuple[Path, list[str]], cdcca_eval: Eval
) -> None:
    """Half of the other's answers are not there: a difference that is worth nothing, so told."""
    folder, lines = world
    whole, half = save(folder / "p", lines), save(folder / "q", lines[:10])
    run = cdcca_eval(whole, "--references", folder, "--against", half, "--metrics", "mc,cider")
    (line,) = run.stderr.decode().splitlines()
    assert "mc, cider: 5 of 10 questions have no prediction and count as wrong" in line
    assert "against" in line.partition(" mc,")[0]
    against = json.loads(run.stdout)["against"]["mc"]
    assert against["missing"] == 5
    alone = json.loads(cdcca_eval(half, "--references", folder, "--quiet").stdout)
    assert against["score"] == alone["scores"]["mc"]["score"]
    options = ("--references", folder, "--against", half, "--answered-only")
    both = json.loads(cdcca_eval(whole, *options).stdout)["against"]["mc"]
    assert (both["n"], both["missing"], both["difference"]) == (5, 0, 0)


def test_what_is_odd_is_said(world: tuple[Path, list[str]], cdcca_eval: Eval) -> None:
    folder, lines = world
    stranger = lines[0].replace('"id": "0"', '"id": "stranger"')
    path = save(folder / "p", [*lines[:5], lines[2], stranger])
    run = cdcca_eval(path, "--references", folder)
    report = json.loads(run.stdout)
    assert (report["unknown_ids"], report["duplicates"], report["predictions"]) == (1, 1, 6)
    assert report["scores"]["mc"]["missing"] == 7
    said = run.stderr.decode()
    assert "'stranger'" in said and "more than once" in said and "7 of 10 questions" in said
    report = json.loads(cdcca_eval(path, "--references", folder, "--answered-only").stdout)
    assert (report["scores"]["mc"]["n"], report["scores"]["mc"]["missing"]) == (3, 0)


@pytest.mark.parametrize(
    ("options", "stdin", "code", "said"),
    [
        ((), b"", 2, "references"),
        (("p",), b"", 2, "references"),
        (("--references", "frames.jsonl", "--task", "ocr", "p"), b"", 2, "task"),
        (("--references", "frames.jsonl", "--task", "vqa", "--metrics", "f1", "p"), b"", 2, "f1"),
        (("--references", "frames.jsonl", "--metrics", "spice,", "p"), b"", 2, "metrics"),
        (("--references", "frames.jsonl", "--tokenizer", "x", "p"), b"", 2, "tokenizer"),
        (("--references", "frames.jsonl", "--fail-under", "f1=3", "p"), b"", 2, "f1"),
        (("--references", "frames.jsonl", "--round", "nothing"), b"", 66, "nothing"),
        (("--round", "p"), b"", 2, "references"),
        (("--raw", ".", "--link", "fast"), b"", 2, "link"),
        (("--references", "frames.jsonl", "--link", "1gbit,1ms", "p"), b"", 2, "link"),
        (("--raw", ".", "--encoder-size", "x"), b"", 2, "encoder-size"),
        (("--references", "frames.jsonl", "--encoder-size", "224", "p"), b"", 2, "raw"),
        (("--references", "frames.jsonl", "--plot", "p.bmp", "p"), b"", 2, "plot"),
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
    command = [sys.executable, "-m", "cdcca_cli", "eval", "--references", str(folder), "--quiet"]
    text = "\n".join(lines).encode()
    outside = subprocess.run(command, input=text, capture_output=True, check=True, cwd=ROOT)
    assert (outside.stdout, outside.stderr) == (inside.stdout, b"")


def test_link_alone(world: tuple[Path, list[str]], cdcca_eval: Eval) -> None:
    folder, _ = world
    report = json.loads(cdcca_eval("--raw", folder).stdout)
    assert report["link"]["raw"]["bytes"]["raw_rgb"] == 20 * 8 * 8 * 3
    assert "scores" not in report and "transfer" not in report["link"]


def test_a_modelled_link(world: tuple[Path, list[str]], cdcca_eval: Eval) -> None:
    """20 frames of 8 x 8 x 3 bytes are 30,720 bits: 30.72 ms at a megabit a second, after 10 ms."""
    folder, _ = world
    report = json.loads(cdcca_eval("--raw", folder, "--link", "1mbit,10ms").stdout)
    transfer = report["link"]["transfer"]
    assert transfer["modelled"] is True
    assert transfer["seconds"]["raw"]["raw_rgb"] == pytest.approx(0.01 + 20 * 8 * 8 * 3 * 8 / 1e6)


def test_plot(world: tuple[Path, list[str]], cdcca_eval: Eval) -> None:
    pytest.importorskip("matplotlib", reason="--plot needs matplotlib, which is not here")
    folder, lines = world
    path = save(folder / "p", lines)
    figure = folder / "report.svg"
    run = cdcca_eval(path, "--references", folder, "--against", path, "--plot", figure, "--quiet")
    assert (run.returncode, run.stderr) == (0, b"")
    assert json.loads(run.stdout)["kind"] == "scores"  # the data go where they went before
    assert figure.read_text().lstrip().startswith("<?xml")


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
        env={**os.environ, "COLUMNS": "200"},
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
    for word in (b"worse", b"random swaps", b"document frequencies", b"named among"):
        assert word in shown
    assert b"{" not in shown


def test_the_task_and_every_definition_are_told(
    world: tuple[Path, list[str]], cdcca_eval: Eval
) -> None:
    folder, lines = world
    report = json.loads(cdcca_eval(save(folder / "p", lines), "--references", folder).stdout)
    assert report["task"] == "manifest"
    references = {"source": "manifest", "questions": 20, "split": None, "odd": None}
    assert report["references"] == references
    assert report["definitions"] == {name: METRICS[name].definition for name in report["scores"]}
    assert set(report["not_scored"]) == {"meteor", "spice"}
    assert report["tokenizer"] == "python"


def test_without_java(
    world: tuple[Path, list[str]], cdcca_eval: Eval, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Everything but METEOR and SPICE, which are named with what they need; asked for, 69."""
    folder, lines = world
    monkeypatch.setenv("PATH", str(folder))
    path = save(folder / "p", lines)
    report = json.loads(cdcca_eval(path, "--references", folder).stdout)
    assert tuple(report["scores"]) == TASKS["manifest"].metrics
    assert all("no Java is installed" in reason for reason in report["not_scored"].values())
    for wish in (("--metrics", "meteor"), ("--metrics", "spice"), ("--tokenizer", "java")):
        run = cdcca_eval(path, "--references", folder, *wish)
        assert run.returncode == 69
        assert len(run.stderr.splitlines()) == 1 and b"Java" in run.stderr


def test_rounds(world: tuple[Path, list[str]], cdcca_eval: Eval) -> None:
    """All right in near after the first round, in both domains after the second."""
    folder, lines = world
    wrong = [line.replace('"choice": "dog"', '"choice": "cat"') for line in lines]
    right = [line.replace('"choice": "cat"', '"choice": "dog"') for line in lines]
    paths = [
        save(folder / "0", wrong),
        save(folder / "1", right[:10] + wrong[10:]),
        save(folder / "2", right),
    ]
    run = cdcca_eval(
        *("--references", folder, "--metrics", "mc", "--json"),
        *("--round", paths[0], "--round", f"near={paths[1]}", "--round", f"far={paths[2]}"),
    )
    assert (run.returncode, run.stderr) == (0, b"")
    report = json.loads(run.stdout)
    assert report["scores"]["mc"]["score"] == 100  # the last round's
    rounds = report["rounds"]["mc"]
    assert rounds["domains"] == ["near", "far"]
    assert [[cell["score"] for cell in row] for row in rounds["matrix"]] == [
        [0, 0],
        [100, 0],
        [100, 100],
    ]
    piped = cdcca_eval(
        *("--references", folder, "--metrics", "mc", "--round", paths[0]),
        *("--round", f"near={paths[1]}", "--round", "far=-"),
        stdin=paths[2].read_bytes(),
    )
    assert piped.stdout == run.stdout
    assert rounds["average"]["value"] == 100
    assert rounds["backward_transfer"]["value"] == 0


def test_odd_references_are_told(tmp_path: Path, cdcca_eval: Eval) -> None:
    question = {"image_id": 1, "choices": ["a", "b"], "correct_choice_idx": 0}
    questions = [{"question_id": i, "direct_answers": ["a"] * 10, **question} for i in range(7)]
    (tmp_path / "r").write_text(json.dumps(questions))
    (tmp_path / "p").write_text(json.dumps({"1": {"multiple_choice": "c", "direct_answer": "a"}}))
    run = cdcca_eval(tmp_path / "p", "--references", tmp_path / "r")
    said = run.stderr.decode()
    assert "references: 7 questions" in said and "val 1,145" in said
    assert "mc: 1 answers are not among the choices; 0 answers" in said
    assert "mc, da, da_norm: 6 of 7 questions have no prediction" in said
    report = json.loads(run.stdout)
    assert report["task"] == "aokvqa"
    assert report["remapped"] == {"answers": 0, "none_of_the_choices": 1}
    assert "7 questions" in report["references"]["odd"]


COCO = DATA / "coco" / "captions_val2017.json"


def coco_captions(shift: int) -> list[str]:
    """For each image of val2017, in file order, the first caption of one so much further on."""
    human: dict[int, list[str]] = {}
    for annotation in json.loads(COCO.read_text())["annotations"]:
        human.setdefault(annotation["image_id"], []).append(annotation["caption"])
    ids = list(human)
    turned = ids[shift:] + ids[:shift]
    return [
        json.dumps({"image_id": image, "caption": human[other][0]})
        for image, other in zip(ids, turned, strict=True)
    ]


@pytest.mark.slow
@real
def test_real_captions_in_any_order_and_number_of_files(tmp_path: Path, cdcca_eval: Eval) -> None:
    """The same bytes from 5,000 captions of COCO in file order, shuffled over two files, and
    through a pipe, intervals and p-values included."""
    lines, other = coco_captions(1), coco_captions(2)
    shuffled = random.Random(0).sample(lines, len(lines))
    whole = tmp_path / "whole"
    whole.write_text(f"[{','.join(lines)}]")
    parts = [save(tmp_path / str(number), shuffled[number::2]) for number in range(2)]
    options = ("--references", COCO, "--against", save(tmp_path / "other", other))
    runs = [
        cdcca_eval(whole, *options),
        cdcca_eval(*parts, *options),
        cdcca_eval(*options, stdin="\n".join(shuffled).encode()),
    ]
    for run in runs:
        assert (run.returncode, run.stderr) == (0, b"")
        assert run.stdout == runs[0].stdout
    report = json.loads(runs[0].stdout)
    assert report["against"]["cider"]["n"] == 5000


@pytest.mark.slow
@real
def test_memory_of_25_014_captions(tmp_path: Path) -> None:
    """5,000 captions against COCO val2017's 25,014, with every interval, in 1 GiB at most."""
    path = save(tmp_path / "p", coco_captions(1))
    command = (
        "import resource, sys; from cdcca_cli.main import main; code = main(sys.argv[1:]); "
        "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, file=sys.stderr); sys.exit(code)"
    )
    done = subprocess.run(
        [sys.executable, "-c", command, "eval", str(path), "--references", str(COCO)],
        capture_output=True,
        check=True,
        cwd=ROOT,
    )
    assert int(done.stderr.split()[-1]) <= 1 << 20  # KiB


@real
def test_real_predictions_in_any_order_and_number_of_files(
    tmp_path: Path, cdcca_eval: Eval
) -> None:
    """The same bytes from A-OKVQA's 1,145 predictions turned round, in three files, or piped."""
    folder = DATA / "aokvqa"
    source = next((folder / "predictions").glob("llama2_mcan*.csv"))
    header, *lines = source.read_text().splitlines()
    random.Random(0).shuffle(lines)
    parts = [save(tmp_path / str(number), [header, *lines[number::3]]) for number in range(3)]
    references = ("--references", folder / "aokvqa_v1p0_val.json")
    against = ("--against", next((folder / "predictions").glob("llama1_mcan*.csv")))
    runs = [
        cdcca_eval(source, *references, *against),
        cdcca_eval(*parts, *references, *against),
        cdcca_eval(*references, *against, stdin="\n".join([header, *lines]).encode()),
    ]
    for run in runs:
        assert run.returncode == 0
        assert run.stdout == runs[0].stdout
    report = json.loads(runs[0].stdout)
    assert report["references"]["split"] == "val"
    assert report["left_out"] == {"mc": 1145}
