"""A checkpoint's model without its weights: its parts, sizes and names, from config.json alone.

The parameters are on torch's meta device, which takes no memory. `tower_tensors` finds the tower's
parameters among the tensors of a checkpoint, as transformers does when it loads them (it renames
and splits some), so that a tower's digest needs the bytes of the tower alone.
"""

from collections.abc import Callable, Iterator, Mapping
from copy import deepcopy
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from cdcca_cli.errors import BadData
from cdcca_cli.families import FAMILIES, Family
from cdcca_cli.models import decoding, digests, loading

PARTS = ("tower", "connector", "language", "audio")
_KEPT = ("_keep_in_fp32_modules", "_keep_in_fp32_modules_strict")


@dataclass(frozen=True)
class Skeleton:
    """named: as the user wrote it. path: its folder or hub id. module: on the meta device."""

    named: str
    path: str
    is_folder: bool
    row: Family
    module: Any
    tokenizer: Any
    revision: str | None = None

    def parameters(self) -> dict[str, nn.Parameter]:
        """By name; one that two modules share comes once."""
        return dict(self.module.named_parameters())

    def part_of(self, name: str) -> str:
        """The part, one of PARTS, that a parameter belongs to."""
        row = self.row
        if _is_under(name, row.tower_path) and not _is_under(name, *row.connector_paths):
            return "tower"
        if _is_under(name, row.language_path, "lm_head"):
            return "language"
        return "audio" if "audio" in name else "connector"

    def tower_names(self) -> dict[str, str]:
        """The tower's parameters: their names inside it, by their names in the module."""
        prefix = f"{self.row.tower_path}."
        names = [name for name in self.parameters() if self.part_of(name) == "tower"]
        return {name: name.removeprefix(prefix) for name in names}

    def vocabulary_digest(self) -> str:
        """As `LoadedModel.vocabulary_digest`."""
        words = self.tokenizer.get_vocab()
        rows = int(self.module.get_output_embeddings().weight.shape[0])
        config = self.module.config.get_text_config(decoder=True)
        ends = decoding.end_ids(self._generation_config(), config, self.tokenizer)
        return digests.of_vocabulary(words, rows, ends)

    def _generation_config(self) -> Any:
        from transformers import GenerationConfig

        if self.row.connector == "qformer":  # the file is of the whole, which does not generate
            return self.module.get_submodule(self.row.language_path).generation_config
        try:
            return GenerationConfig.from_pretrained(self.path, revision=self.revision)
        except OSError:  # there is none
            return self.module.generation_config


def skeleton(
    checkpoint: str, *, revision: str | None = None, qformer_layers: int | None = None
) -> Skeleton:
    """Read config.json and the tokenizer of a checkpoint. Raises: as `loading.load`."""
    import transformers
    from accelerate import init_empty_weights

    source = loading._source(checkpoint, revision)
    loading._quiet_transformers()
    config = loading._config(source)
    if qformer_layers is not None:
        loading._cut_qformer(config, qformer_layers, source.named)
    row = FAMILIES[config.model_type]
    with source.reading("config.json"), init_empty_weights():
        module = getattr(transformers, row.architecture)._from_config(config, dtype=config.dtype)
    return Skeleton(
        source.named,
        source.path,
        source.is_folder,
        row,
        module.eval(),
        loading._tokenizer(source, ""),
        revision,
    )


Shapes = Mapping[str, tuple[torch.dtype, tuple[int, ...]]]
"""The dtype and the shape of each stored tensor, by its name in the checkpoint."""


class TowerTensors(Mapping[str, Tensor]):
    """The tower's parameters as transformers would load them, by name inside it; read one by one.

    Raises: BadData if the checkpoint lacks one, or has another shape; from [] too, what `read` does.
    """

    def __init__(self, built: Skeleton, stored: Shapes, read: Callable[[str], Tensor]) -> None:
        self._module, self._read = built.module, read
        self._loads = _loads(built.module, stored)
        self._names = {inside: name for name, inside in built.tower_names().items()}
        self._parameters = built.parameters()
        self._ready: dict[str, Tensor] = {}  # of a stored tensor that makes several parameters
        self._kept = {name for part in built.module.modules() for name in _kept(part)}
        for name in self._names.values():
            shape, load = tuple(self._parameters[name].shape), self._loads.get(name)
            if load is None:
                raise BadData(f"{built.named}: the weights lack {name}")
            if load.targets[name] != shape:
                raise BadData(
                    f"{built.named}: {name} has the shape {list(load.targets[name])} in the "
                    f"weights, {list(shape)} by config.json"
                )

    def __getitem__(self, inside: str) -> Tensor:
        name = self._names[inside]
        if name not in self._ready:
            self._ready |= self._loads[name].made(self._module, self._read)
        return self._as_loaded(name, self._ready.pop(name))

    def _as_loaded(self, name: str, tensor: Tensor) -> Tensor:
        """Cast to the dtype that config.json names, in which the digest of a load is taken."""
        dtype = self._parameters[name].dtype
        is_kept = dtype != torch.float32 and not self._kept.isdisjoint(name.split("."))
        return tensor.to(torch.float32 if is_kept else dtype)

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)


@dataclass
class _Load:
    """Stored tensors that together make one or more parameters.

    sources: their names, with the patterns of the converter that they match. targets: the shapes
    of the parameters, by name. converter: of transformers; None if a tensor is taken as it is.
    """

    name: str
    sources: list[tuple[str, str | None]]
    targets: dict[str, tuple[int, ...]]
    converter: Any = None

    def made(self, module: Any, read: Callable[[str], Tensor]) -> dict[str, Tensor]:
        if self.converter is None:
            return {self.name: read(self.sources[0][0])}
        converter = deepcopy(self.converter)
        for source, pattern in self.sources:
            converter.add_tensor(self.name, source, pattern, read(source))
        found = converter.convert(self.name, model=module, config=module.config)
        return {
            name: tensor[0] if isinstance(tensor, list) else tensor
            for name, tensor in found.items()
        }


def _loads(module: Any, stored: Shapes) -> dict[str, _Load]:
    """How each parameter is made from stored tensors, as transformers' loader finds it."""
    from transformers import conversion_mapping
    from transformers.core_model_loading import (
        WeightConverter,
        WeightRenaming,
        dot_natural_key,
        rename_source_key,
    )

    known = module.state_dict()
    changes = conversion_mapping.get_model_conversion_mapping(module)
    renamings = [one for one in changes if isinstance(one, WeightRenaming)]
    converters = [one for one in changes if isinstance(one, WeightConverter)]
    by_pattern = {pattern: one for one in converters for pattern in one.source_patterns}
    prefix = module.base_model_prefix
    loads: dict[str, _Load] = {}
    for source in sorted(stored, key=dot_natural_key):
        name, pattern = rename_source_key(source, renamings, converters, prefix, known)
        if name not in known and source in known:
            name, pattern = rename_source_key(source, [], [], prefix, known)
        if name in known:
            converter = None if pattern is None else by_pattern[pattern]
            load = loads.setdefault(name, _Load(name, [], {}, converter))
            load.sources.append((source, pattern))

    def empty(source: str) -> Tensor:
        dtype, shape = stored[source]
        return torch.empty(shape, dtype=dtype, device="meta")

    for load in loads.values():
        made = load.made(module, empty)
        load.targets = {name: tuple(tensor.shape) for name, tensor in made.items()}
    return {name: load for load in loads.values() for name in load.targets}


def _kept(part: nn.Module) -> Iterator[str]:
    """The parts of a module that transformers keeps in float32."""
    for setting in _KEPT:
        yield from getattr(part, setting, None) or ()


def _is_under(name: str, *paths: str) -> bool:
    return any(path and (name == path or name.startswith(f"{path}.")) for path in paths)
