import pytest

from cdcca_cli.downlink.codecs.payload import after_sequence, of_update, with_sequence
from cdcca_cli.errors import BadData


def test_the_sequence_stands_in_front() -> None:
    assert with_sequence(258, b"rest") == b"\2\1\0\0\0\0\0\0rest"
    assert after_sequence(with_sequence(258, b"rest"), 258) == b"rest"
    with pytest.raises(BadData, match="header says sequence 3, its payload 258"):
        after_sequence(with_sequence(258, b"rest"), 3)
    with pytest.raises(BadData, match="cut short"):
        after_sequence(b"\2\1\0\0\0\0\0", 258)


def test_a_refusal_of_coded_numbers_names_the_update() -> None:
    with pytest.raises(BadData, match=r"^update: a plane of form 2"), of_update():
        raise BadData("a plane of form 2")
