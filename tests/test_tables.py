"""The scripts of examples/tables run as they stand, on a few frames, and say what is there."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from cdcca_cli.datasets import Frame, read_frames
from tests.shipped import few_frames
from tests.test_examples import commands, environment  # noqa: F401 -- the first is a fixture
from tests.test_tables_intervals import load

ROOT = Path(__file__).parent.parent
TABLES = ROOT / "examples" / "tables"


@pytest.fixture(scope="module")
def env(tmp_path_factory: pytest.TempPathFactory, commands: Path) -> dict[str, str]:  # noqa: F811
    """One seed and one round on six frames a set; what one script makes, the next ones find."""
    folder = tmp_path_factory.mktemp("tables")
    for name in ("stream", "heldout", "source"):
        few_frames(folder / "frames" / name, name, 6)
    few_frames(folder / "frames" / "anchors", "source", 2)
    (folder / "bin").mkdir()
    python = folder / "bin" / "python3"
    python.write_text(f"#!/bin/sh\nexec '{sys.executable}' \"$@\"\n")
    python.chmod(0o755)
    made = environment(
        commands,
        FRAMES=str(folder / "frames"),
        OUT=str(folder / "out"),
        SEEDS="0",
        ROUNDS="1",
        EPOCHS="1",
        DISTILL="--holdout 20%",
        PYTHONPATH=str(ROOT),
    )
    made["PATH"] = f"{folder / 'bin'}:{made['PATH']}"
    return made


def run(script: str, *arguments: str, env: dict[str, str]) -> str:
    """A script to its end; returns its Markdown."""
    done = subprocess.run(
        ["bash", str(TABLES / script), *arguments],
        env=env,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


def row(markdown: str, title: str, name: str) -> list[str]:
    """The cells of a row of one table."""
    (part,) = [part for part in markdown.split("### ") if part.startswith(title)]
    (line,) = [line for line in part.splitlines() if line.startswith(f"| {name} |")]
    return [cell.strip() for cell in line.strip("|").split("|")][1:]


def choose(frames: Path, share: str, seed: int, images: Path) -> list[Frame]:
    """What selection.py makes of a stream."""
    done = subprocess.run(
        [sys.executable, TABLES / "selection.py", frames, share, str(seed), images],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=True,
    )
    made = images.parent / f"{seed}-{share}.jsonl"
    made.write_text(done.stdout)
    return [*read_frames(made, images=images)]


def test_each_seed_has_its_own_part_of_the_stream(tmp_path: Path) -> None:
    """As many frames, in the stream's order, their questions without labels; the same each time."""
    folder = few_frames(tmp_path / "stream", "stream", 12)
    whole = {frame.id: frame for frame in read_frames(folder)}
    parts = [choose(folder, "75%", seed, folder) for seed in (0, 1, 0)]
    names = [[frame.id for frame in part] for part in parts]
    assert [len(each) for each in names] == [9] * 3
    assert names[0] == names[2] != names[1]
    for part, own in zip(parts, names, strict=True):
        assert own == [name for name in whole if name in set(own)]
        for frame in part:
            given = whole[frame.id]
            assert (frame.image, frame.domain) == (given.image, given.domain)
            for one, labelled in zip(frame.questions, given.questions, strict=True):
                assert (one.answers, one.captions, one.correct_choice_idx) == (None,) * 3
                for field in ("id", "prompt", "task", "choices", "kind"):
                    assert getattr(one, field) == getattr(labelled, field)
    assert [frame.id for frame in choose(folder, "100%", 5, folder)] == [*whole]
    assert len(choose(folder, "1%", 5, folder)) == 1
    selection = load("selection")
    turned = [*selection.chosen([*read_frames(folder)][::-1], 0.75, 0)]
    assert [frame.id for frame in turned] == names[0][::-1]


def test_a_part_of_an_annotation_file_names_its_images(tmp_path: Path) -> None:
    folder = few_frames(tmp_path / "images", "stream", 4)
    entries = []
    for number, image in enumerate(sorted(folder.glob("*.jpg"))):
        image.rename(folder / f"{number:012}.jpg")
        entries.append({"image_id": number, "question_id": f"q{number}", "question": "What?"})
        entries[-1] |= {
            "choices": ["a", "b"],
            "correct_choice_idx": 0,
            "direct_answers": ["a"] * 10,
        }
    made = tmp_path / "aokvqa_v1p0_val.json"
    made.write_text(json.dumps(entries))
    chosen = choose(made, "50%", 1, folder)
    assert len(chosen) == 2
    for frame in chosen:
        (question,) = frame.questions
        assert frame.image == folder / f"{int(question.id[1:]):012}.jpg"
        assert question.choices == ["a", "b"] and question.answers is None


def recipe(row: str) -> list[str]:
    """The options of distill that a row's name stands for."""
    script = (
        f'. "{TABLES}/recipes.sh"; recipe_of {row} source.tokens; printf "%s\\n" "${{recipe[@]}}"'
    )
    done = subprocess.run(["bash", "-euc", script], capture_output=True, text=True, check=True)
    return done.stdout.splitlines()


def test_a_row_is_a_method_or_has_a_recipe() -> None:
    for method in ("tent", "cotta", "none"):
        assert recipe(method) == ["--method", method]
    for method in ("pseudo-label", "kd", "akd", "pkd", "cwd"):
        assert recipe(method) == ["--method", method, "--set", "choose=last"]
    assert recipe("kd+anchors")[:4] == ["--method", "kd", "--anchors", "source.tokens"]
    letter = recipe("paper")
    assert {"balance=none", "repr_at=visual"} < set(letter)
    assert letter[letter.index("--kl") + 1] == "none"


def test_methods_by_rounds_and_then_captions_of_the_same_chains(
    env: dict[str, str],
) -> None:
    """`akd` changes the device, its rows are what `cdcca eval` says, and nothing is made twice."""
    said = run("methods.sh", "tent", "akd", env={**env, "REFERENCE": "tent"})
    out = Path(env["OUT"])
    held = out / "seed-0" / "akd" / "round-1" / "heldout.jsonl"
    report = subprocess.run(
        ["cdcca", "eval", held, "--references", f"{env['FRAMES']}/heldout", "--json"],
        env=env,
        capture_output=True,
        text=True,
        check=True,
    )
    scores = json.loads(report.stdout)["scores"]
    cells = row(said, "Table 1, target frames", "akd")
    assert float(cells[0]) == pytest.approx(scores["mc"]["score"], abs=0.006)
    assert float(cells[1]) == pytest.approx(scores["da"]["score"], abs=0.006)
    assert row(said, "The paper", "CD-CCA")[-2:] == ["51.88", "48.74"]
    assert row(said, "Differences, target frames", "tent")[2:4] == ["", ""]
    assert all(row(said, "Differences, target frames", "akd")[:4])
    device = json.loads((out / "seed-0" / "akd" / "device" / "device.json").read_text())
    mirror = json.loads((out / "seed-0" / "akd" / "mirror" / "device.json").read_text())
    assert device["current"]["digest"] == mirror["current"]["digest"]
    assert device["current"]["sequence"] == 1
    before = {path: path.stat().st_mtime_ns for path in out.rglob("*.*") if path.is_file()}
    captions = run("captions.sh", "tent", "akd", env={**env, "REFERENCE": "tent"})
    assert {path: path.stat().st_mtime_ns for path in before} == before
    assert float(row(captions, "Table 2, target frames", "akd")[1]) > 0


def test_a_row_with_anchors_needs_frames_of_the_source_domain(
    tmp_path: Path, env: dict[str, str]
) -> None:
    """They are sampled once, and the student is held there; without them the script says so."""
    said = run("methods.sh", "kd+anchors", env=env)
    assert row(said, "Table 1, target frames", "kd+anchors")
    steps = Path(env["OUT"]) / "seed-0" / "kd+anchors" / "round-1" / "steps.jsonl"
    assert '"anchor"' in steps.read_text()
    refused = subprocess.run(
        ["bash", str(TABLES / "methods.sh"), "self-replay"],
        env={**env, "ANCHORS": str(tmp_path / "none"), "OUT": str(tmp_path / "out")},
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert refused.returncode == 2
    assert "self-replay takes frames of the source domain" in refused.stderr


@pytest.mark.slow
def test_every_row_of_prior_work(env: dict[str, str]) -> None:
    said = run("methods.sh", "paper", "attention", "self-replay", "kd", "pseudo-label", env=env)
    for name in ("paper", "attention", "self-replay", "kd"):
        assert all(row(said, "Differences, target frames", name)[:4])


def test_new_frames_need_no_source_domain(tmp_path: Path, env: dict[str, str]) -> None:
    for name in ("stream", "heldout"):
        few_frames(tmp_path / "new" / name, name, 6)
    own = {**env, "FRAMES": str(tmp_path / "new"), "OUT": str(tmp_path / "out")}
    said = run("methods.sh", "none", env=own)
    assert row(said, "Table 1, target frames", "none")
    assert "source domain" not in said


def test_a_chain_that_fails_ends_the_script(env: dict[str, str]) -> None:
    done = subprocess.run(
        ["bash", str(TABLES / "methods.sh"), "akd"],
        env={**env, "DISTILL": "--holdout 2000%", "OUT": env["OUT"] + "-broken"},
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode != 0
    assert "--holdout" in done.stderr
    assert "###" not in done.stdout


def test_the_figure_is_a_picture(env: dict[str, str]) -> None:
    pytest.importorskip("matplotlib")
    said = run("rounds.sh", "akd", env=env)
    assert (Path(env["OUT"]) / "rounds.png").read_bytes().startswith(b"\x89PNG")
    assert len(row(said, "Round by round", "akd")) == 4  # both metrics before and after


@pytest.mark.slow
def test_ablation_and_token_rules(env: dict[str, str]) -> None:
    said = run("ablation.sh", env=env)
    assert row(said, "Table 3, target frames", r"+ kd")
    whole = row(said, "Table 3, target frames", "PL, the whole stream")[0]
    least = row(said, "Table 3, target frames", r"+ UTS-2 (tokens)")[0]
    sizes = [int(re.sub(r" .*|,", "", size)) for size in (whole, least)]
    assert sizes[1] < sizes[0]
    said = run("uplink.sh", "100/100", "20/50", env=env)
    sent, of_all, of_pixels = row(said, "Uplink, target frames", "100/100 %")[:3]
    assert of_all == "100.0%"
    chosen = (Path(env["OUT"]) / "seed-0" / "selection.jsonl").read_text().splitlines()
    pictures = len({json.loads(line)["image"] for line in chosen})
    assert of_pixels == f"{int(sent.replace(',', '')) / (pictures * 3 * 96 * 96):.1%}"
    assert float(row(said, "Uplink, target frames", "20/50 %")[1].rstrip("%")) < 50
    said = run("tokens.sh", "random", "variance", env=env)
    assert all(row(said, "Table 4, MC, target frames", "variance"))


@pytest.mark.slow
def test_an_annotation_file_and_a_pair_of_ones_own(tmp_path: Path, env: dict[str, str]) -> None:
    """The shipped pair under another name, and a manifest as what is sent and scored."""
    for role in ("student", "teacher"):
        shutil.copytree(ROOT / "cdcca_cli" / "assets" / role, tmp_path / "pair" / role)
    frames = few_frames(tmp_path / "frames", "stream", 6) / "frames.jsonl"
    own = {**env, "PAIR": str(tmp_path / "pair"), "FRAMES": str(frames), "OUT": str(tmp_path)}
    said = run("methods.sh", "akd", env=own)
    assert row(said, "Table 1, the stream", "akd")
    assert "never sent" not in said
    captions = run("captions.sh", "akd", env=own)
    assert float(row(captions, "Table 2, the stream", "akd")[1]) > 0
    only = [line for line in frames.read_text().splitlines() if json.loads(line).get("captions")]
    frames.with_name("captions.jsonl").write_text("".join(f"{line}\n" for line in only))
    own |= {"FRAMES": str(frames.with_name("captions.jsonl")), "OUT": str(tmp_path / "only")}
    said = run("uplink.sh", "100/100", "50/50", env=own)
    assert row(said, "Uplink, the stream", "100/100 %")


def test_every_script_is_run_somewhere() -> None:
    tests = "".join(path.read_text() for path in Path(__file__).parent.glob("test_tables*.py"))
    for script in TABLES.glob("*.sh"):
        assert script.name in tests or script.name == "common.sh", f"{script.name} has no test"
    assert os.access(TABLES / "methods.sh", os.X_OK)
