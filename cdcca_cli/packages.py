"""The packages that cdcca depends on, and those that a light installation leaves out.

A light installation, for a device, has what `apply`, `export`, `infer` and `sample` with a server,
`inspect` and keys need, and none of LEFT_OUT: about 150 MB in place of 1,700. Whatever imports one
of those there ends with Unavailable (`main`), whose cure is all of them, because one alone does not
help.
"""

import re
from contextlib import suppress
from importlib import metadata
from importlib.util import find_spec

LEFT_OUT = {
    "torch": "computes the models",
    "transformers": "loads checkpoints",
    "peft": "loads the adapters of cdcca export",
    "bitsandbytes": "quantises language models",
    "accelerate": "loads large and quantised checkpoints",
    "tokenizers": "reads and writes prompts",
    "huggingface_hub": "fetches checkpoints",
    "pycocoevalcap": "scores captions",
    "jinja2": "writes reports",
}
"""Packages, named as they are imported, and what each does."""
LIGHT = {
    "safetensors": "reads weights",
    "numpy": "computes updates",
    "pillow": "reads and codes pictures",
    "zstandard": "compresses streams",
    "cryptography": "signs updates",
    "httpx2": "asks servers and teachers at an address",
}
"""The same of those that every installation has; beside them typer and rich, for the interface."""
_IMPORTED_AS = {"pillow": "PIL"}
_BROUGHT_BY_OTHERS = ("tokenizers", "huggingface_hub")


def versions() -> dict[str, str]:
    """The versions of cdcca, Python and the packages that are installed here."""
    import platform

    from cdcca_cli import __version__

    found = {"cdcca": __version__, "python": platform.python_version()}
    for name in (*LEFT_OUT, *LIGHT):
        with suppress(metadata.PackageNotFoundError):
            found[name] = metadata.version(name)
    return found


def is_light() -> bool:
    """Whether this is a light installation."""
    return find_spec("torch") is None


def cure_for(error: ModuleNotFoundError) -> str | None:
    """What is missing and how to get it; None if no package of cdcca's has this module."""
    module = (error.name or "").partition(".")[0]
    names = {_IMPORTED_AS.get(name, name): name for name in (*LEFT_OUT, *LIGHT, "typer", "rich")}
    package = names.get(module)
    if package is None:
        return None
    wanted = [package]
    if package in LEFT_OUT:
        wanted = [
            name for name in LEFT_OUT if name not in _BROUGHT_BY_OTHERS and not _is_here(name)
        ]
        wanted = wanted or [package]
    specified = " ".join(_specified(name) for name in wanted)
    light = ", which a light installation leaves out" if package in LEFT_OUT else ""
    return f"needs the package {package}{light}: pip install {specified}"


def _is_here(name: str) -> bool:
    return find_spec(_IMPORTED_AS.get(name, name)) is not None


def _specified(name: str) -> str:
    """A package with the versions that cdcca takes, as a shell's word."""
    try:
        required = metadata.requires("cdcca") or []
    except metadata.PackageNotFoundError:
        required = []
    for line in required:
        requirement = line.partition(";")[0].strip()
        if re.split(r"[^\w-]", requirement)[0] == name and "extra" not in line:
            return requirement if requirement == name else f"'{requirement}'"
    return name
