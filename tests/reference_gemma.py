"""Hugging Face's Gemma 3, in a process of its own: raw states behind every block.

usage: python reference_gemma.py FOLDER JSON_LISTS_OF_TOKEN_IDS OUTPUT.npz
"""

import json
import sys

import numpy as np
import torch
from transformers import Gemma3TextModel

folder, rows, output = sys.argv[1:]
model = Gemma3TextModel.from_pretrained(folder, dtype=torch.float32).eval()
found = {}
# A hook behind each layer: `hidden_states` of the output would have the last one normed.
kept = []
for layer in model.layers:
    layer.register_forward_hook(
        lambda _, __, result: kept.append(result[0] if isinstance(result, tuple) else result)
    )
with torch.no_grad():
    for row, ids in enumerate(json.loads(rows)):
        kept.clear()
        model(torch.tensor([ids]))
        for cutoff, states in enumerate(kept, 1):
            found[f"{row}_{cutoff}"] = states.reshape(len(ids), -1).numpy()
np.savez(output, **found)
