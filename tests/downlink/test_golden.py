"""An update of each codec, readable for ever: `golden/<codec>_v<format>.update`, of `base.overlay`.

Made once by `worlds.next_update(device, settings=...)` with the settings in MADE_WITH, kept since;
the target was written when the file was made.
"""

from pathlib import Path

import pytest

from cdcca_cli.downlink import codecs
from cdcca_cli.downlink.settings import CompressSettings
from cdcca_cli.formats.digest import overlay_digest
from cdcca_cli.formats.overlay import read_overlay_file
from cdcca_cli.formats.update import read_update
from tests.downlink import slow_decoder, worlds

GOLDEN = Path(__file__).parent / "golden"
MADE_WITH = {
    "nf4_mixed_v2": None,  # of cdcca 0.3: with a budget
    "usq_v2": CompressSettings(max_error=0.02),
    "usq_coarse_v2": CompressSettings(max_error=0.7),
    "ternary_v2": CompressSettings(codec="ternary"),
    "sign_v2": CompressSettings(codec="sign"),
    "exact_v2": CompressSettings(codec="exact"),
}


@pytest.mark.parametrize("name", ["nf4_mixed_v1", *MADE_WITH])
def test_a_file_of_an_earlier_version(name: str) -> None:
    base = golden_base()
    path = GOLDEN / f"{name}.update"
    with path.open("rb") as source:
        update = read_update(source)
    assert overlay_digest(base) == update.base != update.target
    decoded = codecs.decode(update, base)
    assert overlay_digest(decoded) == update.target
    slow = slow_decoder.decode(
        path.read_bytes(), [base[n].reshape(-1).tolist() for n in sorted(base)]
    )
    assert slow == [decoded[n].reshape(-1).tolist() for n in sorted(base)]


def golden_base() -> worlds.Overlay:
    with (GOLDEN / "base.overlay").open("rb") as source:
        return read_overlay_file(source)[0]


def test_all_there_is_to_a_codec_is_in_the_files() -> None:
    """Every number of bits; planes in both forms, rests, and a tensor that does not change."""
    found = {}
    for name in ("nf4_mixed_v1", "nf4_mixed_v2", "usq_v2", "usq_coarse_v2"):
        with (GOLDEN / f"{name}.update").open("rb") as source:
            found[name] = read_update(source)
    assert set(found["nf4_mixed_v1"].coding["bits"]) == {0, 2, 4, 8}
    assert set(found["nf4_mixed_v2"].coding["bits"]) == {0, 2, 4}
    assert codecs.byte_kinds(found["usq_v2"])["rests"] > 0
    body = found["usq_coarse_v2"].payload[13:]
    header = body[24 : 24 + codecs.byte_kinds(found["usq_coarse_v2"])["header"]]
    assert set(header[3::5]) == {0, 1}
    base = golden_base()
    assert any(
        value is base[name] for name, value in codecs.decode(found["usq_coarse_v2"], base).items()
    )
