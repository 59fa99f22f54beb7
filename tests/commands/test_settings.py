"""`cdcca.toml`: what it may say."""

from pathlib import Path

import pytest

from cdcca_cli.commands import settings
from cdcca_cli.errors import UsageError


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("CDCCA_TEACHER", raising=False)
    return tmp_path


def test_a_key_is_used(folder: Path) -> None:
    (folder / "cdcca.toml").write_text('teacher = "some/where"\ndevice = "d"\n')
    assert settings.teacher(None) == "some/where"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ('techer = "some/where"\n', "no key 'techer': expected device, student, teacher"),
        ("teacher = 7\n", "teacher: expected a path in quotes, found 7"),
        ("teacher = \n", "not valid TOML"),
    ],
)
def test_what_is_no_setting_is_refused(folder: Path, text: str, words: str) -> None:
    (folder / "cdcca.toml").write_text(text)
    with pytest.raises(UsageError, match=words):
        settings.teacher(None)
