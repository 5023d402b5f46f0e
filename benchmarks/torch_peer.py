"""The peer: Hugging Face transformers on torch, with the same weights, tokens and batches.

usage: python torch_peer.py encode|train MODEL_FOLDER BATCHES.npz
Runs once for each line on standard input and prints the seconds.
"""

import sys
import time

import numpy as np
import torch
from transformers import AutoModel

what, folder, batches = sys.argv[1:]
loaded = np.load(batches)
count = len([name for name in loaded if name.startswith("mask")])
model = AutoModel.from_pretrained(folder, dtype=torch.float32)


def encode() -> None:
    """States behind the last block, batches as given."""
    with torch.inference_mode():
        for i in range(count):
            ids = torch.from_numpy(loaded[f"ids{i}"]).long()
            mask = torch.from_numpy(loaded[f"mask{i}"]).long()
            model(input_ids=ids, attention_mask=mask, use_cache=False)


def training():
    """An epoch: states through a projection, RoBERTa, masked mean and head; AdamW, two rates."""
    model.train()
    width = loaded["inputs0"].shape[-1]
    projection = torch.nn.Linear(width, model.config.hidden_size)
    head = torch.nn.Sequential(torch.nn.Dropout(0.1), torch.nn.Linear(model.config.hidden_size, 2))
    new = [*projection.parameters(), *head.parameters()]
    optimizer = torch.optim.AdamW(
        [{"params": model.parameters(), "lr": 5e-5}, {"params": new, "lr": 1e-3}], weight_decay=0.01
    )

    def epoch() -> None:
        for i in range(count):
            inputs = projection(torch.from_numpy(loaded[f"inputs{i}"]).float())
            mask = torch.from_numpy(loaded[f"mask{i}"])
            states = model(inputs_embeds=inputs, attention_mask=mask).last_hidden_state
            pooled = (states * mask[..., None]).sum(1) / mask.sum(1, keepdim=True)
            labels = torch.from_numpy(loaded[f"labels{i}"]).long()
            loss = torch.nn.functional.cross_entropy(head(pooled), labels)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()

    return epoch


run = encode if what == "encode" else training()
model.train(what == "train")
for _ in sys.stdin:
    start = time.perf_counter()
    run()
    print(time.perf_counter() - start, flush=True)
