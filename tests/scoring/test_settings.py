"""Settings of an evaluation and of the acceptance test: light to import, checked, named."""

import subprocess
import sys
from pathlib import Path

import pytest

from cdcca_cli.errors import SettingError
from cdcca_cli.scoring.settings import (
    AcceptanceSettings,
    EvaluationSettings,
    parse_marks,
)
from cdcca_cli.settings import described, value_of


def test_importing_them_imports_nothing_heavy() -> None:
    script = "import sys, cdcca_cli.scoring.settings; print(*sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, check=True, text=True
    )
    assert not {"numpy", "torch", "PIL", "transformers", "matplotlib"} & set(done.stdout.split())


@pytest.mark.parametrize(
    ("name", "text", "value"),
    [
        ("metrics", "da,cider", ("da", "cider")),
        ("encoder_size", "448x336", (448, 336)),
        ("fail_under", "mc=50, da.domain.fog=40.5", {"mc": 50, "da.domain.fog": 40.5}),
        ("seed", "7", 7),
        ("answered_only", "true", True),
    ],
)
def test_values_from_texts(name: str, text: str, value: object) -> None:
    found = value_of(EvaluationSettings, name, text)
    assert found == value
    assert getattr(EvaluationSettings(**{name: found}), name) == value


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("link", "fast"),
        ("encoder_size", "0x1"),
        ("fail_under", "mc"),
        ("fail_under", "mc=nan"),
        ("fail_under", "f1=3"),
        ("fail_under", "mc=50,,"),
        ("seed", "x"),
    ],
)
def test_a_text_that_means_no_value_names_its_setting(name: str, text: str) -> None:
    with pytest.raises(SettingError, match=f"^`{name}` {text}: expected") as error:
        value_of(EvaluationSettings, name, text)
    assert error.value.exit_code == 2


@pytest.mark.parametrize(
    ("owner", "given", "words"),
    [
        (EvaluationSettings, {"task": "ocr"}, "`task` ocr: expected one of aokvqa, vqa"),
        (EvaluationSettings, {"metrics": ("da", "f1")}, "`metrics` f1: expected one of mc, da"),
        (EvaluationSettings, {"tokenizer": "x"}, "`tokenizer` x: expected one of python, java"),
        (EvaluationSettings, {"duplicates": "last"}, "`duplicates` last: expected one of refuse"),
        (EvaluationSettings, {"seed": -1}, "`seed` -1: expected 0 or more"),
        (AcceptanceSettings, {"validation": Path("v"), "metric": "bleu4"}, "one of da, mc, cider"),
        (AcceptanceSettings, {"validation": Path("v"), "tolerance": -0.1}, "0 or more points"),
    ],
)
def test_values_out_of_range(owner: type, given: dict[str, object], words: str) -> None:
    with pytest.raises(SettingError, match=words):
        owner(**given)


def test_no_marks() -> None:
    assert parse_marks("") == {}


def test_every_setting_has_a_help_line_that_stands_alone() -> None:
    for owner in (EvaluationSettings, AcceptanceSettings):
        for known in described(owner).values():
            assert known.help[0].isupper() and not known.help.endswith(".")
            assert "--" not in known.help
