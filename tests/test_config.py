"""`cdcca.toml`: what can stand in it, in what order, and how a mistake is refused."""

import random
from pathlib import Path
from typing import Any

import pytest

from cdcca_cli import config
from cdcca_cli.distillation.settings import DistillSettings
from cdcca_cli.errors import UsageError
from cdcca_cli.main import COMMANDS, expanded, main
from cdcca_cli.options import Expanded


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    for name in ("DEVICE", "STUDENT", "TEACHER", "SIGN"):
        monkeypatch.delenv(f"CDCCA_{name}", raising=False)
    return tmp_path


class Called(Exception):
    """Carries what a command was called with."""

    def __init__(self, values: dict[str, Any]) -> None:
        super().__init__()
        self.values = values


@pytest.fixture
def called(monkeypatch: pytest.MonkeyPatch) -> Any:
    """A function: the values that a command gets for a command line."""

    def call(*arguments: str) -> dict[str, Any]:
        import cdcca_cli.main as main_module

        def record(name: str) -> Expanded:
            made = expanded(name)

            def command(**values: Any) -> None:
                raise Called(values)

            made.command = command
            return made

        monkeypatch.setattr(main_module, "expanded", record)
        monkeypatch.setattr(main_module, "_named", lambda error: pytest.fail(str(error)))
        with pytest.raises(Called) as caught:
            main_module._run(list(arguments))
        return caught.value.values

    return call


def test_a_folder_at_the_top_is_used_where_nothing_else_names_one(folder: Path) -> None:
    (folder / "cdcca.toml").write_text('teacher = "some/where"\n')
    config.use(config.read(COMMANDS))
    try:
        assert config.teacher(None) == "some/where"
        assert config.teacher("other") == "other"
    finally:
        config.use(config.Toml())


def test_every_kind_of_value(folder: Path, called: Any) -> None:
    """A whole number, a number, a flag, a name, a share, groups, a path, tuning, a list."""
    (folder / "cdcca.toml").write_text(
        "[distill]\nepochs = 5\nlr = 1e-3\nconfidence = true\nmethod = 'pkd'\nholdout = '20%'\n"
        "train = ['norm', 'lora']\nwork = 'w'\nkl = 'forward'\nkl_weight = 2\n"
        "replay = ['a', 'b']\nthreads = 2\nquiet = true\nstudent = 'm'\nreplay_share = '50%'\n"
    )
    values = called("distill", "shards.tokens")
    assert values["how"] == DistillSettings(
        epochs=5,
        lr=1e-3,
        confidence=True,
        method="pkd",
        holdout=0.2,
        train=("norm", "lora"),
        work=Path("w"),
        kl="forward",
        kl_weight=2.0,
        replay_share=0.5,
    )
    assert values["replay"] == ["a", "b"] and values["student"] == "m"
    assert values["on"].threads == 2 and values["quiet"] is True


def test_the_command_line_comes_before_the_environment_and_that_before_the_table(
    folder: Path, called: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    (folder / "cdcca.toml").write_text(
        "device = 'top'\n[infer]\nbatch_size = 5\ndevice = 'table'\ntask = 'vqa'\n"
    )
    values = called("infer", "frames")
    assert (values["how"].batch_size, values["device"], values["task"]) == (5, "table", "vqa")
    monkeypatch.setenv("CDCCA_DEVICE", "environment")
    assert called("infer", "frames")["device"] == "environment"
    values = called("infer", "frames", "-m", "line", "--batch-size", "6")
    assert (values["how"].batch_size, values["device"]) == (6, "line")
    assert values["how"].max_new_tokens is None  # the default


def test_set_comes_before_the_table(folder: Path, called: Any) -> None:
    (folder / "cdcca.toml").write_text(
        "[distill]\nmethod = 'akd'\nrepr_at = 'visual'\nquery_weight = 3\n"
    )
    how = called("distill", "--set", "repr_at=answer", "--set", "ce_weight=2")["how"]
    assert (how.repr_at, how.query_weight, how.ce_weight) == ("answer", 3.0, 2.0)


def test_loop_reads_the_tables_of_its_stages(folder: Path, called: Any) -> None:
    (folder / "cdcca.toml").write_text(
        "[sample]\nby = 'norm'\ntop = '20%'\noutput = 'x'\nseed = 4\n"
        "[distill]\nepochs = 7\ntau = 2\nmethod = 'cwd'\n"
        "[compress]\nbudget = '64KiB'\n[loop]\ntop = 3\nrounds = 2\n"
    )
    values = called("loop", "frames", "--epochs", "1")
    assert (values["sample"].by, values["sample"].seed) == ("norm", 4)
    assert values["sample"].top.of(100) == 3 and values["rounds"] == 2
    assert values["distill"] == DistillSettings(epochs=1, tau=2.0, method="cwd")
    assert values["compress"].budget_bytes == 65536


def test_a_method_of_the_command_line_makes_other_settings_of_the_table_idle(
    folder: Path, called: Any, capfd: pytest.CaptureFixture[str]
) -> None:
    (folder / "cdcca.toml").write_text("[distill]\nmethod = 'cwd'\ntau = 2\n")
    assert called("distill", "--method", "akd")["how"].method == "akd"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ('\ntecher = "x"', "cdcca.toml:2: techer: no such setting: expected one of teacher, dev"),
        ("teacher = 7", "cdcca.toml:1: teacher: expected a path in quotes, found '7'"),
        ("teacher = ''", "cdcca.toml:1: teacher: expected a path in quotes, found ''"),
        ("\nteacher = \n", "cdcca.toml:2: not valid TOML: Invalid value"),
        ("[distil]", "cdcca.toml:1: [distil] no such table: expected one of distill"),
        ("[distill]\n\nepoch = 3", "cdcca.toml:3: [distill] epoch: no such setting: expected one "),
        ("[distill]\nepochs = 'x'", "cdcca.toml:2: [distill] epochs: expected a whole number, fou"),
        ("[distill]\nepochs = 0", "cdcca.toml:2: [distill] epochs: expected 1 or more"),
        ("[distill]\nepochs = 1.5", "expected a whole number, found '1.5'"),
        ("[distill]\nepochs = true", "expected a whole number, found 'true'"),
        ("[distill]\nlr = nan", "cdcca.toml:2: [distill] lr: expected more than 0"),
        ("[distill]\nepochs = 1" + 400 * "0", "cdcca.toml:2: [distill] epochs: expected 1 or"),
        ("[distill]\nepochs = 1" + 5000 * "0", "cdcca.toml: not valid TOML: Exceeds the limit"),
        ("[distill]\nconfidence = 1", "confidence: expected true or false, found '1'"),
        ("[distill]\nmethod = 'x'", "cdcca.toml:2: [distill] method: expected one of kd, "),
        ("[distill]\nwork = '-'", "cdcca.toml:2: [distill] work: expected a name on disk"),
        ("[distill]\ntau = 2", "cdcca.toml:2: [distill] tau: does nothing with --method kd"),
        ("[distill]\nreplay = 3", "[distill] replay: expected text in quotes, or a list of texts"),
        ("[distill]\nquiet = 'yes'", "[distill] quiet: expected true or false, found 'yes'"),
        ("[distill]\noutput = ''", "cdcca.toml:2: [distill] output: expected a value, found ''"),
        (
            "[distill]\nstudent = 3",
            "cdcca.toml:2: [distill] student: expected text in quotes, found '3'",
        ),
        ("[distill]\nlog = '-'", "--log -: expected a name on disk; ./- is the file"),
        ("[distill.epochs]\nx = 1", "[distill] epochs: expected a value"),
        ("[distill]\ntrain = ['norm', 'x']", "[distill] train: expected one of norm, bias"),
        ("[distill]\nholdout = '95%'", "[distill] holdout: expected a share from 0% to 90%"),
        ("x = " + 5000 * "[", "cdcca.toml: not valid TOML: nested too deep"),
        ("#" + 16384 * "x", "cdcca.toml: expected at most 16,384 bytes"),
        ("x = '\ud800'", "cdcca.toml: not valid TOML: 'utf-8' codec can't decode"),
    ],
)
def test_a_mistake_is_refused_with_its_line(
    text: str, words: str, folder: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    (folder / "cdcca.toml").write_bytes(text.encode("utf-8", "surrogatepass"))
    assert main(["distill"]) == 2
    out, err = capfd.readouterr()
    assert words in err and err.count("\n") == 1 and out == ""


def test_a_choice_declared_by_hand_is_refused_with_its_line(
    folder: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    (folder / "cdcca.toml").write_text("[infer]\ntask = 'vqa2'\n[init]\nkeep = 0\n")
    assert main(["infer", "x"]) == 2
    assert "cdcca.toml:2: [infer] task: expected one of vqa, caption, found 'vqa2'" in (
        capfd.readouterr().err
    )
    assert main(["init", "x"]) == 2
    assert "cdcca.toml:4: [init] keep: expected 1 or more, found '0'" in capfd.readouterr().err


PIECES = (
    *("[distill]", "[loop]", "[[sample]]", "\n", "=", "epochs", "tau", "replay", "train", "work"),
    *("device", "teacher", "'x'", '"', "'", "[", "]", "{", "}", ",", ".", "-", "#", "\\u", "\t"),
    *("1", "1e999", "nan", "-inf", "true", '""', "2027-01-01", "9" * 400, "\0", "a.b.c"),
)


@pytest.mark.parametrize("seed", range(5))
def test_any_text_is_a_value_or_a_refusal(
    seed: int, folder: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """What TOML is made of, in any order: 2 for the file, 66 where only the shards are missing."""
    draw = random.Random(seed)
    for _ in range(100):
        pieces = [draw.choice(PIECES) for _ in range(draw.randint(1, 25))]
        text = "".join(piece + draw.choice(("", " ", "\n")) for piece in pieces)
        (folder / "cdcca.toml").write_text(text)
        assert main(["distill", "gone.tokens"]) in (2, 66), text
        assert capfd.readouterr().err.count("\n") == 1, text


def test_what_cannot_be_read_is_66(folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
    (folder / "cdcca.toml").mkdir()
    assert main(["inspect", "x"]) == 66
    assert "cdcca.toml: is a directory" in capfd.readouterr().err
    assert main(["inspect", "--help"]) == 0


def test_a_file_that_is_wrong_does_not_hide_the_help(folder: Path) -> None:
    (folder / "cdcca.toml").write_text("?")
    assert main(["inspect", "--help"]) == 0
    assert main(["--help"]) == 0


@pytest.mark.parametrize("name", COMMANDS)
def test_every_option_can_stand_in_its_table(name: str, folder: Path) -> None:
    """A value of the wrong kind is refused by the name of the option: so the option is known."""
    for option in expanded(name).names():
        (folder / "cdcca.toml").write_text(f"[{name}]\n{option} = {{ a = 1 }}\n")
        toml = config.read(COMMANDS)
        with pytest.raises(UsageError, match=rf"^cdcca.toml:2: \[{name}\] {option}: "):
            toml.check_names(name, expanded(name).names())
