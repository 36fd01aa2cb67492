"""Makes the files of `lycoris`, by LyCORIS itself: python3 lycoris.py FOLDER"""

import sys

# This file has the package's name: its own folder must not come first.
sys.path.pop(0)

import torch
from lycoris.modules.locon import LoConModule
from safetensors.torch import save_file

# Output and input features, DoRA, its norm along the output axis, rsLoRA.
LAYERS = [
    (48, 32, True, True, False),
    (48, 32, True, False, True),
    (40, 40, True, False, False),
    (40, 40, True, True, True),
    (24, 56, False, True, False),
]

torch.manual_seed(1)
base, adapter, expected = {}, {}, {}
for index, (outputs, inputs, dora, on_output, rslora) in enumerate(LAYERS):
    linear = torch.nn.Linear(inputs, outputs)
    name = f"down.blocks.{index}.to_q"
    flat = "lycoris_" + name.replace(".", "_")
    settings = {"weight_decompose": dora, "wd_on_out": on_output, "rs_lora": rslora}
    module = LoConModule(flat, linear, 1.0, 4, 2.0, **settings)
    with torch.no_grad():
        module.lora_up.weight.normal_(std=0.2)
        if dora:
            module.dora_scale.mul_(1.1)
        expected[f"{name}.weight"] = module.eval().get_merged_weight()[0].clone()
    base |= {f"{name}.{part}": value.detach() for part, value in linear.named_parameters()}
    adapter |= {f"{flat}.{part}": it.detach() for part, it in module.custom_state_dict().items()}
for file, tensors in [("base", base), ("adapter", adapter), ("expected", expected)]:
    save_file(tensors, f"{sys.argv[1]}/{file}.safetensors")
