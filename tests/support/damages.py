"""What may happen to a file: by a fault of a disk, an interrupted copy, or somebody's mistake."""

import os
import random
from collections.abc import Callable
from pathlib import Path


def flip_bit(path: Path, chance: random.Random) -> None:
    """One bit is another."""
    content = bytearray(path.read_bytes())
    content[chance.randrange(len(content))] ^= 1 << chance.randrange(8)
    path.write_bytes(content)


def overwrite(path: Path, chance: random.Random) -> None:
    """Up to a hundred bytes are other ones."""
    content = path.read_bytes()
    start = chance.randrange(len(content))
    noise = chance.randbytes(chance.randint(1, min(100, len(content) - start)))
    path.write_bytes(content[:start] + noise + content[start + len(noise) :])


def zero(path: Path, chance: random.Random) -> None:
    """A part reads as zeros, as after a crash of the system."""
    size = path.stat().st_size
    start = chance.randrange(size)
    with path.open("r+b") as file:
        file.seek(start)
        file.write(bytes(chance.randint(1, size - start)))


def cut(path: Path, chance: random.Random) -> None:
    """The end is missing."""
    os.truncate(path, chance.randrange(path.stat().st_size))


def swap(path: Path, chance: random.Random) -> None:
    """Two parts have changed places."""
    content = path.read_bytes()
    first, second, third = sorted(chance.randint(0, len(content)) for _ in range(3))
    path.write_bytes(
        content[:first] + content[second:third] + content[first:second] + content[third:]
    )


def append(path: Path, chance: random.Random) -> None:
    """Something follows the end."""
    path.write_bytes(path.read_bytes() + chance.randbytes(chance.randint(1, 50)))


def empty(path: Path, chance: random.Random) -> None:
    """No byte is left."""
    path.write_bytes(b"")


def delete(path: Path, chance: random.Random) -> None:
    """It is gone."""
    path.unlink()


def make_folder(path: Path, chance: random.Random) -> None:
    """A folder has its name."""
    path.unlink()
    path.mkdir()
    (path / "inside").write_text("something")


def make_pipe(path: Path, chance: random.Random) -> None:
    """A pipe has its name, from which reading would wait for ever."""
    path.unlink()
    os.mkfifo(path)


def make_loop(path: Path, chance: random.Random) -> None:
    """A link to itself has its name."""
    path.unlink()
    path.symlink_to(path.name)


DAMAGES: list[Callable[[Path, random.Random], None]] = [
    flip_bit, flip_bit, flip_bit, overwrite, overwrite, zero, cut, cut, swap, append, empty,
    delete, make_folder, make_pipe, make_loop,
]  # fmt: skip

# Ways after which something has the file's name that is not ours to remove.
NOT_FILES = ["make_folder", "make_pipe", "make_loop"]


def damage(path: Path, chance: random.Random) -> str:
    """Damage a file in a random way; returns the name of the way."""
    way = chance.choice(DAMAGES)
    way(path, chance)
    return way.__name__
