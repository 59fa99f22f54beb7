"""`python -m tests.export.llama_server FLAGS`: llama-server, as far as an example needs it.

llama.cpp's own server out of xllamacpp, with llama-server's names of options.
"""

import argparse

from tests.teachers import llama


def main() -> None:
    words = argparse.ArgumentParser(allow_abbrev=False)
    words.add_argument("-m", required=True)
    for name in ("--mmproj", "--lora", "--host"):
        words.add_argument(name, default="")
    words.add_argument("--port", type=int, required=True)
    given = words.parse_args()
    assert given.host == "127.0.0.1"
    llama._serve(given.port, given.m, given.mmproj, given.lora)


if __name__ == "__main__":
    main()
