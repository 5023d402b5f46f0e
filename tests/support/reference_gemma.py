"""Raw hidden states of Hugging Face's Gemma 3 after each layer, in a process of its own.

usage: python reference_gemma.py FOLDER JSON_LISTS_OF_TOKEN_IDS OUTPUT.npz
"""

import json
import sys

import numpy as np
import torch
from transformers import Gemma3TextModel

folder, token_ids, output = sys.argv[1:]
model = Gemma3TextModel.from_pretrained(folder, dtype=torch.float32).eval()
# Hooks, because the output's `hidden_states` apply the final norm to the last layer's.
layer_outputs = []
for layer in model.layers:
    layer.register_forward_hook(
        lambda _, __, result: layer_outputs.append(
            result[0] if isinstance(result, tuple) else result
        )
    )
arrays = {}
with torch.no_grad():
    for row, ids in enumerate(json.loads(token_ids)):
        layer_outputs.clear()
        model(torch.tensor([ids]))
        for cutoff, states in enumerate(layer_outputs, 1):
            arrays[f"{row}_{cutoff}"] = states.reshape(len(ids), -1).numpy()
np.savez(output, **arrays)
