"""What the jars of pycocoevalcap need of Java: whether it is there, and the tokenizer run once.

`tokenize` is PTBTokenizer 3.4.1 as coco-caption calls it, with three differences: always UTF-8,
line ends within a caption are spaces, and as many lines must come back as went in. It reads on from
one caption into the next, as in coco-caption.
"""

import re
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

from cdcca_cli.errors import Unavailable
from cdcca_cli.scoring.captions.tokens import PUNCTUATION

_LINE_ENDS = re.compile("[\n\r\v\f\x85\u2028\u2029]")
_HALF_A_PAIR = re.compile("[\ud800-\udfff]")
_SECONDS = 600


def has_java() -> bool:
    return shutil.which("java") is not None


def require(what: str, cure: str) -> None:
    """Raises: Unavailable (69) where there is no Java for `what`."""
    if not has_java():
        raise Unavailable(f"{what} needs Java, and no 'java' is on the PATH: {cure}")


def version() -> str:
    """Such as '1.8.0_402' or '17.0.15'; '' if it cannot be read."""
    done = _run(["java", "-version"], "")
    found = re.search(r'version "([^"]+)"', done.stderr)
    return found[1] if found else ""


def tokenize(captions: Sequence[str], jar: Path) -> list[str]:
    """Each caption's tokens, lower-case, without punctuation, joined by single spaces."""
    require("the java tokenizer", "install a Java runtime, or use `tokenizer` python")
    if not captions:
        return []
    lines = [_HALF_A_PAIR.sub("\x01", _LINE_ENDS.sub(" ", caption)) for caption in captions]
    command = ["java", "-Dfile.encoding=UTF-8", "-Dstdout.encoding=UTF-8", "-cp", str(jar)]
    command += ["edu.stanford.nlp.process.PTBTokenizer", "-preserveLines", "-lowerCase"]
    done = _run([*command, "-encoding", "utf-8"], "".join(f"{line}\n" for line in lines))
    tokenised = done.stdout.split("\n")[:-1]
    if done.returncode or len(tokenised) != len(lines):
        raise Unavailable(
            f"the tokenizer's jar gave {len(tokenised)} lines for {len(lines)} captions "
            f"(exit {done.returncode}): use `tokenizer` python"
        )
    return [
        " ".join(word for word in line.rstrip().split(" ") if word not in PUNCTUATION)
        for line in tokenised
    ]


def _run(command: list[str], text: str) -> "subprocess.CompletedProcess[str]":
    try:
        return subprocess.run(
            command,
            input=text,
            capture_output=True,
            encoding="utf-8",
            errors="replace",
            timeout=_SECONDS,
        )
    except (OSError, subprocess.SubprocessError) as error:
        raise Unavailable(f"Java could not be run ({error}): use `tokenizer` python") from error
