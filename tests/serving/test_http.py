"""One server over HTTP: what a device meets. What a teacher meets is in `tests.teachers`."""

import time

import pytest

from cdcca_cli.serving.http import named_pause


def test_a_pause_may_be_named_as_a_date() -> None:
    assert named_pause("3") == 3.0
    soon = time.strftime("%a, %d %b %Y %H:%M:%S GMT", time.gmtime(time.time() + 60))
    assert named_pause(soon) == pytest.approx(60, abs=2)
    assert named_pause("Wed, 21 Oct 2015 07:28:00 GMT") == 0.0
    for words in ("soon", "", "-1", "1e9", "Wed, 99 Oct 2015"):
        assert named_pause(words) is None
    assert named_pause(None) is None
