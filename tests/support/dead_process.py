"""A process that was killed, for tests of what it left."""

from embedder_helpers.utils.processes import own_name

MORE_THAN_ANY = 2**22 + 1  # numbers of processes end before


def dead_name() -> str:
    """The name of a process of this machine that does not live."""
    machine, boot, *_ = own_name().split("-")
    return f"{machine}-{boot}-{MORE_THAN_ANY}-0"
