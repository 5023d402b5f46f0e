"""The forward pass of another checkout of this project, on the same texts, for comparison.

usage: python gemma_peer.py PRESET IDS.npz
Runs once per line of standard input, and prints the seconds.
"""

import sys

import numpy as np
from side_by_side import timed

from embedder_helpers.models.batching import from_lengths
from embedder_helpers.models.gemma import Gemma, HiddenStateSpec
from embedder_helpers.models.presets import find_preset

name, file = sys.argv[1:]
arrays = np.load(file)
ids = from_lengths(arrays["values"], arrays["lengths"])
gemma = Gemma(find_preset("llm_preset", name))
last = [HiddenStateSpec(gemma.preset.num_layers, "rms")]
run = timed(lambda: list(gemma.forward_layers(ids, last)))
for _ in sys.stdin:
    print(run(), flush=True)
