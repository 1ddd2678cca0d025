"""The layers of BERT-like encoders as a graph for ONNX Runtime, in float32 or in int8.

The graph takes and gives the states of all tokens, one text after another, without padding. Only
attention sees the texts one by one.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ragopt._imports import require

_MICROSOFT = "com.microsoft"
_OPSET = 18
# Without VNNI, a CPU adds two products of 8 bits in 16, where they may not fit: 2 x 255 x 63 does.
_WEIGHT_STEPS = 63
_STATE_STEPS = 127


class Graph(NamedTuple):
    """A graph and what it does not hold itself.

    Args:
        content: The graph as ONNX Runtime reads it.
        weights: The large matrices by name. They may be views of the model's own.
    """

    content: bytes
    weights: dict[str, NDArray[Any]]


def layers_graph(layers: Sequence[Any], *, heads: int, int8: bool) -> Graph:
    """Return the layers of an encoder as a graph.

    In int8, each row of weights and each token's state has a scale of its own, unlike the one scale
    for all states of the usual dynamic quantisation, and sums of products are exact. Attention
    stays in float32 and sees each text as if it were alone. So what is computed for a text does not
    depend on its batch, not even by a rounding, which would grow from layer to layer.

    Inputs of the graph: ``states``, float32 ``(tokens, hidden)``, and for each run of texts of one
    length ``begins`` and ``ends``, int64 ``(runs, 1)``, and ``shapes``, int64 ``(runs, 3)``: texts,
    length, hidden. Its output is float32 ``(tokens, hidden)``.

    Args:
        layers: Layers of a transformers model of the BERT family, with gelu.
        heads: Number of attention heads.
        int8: Compute the linear layers in int8.
    """
    return _Builder(heads, int8).build(layers)


class _Builder:
    def __init__(self, heads: int, int8: bool) -> None:
        self._onnx = require("onnx", "onnx")
        self._heads = heads
        self._int8 = int8
        self._linear = self._linear_in_int8 if int8 else self._linear_in_float32
        self._nodes: list[Any] = []
        self._within: list[Any] = []
        self._weights: dict[str, NDArray[Any]] = {}

    def build(self, layers: Sequence[Any]) -> Graph:
        helper, types = self._onnx.helper, self._onnx.TensorProto
        hidden = layers[0].output.dense.weight.shape[0]
        states = "states"
        self._constant("first", np.array([0]))
        self._constant("flat", np.array([-1, hidden]))
        self._constant("width", np.full(3, hidden))
        if self._int8:
            self._constant("last", np.array([-1]))
            self._constant("one", np.float32(1))
            self._constant("zero", np.uint8(128))
            self._constant("tiny", np.float32(1e-12))
            self._constant("step", np.float32(1 / _STATE_STEPS))
        self._node("Squeeze", [self._node("Shape", ["begins"], "size", end=1)], "runs")
        for number, layer in enumerate(layers):
            states = self._layer(f"layer{number}", layer, states)
        inputs = {
            "states": (types.FLOAT, ["tokens", hidden]),
            "begins": (types.INT64, ["runs", 1]),
            "ends": (types.INT64, ["runs", 1]),
            "shapes": (types.INT64, ["runs", 3]),
        }
        graph = helper.make_graph(
            self._nodes,
            "layers",
            [helper.make_tensor_value_info(name, *kind) for name, kind in inputs.items()],
            [helper.make_tensor_value_info(states, types.FLOAT, ["tokens", hidden])],
            self._within,
        )
        versions = [helper.make_opsetid("", _OPSET), helper.make_opsetid(_MICROSOFT, 1)]
        model = helper.make_model(graph, opset_imports=versions, ir_version=9)
        return Graph(model.SerializeToString(), self._weights)

    def _layer(self, name: str, layer: Any, states: str) -> str:
        inner, outer = layer.attention.self, layer.attention.output
        parts = (inner.query, inner.key, inner.value)
        context = self._attention(name, parts, states)
        mixed = self._linear(f"{name}.mix", [outer.dense], context)
        middle = self._normalized(f"{name}.middle", mixed, states, outer)
        wide = self._linear(f"{name}.wide", [layer.intermediate.dense], middle)
        bias = self._bias(f"{name}.wide", [layer.intermediate.dense])
        active = self._node("BiasGelu", [wide, bias], f"{name}.active", _MICROSOFT)
        narrow = self._linear(f"{name}.narrow", [layer.output.dense], active)
        return self._normalized(f"{name}.out", narrow, middle, layer.output)

    def _attention(self, name: str, parts: Sequence[Any], states: str) -> str:
        """Add what each token takes from the tokens of its own text."""
        projected = self._linear(f"{name}.parts", parts, states)
        biased = self._node(
            "Add", [projected, self._bias(f"{name}.parts", parts)], f"{name}.biased"
        )
        none = self._node("SequenceEmpty", [], f"{name}.none")
        every = self._node(
            "Loop", ["runs", "", none], f"{name}.every", body=self._run(name, biased)
        )
        return self._node("ConcatFromSequence", [every], f"{name}.context", axis=0)

    def _run(self, name: str, biased: str) -> Any:
        """Return attention over the texts of one run; its memory grows with their length alone."""
        helper, types = self._onnx.helper, self._onnx.TensorProto
        number, goes_on, before = f"{name}.number", f"{name}.goes_on", f"{name}.before"
        outside, self._nodes = self._nodes, []
        bounds = [
            self._node("Gather", [each, number], f"{name}.{each}")
            for each in ("begins", "ends", "shapes")
        ]
        rows = self._node("Slice", [biased, *bounds[:2], "first"], f"{name}.rows")
        split = [f"{name}.query", f"{name}.key", f"{name}.value"]
        self._nodes.append(helper.make_node("Split", [rows, "width"], split, axis=1))
        laid = [self._node("Reshape", [each, bounds[2]], f"{each}.laid") for each in split]
        attended = self._node(
            "MultiHeadAttention", laid, f"{name}.attended", _MICROSOFT, num_heads=self._heads
        )
        found = self._node("Reshape", [attended, "flat"], f"{name}.found")
        after = self._node("SequenceInsert", [before, found], f"{name}.after")
        same = self._node("Identity", [goes_on], f"{name}.same")
        nodes, self._nodes = self._nodes, outside
        sequence = helper.make_tensor_sequence_value_info
        return helper.make_graph(
            nodes,
            f"{name}.run",
            [
                helper.make_tensor_value_info(number, types.INT64, []),
                helper.make_tensor_value_info(goes_on, types.BOOL, []),
                sequence(before, types.FLOAT, None),
            ],
            [
                helper.make_tensor_value_info(same, types.BOOL, []),
                sequence(after, types.FLOAT, None),
            ],
        )

    def _normalized(self, name: str, states: str, skipped: str, outer: Any) -> str:
        """Add the layer normalisation of a linear layer's output, its bias and what it skipped."""
        norm = outer.LayerNorm
        return self._node(
            "SkipLayerNormalization",
            [
                states,
                skipped,
                self._constant(f"{name}.scale", _array(norm.weight)),
                self._constant(f"{name}.shift", _array(norm.bias)),
                self._bias(name, [outer.dense]),
            ],
            name,
            _MICROSOFT,
            epsilon=norm.eps,
        )

    # -- linear layers, without their biases, which the next node adds -------------------------

    def _linear_in_float32(self, name: str, modules: Sequence[Any], states: str) -> str:
        weight = self._weight(f"{name}.weight", _rows(modules))
        return self._node("Gemm", [states, weight], name, transB=1)

    def _linear_in_int8(self, name: str, modules: Sequence[Any], states: str) -> str:
        rows = _rows(modules)
        scales = np.maximum(np.abs(rows).max(axis=1), np.finfo(np.float32).tiny) / _WEIGHT_STEPS
        steps = np.rint(rows / scales[:, None]).astype(np.int8)
        quantized, scale = self._quantized(f"{name}.states", states)
        product = self._node(
            "MatMulIntegerToFloat",
            [
                quantized,
                self._weight(f"{name}.weight", np.ascontiguousarray(steps.T)),
                "one",
                self._constant(f"{name}.scales", scales.astype(np.float32)),
                "zero",
            ],
            f"{name}.product",
            _MICROSOFT,
        )
        return self._node("Mul", [product, scale], name)

    def _quantized(self, name: str, states: str) -> tuple[str, str]:
        """Add the states in 8 bits around 128, and the scale of each, shape ``(tokens, 1)``."""
        highest = self._node("ReduceMax", [states, "last"], f"{name}.highest", keepdims=1)
        lowest = self._node("ReduceMin", [states, "last"], f"{name}.lowest", keepdims=1)
        upwards = self._node("Neg", [lowest], f"{name}.upwards")
        most = self._node("Max", [highest, upwards, "tiny"], f"{name}.most")
        scale = self._node("Mul", [most, "step"], f"{name}.scale")
        flat = self._node("Squeeze", [scale, "last"], f"{name}.flat")
        count = self._node("Shape", [states], f"{name}.count", start=0, end=1)
        middle = self._onnx.helper.make_tensor("middle", self._onnx.TensorProto.UINT8, [1], [128])
        zeros = self._node("ConstantOfShape", [count], f"{name}.zeros", value=middle)
        rounded = self._node("QuantizeLinear", [states, flat, zeros], f"{name}.rounded", axis=0)
        return rounded, scale

    # -- parts of the graph -------------------------------------------------------------------

    def _node(
        self, kind: str, inputs: Sequence[str], output: str, domain: str = "", **settings: Any
    ) -> str:
        make = self._onnx.helper.make_node
        self._nodes.append(make(kind, inputs, [output], domain=domain, **settings))
        return output

    def _bias(self, name: str, modules: Sequence[Any]) -> str:
        biases = np.concatenate([_array(module.bias) for module in modules])
        return self._constant(f"{name}.bias", biases)

    def _constant(self, name: str, value: Any) -> str:
        self._within.append(self._onnx.numpy_helper.from_array(np.asarray(value), name))
        return name

    def _weight(self, name: str, value: NDArray[Any]) -> str:
        """Add a matrix that stays outside of the graph, which may not exceed 2 GB."""
        onnx = self._onnx
        tensor = onnx.TensorProto(
            name=name,
            data_type=onnx.helper.np_dtype_to_tensor_dtype(value.dtype),
            dims=value.shape,
            data_location=onnx.TensorProto.EXTERNAL,
        )
        place = tensor.external_data.add()
        place.key, place.value = "location", "memory"
        self._within.append(tensor)
        self._weights[name] = value
        return name


def _rows(modules: Sequence[Any]) -> NDArray[np.float32]:
    """Return the weights of linear layers of one input, one under the other."""
    weights = [_array(module.weight) for module in modules]
    return weights[0] if len(weights) == 1 else np.concatenate(weights)


def _array(parameter: Any) -> NDArray[np.float32]:
    """Return a parameter of a model, not copied."""
    array: NDArray[np.float32] = parameter.detach().numpy()
    return array
