"""Loads an adapter of the digits network with PEFT; saves its logits and merged weights."""

import json
import pathlib
import sys

import torch
from peft import PeftModel
from safetensors.torch import load_file, save_file

network, adapter, batch, output = sys.argv[1:]


class Net(torch.nn.Module):
    def __init__(self, weights, stored_by_input):
        super().__init__()
        self.layers = torch.nn.ModuleList()
        while f"layers.{len(self.layers)}.weight" in weights:
            weight = weights[f"layers.{len(self.layers)}.weight"]
            if stored_by_input:
                from transformers.pytorch_utils import Conv1D

                self.layers.append(Conv1D(weight.shape[0], weight.shape[1]))
                weights[f"layers.{len(self.layers) - 1}.weight"] = weight.T.contiguous()
            else:
                self.layers.append(torch.nn.Linear(weight.shape[1], weight.shape[0]))
        self.load_state_dict(weights)

    def forward(self, x):
        for layer in self.layers[:-1]:
            x = torch.relu(layer(x))
        return self.layers[-1](x)


config = json.loads((pathlib.Path(adapter) / "adapter_config.json").read_text())
model = PeftModel.from_pretrained(Net(load_file(network), config["fan_in_fan_out"]), adapter)
with torch.no_grad():
    results = {"logits": model(load_file(batch)["input"])}
    merged = model.merge_and_unload()
results |= {f"merged.{name}": value for name, value in merged.state_dict().items()}
save_file({name: value.contiguous() for name, value in results.items()}, output)
