"""Tensors found by the headers of a folder's files, or of a repository's by ranged requests."""

import json
import struct
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from cdcca_cli.doctor import headers
from cdcca_cli.errors import BadData, MissingInput, Unavailable
from tests.doctor.hub import Hub, serving

TENSORS = {
    "a": torch.arange(6, dtype=torch.float32).reshape(2, 3),
    "b": torch.tensor(1.5, dtype=torch.bfloat16),
    "c": torch.zeros(0, 4),
    "d": torch.tensor([1, -2, 3], dtype=torch.int64),
    "e": torch.tensor([True, False]),
}
BYTES = {"int64": 24, "float32": 24, "bfloat16": 2, "bool": 2}


def found_in(folder: Path) -> headers.Tensors:
    found = headers.tensors(str(folder), headers.in_folder(folder))
    assert found is not None
    return found


def found_on_hub(revision: str | None = None, repository: str = "owner/name") -> headers.Tensors:
    found = headers.tensors(repository, headers.on_hub(repository, revision))
    assert found is not None
    return found


def check(found: headers.Tensors) -> None:
    assert set(found.places) == set(TENSORS)
    assert found.num_bytes() == BYTES
    assert found.shapes() == {name: (one.dtype, tuple(one.shape)) for name, one in TENSORS.items()}
    for name, tensor in TENSORS.items():
        read = found.read(name)
        assert read.dtype == tensor.dtype and torch.equal(read, tensor)


def sharded(folder: Path, names: dict[str, object] | None = None) -> Path:
    """Two files and an index."""
    parts = {"one.safetensors": ["a", "d"], "two.safetensors": ["b", "c", "e"]}
    for file, members in parts.items():
        save_file({name: TENSORS[name] for name in members}, folder / file)
    where: dict[str, object] = {name: file for file, part in parts.items() for name in part}
    index = {"metadata": {}, "weight_map": where if names is None else names}
    (folder / headers.INDEX).write_text(json.dumps(index))
    return folder


def test_one_file(tmp_path: Path) -> None:
    save_file(TENSORS, tmp_path / "model.safetensors", {"format": "pt"})
    save_file({"x": torch.ones(1)}, tmp_path / "another.safetensors")
    check(found_in(tmp_path))


def test_several_files(tmp_path: Path) -> None:
    check(found_in(sharded(tmp_path)))


def test_a_folder_without_weights(tmp_path: Path) -> None:
    assert headers.tensors(str(tmp_path), headers.in_folder(tmp_path)) is None


@pytest.mark.parametrize(
    "names", [{"a": "../one.safetensors"}, {"a": 1}, {"a": "one.bin"}, {"a": "a/b.safetensors"}]
)
def test_an_index_names_files_of_its_folder(names: dict[str, object], tmp_path: Path) -> None:
    with pytest.raises(BadData, match="no weight_map of file names"):
        found_in(sharded(tmp_path, names))


@pytest.mark.parametrize("text", ["[]", "{}", "{", '{"weight_map": []}'])
def test_an_index_that_is_none(text: str, tmp_path: Path) -> None:
    (tmp_path / headers.INDEX).write_text(text)
    with pytest.raises(BadData):
        found_in(tmp_path)


def test_a_file_that_is_named_and_missing(tmp_path: Path) -> None:
    (sharded(tmp_path) / "two.safetensors").unlink()
    with pytest.raises(MissingInput, match=r"two\.safetensors"):
        found_in(tmp_path)


def test_a_file_cut_short(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    save_file({"a": torch.ones(100)}, path)
    path.write_bytes(path.read_bytes()[:-8])
    with pytest.raises(BadData, match="cut short"):
        found_in(tmp_path).read("a")


def test_bytes_that_are_not_those_of_the_shape(tmp_path: Path) -> None:
    table = {"a": {"dtype": "F32", "shape": [3], "data_offsets": [0, 8]}}
    text = json.dumps(table).encode()
    data = struct.pack("<Q", len(text)) + text + bytes(8)
    (tmp_path / "model.safetensors").write_bytes(data)
    with pytest.raises(BadData, match=r"8 bytes for the shape \[3\]"):
        found_in(tmp_path).read("a")


HOSTILE = {
    "a tensor of 4 TB": [1 << 40],
    "a tensor at the end of the largest file": [(1 << 56) - 1],
}


@pytest.mark.parametrize("shape", HOSTILE.values(), ids=list(HOSTILE))
def test_bytes_that_no_file_has(shape: list[int], tmp_path: Path) -> None:
    """Nothing is allocated for them."""
    end = (1 << 63) - 1
    table = {"a": {"dtype": "F32", "shape": shape, "data_offsets": [end - 4 * shape[0], end]}}
    text = json.dumps(table).encode()
    (tmp_path / "model.safetensors").write_bytes(struct.pack("<Q", len(text)) + text)
    with pytest.raises(BadData, match="cut short"):
        found_in(tmp_path).read("a")
    table["a"]["data_offsets"] = [0, 4 * shape[0]]
    text = json.dumps(table).encode()
    (tmp_path / "model.safetensors").write_bytes(struct.pack("<Q", len(text)) + text)
    with pytest.raises(BadData, match="cut short"):
        found_in(tmp_path).read("a")


@pytest.mark.parametrize("shape", [[1 << 62], [1 << 62, 0], [1 << 40, 0, 1 << 40]])
def test_a_shape_that_torch_cannot_have(shape: list[int], tmp_path: Path) -> None:
    """Empty ones too: their strides would be more than 2^63."""
    text = json.dumps({"a": {"dtype": "F32", "shape": shape, "data_offsets": [0, 0]}}).encode()
    (tmp_path / "model.safetensors").write_bytes(struct.pack("<Q", len(text)) + text)
    with pytest.raises(BadData, match="a shape of more than"):
        found_in(tmp_path)


def test_a_dtype_that_torch_does_not_have_is_counted_and_not_read(tmp_path: Path) -> None:
    table = {"a": {"dtype": "F4", "shape": [4], "data_offsets": [0, 2]}}
    text = json.dumps(table).encode()
    data = struct.pack("<Q", len(text)) + text + bytes(2)
    (tmp_path / "model.safetensors").write_bytes(data)
    found = found_in(tmp_path)
    assert found.num_bytes() == {"F4": 2} and found.shapes() == {}


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    folder = tmp_path / "repository"
    folder.mkdir()
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    with serving(Hub(folder, "owner/name")) as served:
        monkeypatch.setattr(
            "huggingface_hub.hf_hub_url",
            lambda repository, name, revision=None: (
                f"{served.endpoint}/{repository}/resolve/{revision or 'main'}/{name}"
            ),
        )
        yield served


def test_a_repository(hub: Hub) -> None:
    save_file(TENSORS, hub.folder / "model.safetensors")
    check(found_on_hub())


def test_a_repository_of_several_files(hub: Hub) -> None:
    sharded(hub.folder)
    check(found_on_hub("v1"))


def test_few_bytes_of_a_large_file_are_fetched(hub: Hub) -> None:
    """32 MB before the tensor that is wanted, and 32 MB behind it."""
    tensors = {"before": torch.zeros(8_000_000), "wanted": torch.rand(700_000)}
    save_file({**tensors, "xbehind": torch.zeros(8_000_000)}, hub.folder / "model.safetensors")
    found = found_on_hub()
    assert torch.equal(found.read("wanted"), tensors["wanted"])
    assert hub.sent["model.safetensors"] <= 4 * 700_000 + 3 * (1 << 20)
    assert hub.requests["model.safetensors"] <= 4


def test_small_tensors_come_many_at_a_time(hub: Hub) -> None:
    tensors = {f"{number:03}": torch.rand(1000) for number in range(500)}
    save_file(tensors, hub.folder / "model.safetensors")
    found = found_on_hub()
    for name, tensor in tensors.items():
        assert torch.equal(found.read(name), tensor)
    assert hub.requests["model.safetensors"] <= 4


def test_a_repository_without_weights(hub: Hub) -> None:
    assert headers.tensors("owner/name", headers.on_hub("owner/name", None)) is None


def test_a_repository_that_is_not_there(hub: Hub) -> None:
    with pytest.raises(Unavailable, match=r"owner/other: model\.safetensors: cannot"):
        found_on_hub(repository="owner/other")


def test_a_hub_that_cannot_be_reached(hub: Hub) -> None:
    hub.endpoint = "http://127.0.0.1:9"
    with pytest.raises(Unavailable, match="cannot be fetched from the hub"):
        found_on_hub()


def test_a_server_that_sends_whole_files_only(hub: Hub) -> None:
    save_file(TENSORS, hub.folder / "model.safetensors")
    hub.has_ranges = False
    with pytest.raises(Unavailable, match="does not send parts of a file"):
        found_on_hub()


def test_a_server_that_names_a_size_of_5000_digits(hub: Hub) -> None:
    save_file(TENSORS, hub.folder / "model.safetensors")
    hub.size = "9" * 5000
    with pytest.raises(Unavailable, match="does not send parts of a file"):
        found_on_hub()


def test_what_was_fetched_before_is_read_from_the_cache(
    hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save_file(TENSORS, tmp_path / "cached")

    def cached(repository: str, name: str, revision: str | None = None) -> str | None:
        assert (repository, revision) == ("owner/name", "v1")
        return str(tmp_path / "cached") if name == "model.safetensors" else None

    monkeypatch.setattr("huggingface_hub.try_to_load_from_cache", cached)
    check(found_on_hub("v1"))
    assert not hub.requests
