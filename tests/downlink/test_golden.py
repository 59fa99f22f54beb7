"""An update of each codec, readable for ever: `golden/<codec>.update`, against `base.overlay`.

Made once by `worlds.next_update(device, settings=CompressSettings(budget_bytes=800))`, kept since.
"""

from pathlib import Path

from cdcca_cli.downlink import receiver
from cdcca_cli.formats.device import read_overlay_file
from cdcca_cli.formats.digest import overlay_digest
from cdcca_cli.formats.update import read_update
from tests.downlink import slow_decoder

GOLDEN = Path(__file__).parent / "golden"


def test_nf4_mixed() -> None:
    """2, 4 and 8 bits occur, and 0; the target was written when the file was made."""
    with (GOLDEN / "base.overlay").open("rb") as source:
        base, _ = read_overlay_file(source)
    path = GOLDEN / "nf4_mixed_v1.update"
    with path.open("rb") as source:
        update = read_update(source)
    assert overlay_digest(base) == update.base
    assert set(update.bits) == {0, 2, 4, 8}
    decoded = receiver.decode(update, base)
    assert overlay_digest(decoded) == update.target
    slow = slow_decoder.decode(
        path.read_bytes(), [base[n].reshape(-1).tolist() for n in sorted(base)]
    )
    assert slow == [decoded[n].reshape(-1).tolist() for n in sorted(base)]
