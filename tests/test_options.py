"""Options: declared once, few, made from settings, and never empty."""

import inspect
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from cdcca_cli import config, settings
from cdcca_cli.distillation.settings import DistillSettings
from cdcca_cli.errors import SettingError
from cdcca_cli.main import COMMANDS, build, expanded, main
from cdcca_cli.teachers.settings import LabelSettings, ServerSettings

ROOT = Path(__file__).parents[1]


def click_command(name: str) -> Any:
    return build(expanded(name)).commands[name]


def options_of(name: str) -> list[Any]:
    return [one for one in click_command(name).params if one.param_type_name == "option"]


@pytest.mark.parametrize("name", COMMANDS)
def test_the_options_of_a_command_can_be_counted(
    name: str, capfd: pytest.CaptureFixture[str]
) -> None:
    assert main([name, "--help"]) == 0
    section = capfd.readouterr().out.partition("\nOptions:\n")[2]
    shown = re.findall(r"^  -", section, re.MULTILINE)
    assert len(shown) == len(options_of(name)) + 1 <= 34


@pytest.mark.parametrize("name", COMMANDS)
def test_every_option_has_a_line_of_help_in_plain_english(name: str) -> None:
    """It begins with a capital or with its choices, and has no full stop."""
    for option in options_of(name):
        assert option.help and re.match(r"[A-Z]|[a-z]+: |\[", option.help), option.opts
        assert not re.sub(r"  \[.*\]$", "", option.help).endswith("."), option.opts


@pytest.mark.parametrize("name", COMMANDS)
def test_an_empty_value_is_refused(
    name: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    """Of every option and every operand; nothing is read, and nothing is written."""
    monkeypatch.chdir(tmp_path)
    params = click_command(name).params
    for number, param in enumerate(params):
        if param.param_type_name == "option":
            if param.is_flag:
                continue
            tries = [[param.opts[-1], ""], [f"{max(param.opts, key=len)}="]]
        else:
            before = [one for one in params[:number] if one.param_type_name == "argument"]
            tries = [[*("x" for _ in before), ""]]
        for words in tries:
            assert main([name, *words]) == 2, words
            assert "found an empty one" in capfd.readouterr().err
    assert list(tmp_path.iterdir()) == []


def takes_path(name: str) -> list[str]:
    """The options and operands of a command that are names on disk and nothing else."""
    command = expanded(name)
    hints = {one: str(p.annotation) for one, p in command.own.items()}
    found = [one for one, hint in hints.items() if "Path" in hint]
    for part in command.parts.values():
        types = settings.hints(part.owner)
        found += [part.option(one) for one in part.with_option if types[one] is Path]
    return found


@pytest.mark.parametrize("name", COMMANDS)
def test_a_dash_is_refused_where_it_means_nothing(
    name: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    params = {one.name: one for one in click_command(name).params}
    required = ["x" for one in params.values() if one.required and not hasattr(one, "is_flag")]
    for one in takes_path(name):
        param = params[one]
        operands = [other for other in params.values() if other.param_type_name == "argument"]
        if param.param_type_name == "option":
            words = [*required, param.opts[0], "-"]
            words += ["--key", "x"] if name == "trust" and one != "key" else []
            words += ["-o", "x"] if name == "export" and one != "output" else []
        else:
            words = ["x" for _ in operands[: operands.index(param)]] + ["-"]
        assert main([name, *words]) == 2, words
        assert "./- is the file called -" in capfd.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_the_paths_of_the_issue_are_among_them() -> None:
    assert "work" in takes_path("distill")
    assert "curve" in takes_path("compress") and "state" in takes_path("sample")


# ---------------------------------------------------------------- --set


def test_set_help_lists_what_it_takes(capfd: pytest.CaptureFixture[str]) -> None:
    assert main(["distill", "--set", "help"]) == 0
    out = capfd.readouterr().out
    names = [line.split()[0] for line in out.splitlines()]
    owners = (DistillSettings, LabelSettings, ServerSettings)
    known = [pair for owner in owners for pair in settings.described(owner).items()]
    assert names == [name for name, one in known if one.is_tuning]
    assert "tau" in names and "[default: 4.0; more than 0; for cwd]" in out


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--set", "tau"], "--set tau: expected NAME=VALUE, or help"),
        (["--set", "tua=3"], "--set tua=3: no such setting: expected one of tau, "),
        (["--set", "epochs=3"], "--set epochs=3: expected --epochs, an option of its own"),
        (["--set", "ema=x"], "--set ema x: expected a number"),
        (["--set", "ema="], "--set ema: expected a value that is not empty"),
        (["--set", "ema=1"], "--set ema 1.0: expected 0 or more, less than 1"),
        (["--set", "tau=3"], "--set tau: does nothing with --method kd: it is for cwd"),
        (["--epochs", "x"], "--epochs x: expected a whole number"),
        (["--epochs", "0"], "--epochs 0: expected 1 or more"),
        (["--method", "x"], "--method x: expected one of kd, akd, pseudo-label"),
        (
            ["--method", "akd", "--set", "kl_weight=1"],
            "--set kl_weight: give --kl forward or --kl reverse too",
        ),
    ],
)
def test_a_setting_is_refused_as_it_is_spelled(
    words: list[str], message: str, capfd: pytest.CaptureFixture[str]
) -> None:
    assert main(["distill", "gone.tokens", *words]) == 2
    err = capfd.readouterr().err
    assert err.startswith(f"cdcca distill: {message}") and err.count("\n") == 1


def test_names_that_are_no_settings_lose_their_backticks(
    capfd: pytest.CaptureFixture[str],
) -> None:
    from functools import partial

    from cdcca_cli import main as module
    from cdcca_cli import streams

    spell = partial(module._spell, expanded("compress").spelling())
    streams.set_stage("cdcca compress", spell)
    try:
        streams.complain("`budget_bytes`, `since` and `nonsense` of `adaptation`")
    finally:
        streams.set_stage("cdcca")
    assert capfd.readouterr().err == (
        "cdcca compress: --budget, --since and nonsense of ADAPTATION\n"
    )


# ---------------------------------------------------------------- the summary


@pytest.mark.parametrize(
    ("seconds", "words", "line"),
    [
        (0.0, "3 frames", "cdcca inspect: 3 frames\n"),
        (0.0, "", ""),
        (2.0, "3 frames", "cdcca inspect: 3 frames (in 2.0 s)\n"),
        (125.0, "", "cdcca inspect: done in 2 min 5 s\n"),
    ],
)
def test_a_long_stage_ends_with_one_line(
    seconds: float,
    words: str,
    line: str,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    from cdcca_cli import main as module
    from cdcca_cli import streams
    from cdcca_cli.commands import inspect as verb

    clock = iter([10.0, 10.0 + seconds] * 2)

    def command() -> None:
        """Do it."""
        if words:
            streams.summary(words)

    monkeypatch.setattr(verb, "command", command)
    monkeypatch.setattr(module.time, "monotonic", lambda: next(clock))
    assert main(["inspect"]) == 0
    assert capfd.readouterr() == ("", line)

    def quiet() -> None:
        """Do it quietly."""
        streams.set_quiet(True)
        streams.summary("x")

    monkeypatch.setattr(verb, "command", quiet)
    assert main(["inspect"]) == 0
    assert capfd.readouterr() == ("", "")


# ---------------------------------------------------------------- completion


@pytest.fixture(scope="module")
def commands(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("bin")
    script = folder / "cdcca"
    script.write_text(
        f"#!/bin/sh\nPYTHONPATH='{ROOT}' exec '{sys.executable}' -m cdcca_cli \"$@\"\n"
    )
    script.chmod(0o755)
    return folder


BASH = """
eval "$(cdcca completion bash)"
complete -p cdcca | grep -q _cdcca_completion || exit 9
COMP_WORDS=({words}) COMP_CWORD={last}
_cdcca_completion cdcca
printf '%s\\n' "${{COMPREPLY[@]}}"
"""
ZSH = """
function compdef {{ }}
_arguments() {{ print -r -- "$@" }}
_files() {{ print -r -- FILES }}
eval "$(cdcca completion zsh)"
words=({words}) CURRENT={place}
_cdcca_completion
"""
FISH = """
cdcca completion fish | source
complete --do-complete "{line}"
"""
CASES = [
    (["com"], {"compress", "completion"}),
    (["distill", "--rate"], {"--rate-aware"}),
    (["distill", "--method", "p"], {"pseudo-label", "pkd"}),
    (["sample", "f", "--by", ""], {"variance", "random", "received", "tome"}),
    (["infer", "--task", "v"], {"vqa"}),
    (["distill", "--set", "kl"], {"kl_weight", "kl_temperature"}),
    (["completion", ""], {"bash", "zsh", "fish"}),
]


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_a_real_shell_completes_commands_options_and_choices(shell: str, commands: Path) -> None:
    if shutil.which(shell) is None:
        pytest.skip(f"needs {shell}")
    env = os.environ | {"PATH": f"{commands}:{os.environ['PATH']}", "OMP_NUM_THREADS": "1"}
    for words, expected in CASES[:: 1 if shell == "bash" else 3]:
        quoted = " ".join(f"'{word}'" for word in ["cdcca", *words])
        line = " ".join(["cdcca", *words])
        script = {"bash": BASH, "zsh": ZSH, "fish": FISH}[shell].format(
            words=quoted, last=len(words), place=len(words) + 1, line=line
        )
        flags = {"bash": ["--norc"], "zsh": ["-f"], "fish": ["--no-config"]}[shell]
        done = subprocess.run(
            [shell, *flags, "-c", script], env=env, capture_output=True, text=True, timeout=120
        )
        found = set(re.findall(r"(?<![\w-])(?:--)?[a-z][\w-]*", done.stdout))
        assert expected <= found, (words, done.stdout, done.stderr)
        others = {"--rate-aware", "compress", "variance", "vqa", "pkd"} - expected
        assert not others & found, (words, done.stdout)


@pytest.mark.parametrize("name", COMMANDS)
def test_each_value_with_choices_is_completed(name: str) -> None:
    for option in options_of(name):
        if option.metavar and "|" in option.metavar:
            names = option.metavar.strip("<>").removesuffix(",...").split("|")
            items = option.shell_complete(None, names[0][:1])
            assert names[0] in [item.value for item in items], option.opts


def test_completing_imports_neither_numpy_nor_torch() -> None:
    code = (
        "import sys; from cdcca_cli.main import main; main([]);"
        "print(sorted({'torch', 'numpy', 'transformers', 'PIL'} & set(sys.modules)))"
    )
    env = os.environ | {
        "PYTHONPATH": str(ROOT),
        "_CDCCA_COMPLETE": "complete_bash",
        "COMP_WORDS": "cdcca distill --me",
        "COMP_CWORD": "2",
    }
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=env)
    assert done.stdout.splitlines() == ["--method", "[]"], done.stderr


def test_the_parameters_of_the_commands_are_few() -> None:
    """Of the function; settings count once. 0.3 had up to 45."""
    for name in COMMANDS:
        command = expanded(name)
        assert len(inspect.signature(command.command).parameters) <= 21, name


@pytest.mark.parametrize(
    ("name", "value"), [("passes", "4"), ("dropout", "0.2"), ("blocks", "1"), ("beta", "0.01")]
)
def test_settings_of_a_token_rule_go_with_that_rule_alone(name: str, value: str) -> None:
    """`by` decides for `sample` what `method` decides for `distill`."""
    part = expanded("sample").parts["how"]
    assert getattr(part.build({name: value}, config.Toml()), name) == float(value)
    if name != "beta":
        spread = part.build({name: value, "by": "spread"}, config.Toml())
        assert getattr(spread, name) == float(value)
    in_file = config.Toml(tables={"sample": {name: float(value) if "." in value else int(value)}})
    assert getattr(part.build({}, in_file), name) == float(value)
    with pytest.raises(SettingError, match=r"`by` (norm|variance, not norm)"):
        part.build({name: value, "by": "norm"}, config.Toml())
