"""The tiny pair and its shards, as in `tests.distillation`."""

from tests.distillation.conftest import foreign, mirror, never, shards, short_answers, teacher

__all__ = ["foreign", "mirror", "never", "shards", "short_answers", "teacher"]
