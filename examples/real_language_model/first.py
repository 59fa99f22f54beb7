"""The lines of a manifest's first frames: `python first.py MANIFEST COUNT`; 0 for all."""

import json
import sys
from pathlib import Path


def main() -> None:
    """The command line."""
    lines = Path(sys.argv[1]).read_text().splitlines(keepends=True)
    names = list(dict.fromkeys(json.loads(line)["image"] for line in lines))
    kept = set(names[: int(sys.argv[2]) or None])
    sys.stdout.writelines(line for line in lines if json.loads(line)["image"] in kept)


if __name__ == "__main__":
    main()
