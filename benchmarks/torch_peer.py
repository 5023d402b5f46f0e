"""Hugging Face transformers on PyTorch, with the same weights, tokens and batches, for comparison.

usage: python torch_peer.py encode|train MODEL_FOLDER BATCHES.npz [DTYPE]
Runs once per line of standard input, and prints the seconds.
"""

import sys
import time

import numpy as np
import torch
from transformers import AutoModel

task, folder, file, *dtype = sys.argv[1:]
batches = np.load(file)
count = len([name for name in batches if name.startswith("mask")])
model = AutoModel.from_pretrained(folder, dtype=getattr(torch, *dtype or ["float32"]))


def encode() -> None:
    """Hidden states after the last layer."""
    with torch.inference_mode():
        for i in range(count):
            ids = torch.from_numpy(batches[f"ids{i}"]).long()
            mask = torch.from_numpy(batches[f"mask{i}"]).long()
            model(input_ids=ids, attention_mask=mask, use_cache=False)


def training():
    """An epoch: hidden states, projection, RoBERTa, masked mean, head; AdamW with two rates."""
    model.train()
    width = batches["inputs0"].shape[-1]
    projection = torch.nn.Linear(width, model.config.hidden_size)
    head = torch.nn.Sequential(torch.nn.Dropout(0.1), torch.nn.Linear(model.config.hidden_size, 2))
    new_weights = [*projection.parameters(), *head.parameters()]
    optimizer = torch.optim.AdamW(
        [{"params": model.parameters(), "lr": 5e-5}, {"params": new_weights, "lr": 1e-3}],
        weight_decay=0.01,
    )

    def epoch() -> None:
        for i in range(count):
            inputs = projection(torch.from_numpy(batches[f"inputs{i}"]).float())
            mask = torch.from_numpy(batches[f"mask{i}"])
            states = model(inputs_embeds=inputs, attention_mask=mask).last_hidden_state
            pooled = (states * mask[..., None]).sum(1) / mask.sum(1, keepdim=True)
            labels = torch.from_numpy(batches[f"labels{i}"]).long()
            loss = torch.nn.functional.cross_entropy(head(pooled), labels)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()

    return epoch


run = encode if task == "encode" else training()
model.train(task == "train")
for _ in sys.stdin:
    start = time.perf_counter()
    run()
    print(time.perf_counter() - start, flush=True)
