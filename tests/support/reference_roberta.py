"""Hidden states of Hugging Face's RoBERTa for given embeddings, in a process of its own.

usage: python reference_roberta.py FOLDER EMBEDDINGS.npy OUTPUT.npy
"""

import sys

import numpy as np
import torch
from transformers import RobertaConfig, RobertaModel

folder, embeddings, output = sys.argv[1:]
config = RobertaConfig.from_pretrained(folder, layer_norm_eps=1e-5)  # keras-hub's constant
model = RobertaModel.from_pretrained(folder, config=config, add_pooling_layer=False).eval()
# The preset's position table includes the token-type row already, so none is added here.
torch.nn.init.zeros_(model.embeddings.token_type_embeddings.weight)
with torch.no_grad():
    states = model(inputs_embeds=torch.tensor(np.load(embeddings))).last_hidden_state
np.save(output, states.numpy())
