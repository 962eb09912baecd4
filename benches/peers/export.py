#!/usr/bin/env python3
"""Write the static networks as ONNX files, without a training framework.

The graphs are what an eval-mode exporter produces from torchvision's models: batch normalisation
folded into the convolutions, so Conv (+bias), Relu, Add, the pools, Gemm, and for RegNet-Y the
squeeze-and-excitation branch. Weights are seeded random numbers, scaled so that activations keep
their order of magnitude through the network.
"""

import argparse
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

OPSET = 17
CLASSES = 1000
SIDE = 224

RESNETS = {"resnet50": (3, 4, 6, 3), "resnet101": (3, 4, 23, 3)}
# name: depths, widths, group width
REGNETS = {
    "regnet_y_400mf": ((1, 3, 6, 6), (48, 104, 208, 440), 8),
    "regnet_y_800mf": ((1, 3, 8, 2), (64, 144, 320, 784), 16),
}
MODELS = (*RESNETS, *REGNETS)
# Parameters with folded normalisation: torchvision's count less one vector per normalised convolution.
PARAMETERS = {
    "resnet50": 25_530_472,
    "resnet101": 44_496_488,
    "regnet_y_400mf": 4_330_568,
    "regnet_y_800mf": 6_417_296,
}


class Graph:
    """A chain of nodes with the shape (channels, side) of every value."""

    def __init__(self, seed):
        self.rng = np.random.default_rng(seed)
        self.nodes, self.weights = [], []
        self.shape = {"input": (3, SIDE)}
        self.macs = 0

    def tensor(self, name, array):
        self.weights.append(numpy_helper.from_array(array.astype(np.float32), name))
        return name

    def node(self, op, inputs, shape, **attributes):
        name = f"{op.lower()}_{len(self.nodes)}"
        self.nodes.append(helper.make_node(op, inputs, [name], name=name, **attributes))
        self.shape[name] = shape
        return name

    def conv(self, x, out, kernel=1, stride=1, groups=1, gain=2.0):
        """Convolution whose output variance is `gain`/2 times its (rectified) input's second moment."""
        channels, side = self.shape[x]
        fan_in = channels // groups * kernel * kernel
        weight = self.rng.standard_normal((out, channels // groups, kernel, kernel), dtype=np.float32)
        weight *= np.sqrt(gain / fan_in)
        bias = 0.01 * self.rng.standard_normal(out, dtype=np.float32)
        side = (side - 1) // stride + 1
        self.macs += weight.size * side * side
        name = f"conv_{len(self.nodes)}"
        inputs = [x, self.tensor(f"{name}.weight", weight), self.tensor(f"{name}.bias", bias)]
        return self.node(
            "Conv", inputs, (out, side), kernel_shape=[kernel] * 2, strides=[stride] * 2,
            pads=[kernel // 2] * 4, dilations=[1, 1], group=groups,
        )

    def map(self, op, *inputs):
        return self.node(op, list(inputs), self.shape[inputs[0]])

    def relu(self, x):
        return self.map("Relu", x)

    def max_pool(self, x):
        channels, side = self.shape[x]
        return self.node(
            "MaxPool", [x], (channels, (side - 1) // 2 + 1), kernel_shape=[3, 3], strides=[2, 2], pads=[1] * 4
        )

    def average(self, x):
        return self.node("GlobalAveragePool", [x], (self.shape[x][0], 1))

    def classifier(self, x):
        x = self.average(x)
        channels = self.shape[x][0]
        x = self.node("Flatten", [x], (channels, 1), axis=1)
        weight = self.rng.standard_normal((CLASSES, channels), dtype=np.float32) / np.sqrt(channels)
        self.macs += weight.size
        inputs = [x, self.tensor("fc.weight", weight), self.tensor("fc.bias", np.zeros(CLASSES))]
        self.nodes.append(helper.make_node("Gemm", inputs, ["logits"], name="fc", transB=1))

    def parameters(self):
        return sum(int(np.prod(w.dims)) for w in self.weights)

    def model(self, name, batch):
        size = batch or "batch"
        graph = helper.make_graph(
            self.nodes,
            name,
            [helper.make_tensor_value_info("input", TensorProto.FLOAT, [size, 3, SIDE, SIDE])],
            [helper.make_tensor_value_info("logits", TensorProto.FLOAT, [size, CLASSES])],
            self.weights,
        )
        return helper.make_model(
            graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=8, producer_name="laud-peers"
        )


def resnet(graph, depths):
    """Bottleneck network, version 1.5: the stride is on the 3x3 convolution."""
    x = graph.max_pool(graph.relu(graph.conv("input", 64, 7, 2)))
    for stage, depth in enumerate(depths):
        width = 64 << stage
        for block in range(depth):
            stride = 2 if stage and not block else 1
            y = graph.relu(graph.conv(x, width))
            y = graph.relu(graph.conv(y, width, 3, stride))
            y = graph.conv(y, 4 * width, gain=0.25)
            shortcut = x if block else graph.conv(x, 4 * width, 1, stride, gain=1.0)
            x = graph.relu(graph.map("Add", y, shortcut))
    graph.classifier(x)


def regnet(graph, depths, widths, group_width):
    """RegNet-Y: bottleneck ratio 1, squeeze to a quarter of the block's input width."""
    x = graph.relu(graph.conv("input", 32, 3, 2))
    for depth, width in zip(depths, widths):
        for block in range(depth):
            stride = 1 if block else 2
            squeezed = round(0.25 * graph.shape[x][0])
            y = graph.relu(graph.conv(x, width))
            y = graph.relu(graph.conv(y, width, 3, stride, width // group_width))
            scale = graph.relu(graph.conv(graph.average(y), squeezed))
            scale = graph.map("Sigmoid", graph.conv(scale, width))
            y = graph.conv(graph.map("Mul", y, scale), width, gain=1.0)
            shortcut = x if block else graph.conv(x, width, 1, stride, gain=1.0)
            x = graph.relu(graph.map("Add", y, shortcut))
    graph.classifier(x)


def build(name, batch=0, seed=0):
    """The network `name` with a fixed batch size, or a symbolic one for `batch` 0; and its MACs per image."""
    graph = Graph(seed)
    if name in RESNETS:
        resnet(graph, RESNETS[name])
    else:
        regnet(graph, *REGNETS[name])
    if graph.parameters() != PARAMETERS[name]:
        raise ValueError(f"{name}: {graph.parameters()} parameters, expected {PARAMETERS[name]}")
    return graph.model(name, batch), graph.macs


def path_of(folder, name, batch):
    return Path(folder) / (f"{name}_b{batch}.onnx" if batch else f"{name}.onnx")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("peer-models"), help="folder for the files")
    parser.add_argument("--models", default=",".join(MODELS), help="comma-separated names")
    parser.add_argument("--batch", type=int, default=0, help="fixed batch size; 0 leaves it symbolic")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    for name in args.models.split(","):
        if name not in MODELS:
            parser.error(f"unknown model {name!r}, expected one of {', '.join(MODELS)}")
        model, macs = build(name, args.batch, args.seed)
        onnx.checker.check_model(model, full_check=True)
        path = path_of(args.out, name, args.batch)
        onnx.save(model, path)
        print(f"{path}: {PARAMETERS[name] / 1e6:.2f} M parameters, {macs / 1e9:.3f} GMACs per image")


if __name__ == "__main__":
    main()
