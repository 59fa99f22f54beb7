"""Cloud-device collaborative adaptation of multimodal language models, as a command line."""


def __getattr__(name: str) -> str:
    if name != "__version__":
        raise AttributeError(f"module 'cdcca_cli' has no attribute {name!r}")
    from importlib import metadata  # 20 ms, which `cdcca --help` need not spend

    try:
        return metadata.version("cdcca")
    except metadata.PackageNotFoundError:
        return "0+not-installed"
