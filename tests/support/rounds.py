"""How many random trials the tests of robustness make: the same few each time, or more on request.

ROBUSTNESS_ROUNDS  a factor, 1 by default
ROBUSTNESS_SEED    the first seed, 0 by default, to go on where an earlier run ended
"""

import os

ROUNDS = int(os.environ.get("ROBUSTNESS_ROUNDS", "1"))
FIRST_SEED = int(os.environ.get("ROBUSTNESS_SEED", "0"))
FAILURES = os.environ.get("ROBUSTNESS_FAILURES")


def seeds(count: int) -> range:
    """A seed for each trial, of which there are `count` in a round."""
    return range(FIRST_SEED, FIRST_SEED + count * ROUNDS)
