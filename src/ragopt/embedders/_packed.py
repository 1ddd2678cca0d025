"""Encoders of the BERT family over texts of any length side by side, without padding.

In a padded batch every text is as long as the longest one, and the padding goes through all
matrix products. Here all texts lie in one row of tokens, and only attention sees them one by one
(as in Krell et al., "Efficient Sequence Packing without Cross-contamination", 2021).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import groupby
from typing import Any, NamedTuple

from ragopt._imports import require

_FAMILY = {"bert", "roberta", "xlm-roberta", "camembert"}
_FEW_TOKENS = 16
_COUNTED_FROM_PADDING = {"roberta", "xlm-roberta", "camembert"}


def can_pack(config: Any) -> bool:
    """Return whether ``PackedEncoder`` runs models of this configuration."""
    return (
        config.model_type in _FAMILY
        and getattr(config, "position_embedding_type", "absolute") == "absolute"
        and not getattr(config, "is_decoder", False)
    )


def most_positions(config: Mapping[str, Any]) -> int | None:
    """Return how many tokens a model has positions for, by its config.json; None if unknown."""
    most = config.get("max_position_embeddings")
    if not isinstance(most, int):
        return None
    padded = config.get("model_type") in _COUNTED_FROM_PADDING
    return most - int(config.get("pad_token_id", 1)) - 1 if padded else most


class _Layer(NamedTuple):
    """What one layer does."""

    query: Any
    key: Any
    value: Any
    mix: Any
    first_norm: Any
    widen: Any
    activate: Any
    narrow: Any
    second_norm: Any


class PackedEmbeddings:
    """What goes into the first layer of a transformers model, for texts side by side.

    Args:
        model: A model for whose configuration ``can_pack`` is true.
    """

    def __init__(self, model: Any) -> None:
        self._torch = require("torch", "transformers")
        self._embeddings = model.embeddings
        roberta = model.config.model_type in _COUNTED_FROM_PADDING
        self._first_position = model.config.pad_token_id + 1 if roberta else 0

    def __call__(self, ids: Sequence[Sequence[int]]) -> Any:
        """Return the states of all tokens before the first layer, shape ``(tokens, hidden)``."""
        torch, embeddings = self._torch, self._embeddings
        device = embeddings.word_embeddings.weight.device
        flat = torch.tensor([token for each in ids for token in each], device=device)
        positions = torch.cat([torch.arange(len(each)) for each in ids]).to(device)
        states = embeddings.word_embeddings(flat)
        states = states + embeddings.token_type_embeddings.weight[0]
        states = states + embeddings.position_embeddings(positions + self._first_position)
        return embeddings.LayerNorm(states)


class PackedEncoder:
    """Runs the weights of a transformers model, which it takes over.

    Args:
        model: A model for whose configuration ``can_pack`` is true. It must not be used
            elsewhere: on a CPU its weights are rearranged.
    """

    def __init__(self, model: Any) -> None:
        self._torch = require("torch", "transformers")
        self._embeddings = PackedEmbeddings(model)
        self._heads = int(model.config.num_attention_heads)
        self._layers = [self._layer(each) for each in model.encoder.layer]

    def __call__(self, ids: Sequence[Sequence[int]]) -> Any:
        """Return the last hidden states of all tokens, shape ``(tokens, hidden)``.

        Args:
            ids: Token ids of each text.
        """
        lengths = [len(each) for each in ids]
        states = self._embeddings(ids)
        for layer in self._layers:
            context = self._attend(layer, states, lengths)
            states = layer.first_norm(layer.mix(context) + states)
            wide = layer.activate(layer.widen(states))
            states = layer.second_norm(layer.narrow(wide) + states)
        return states

    def _layer(self, layer: Any) -> _Layer:
        inner, outer = layer.attention.self, layer.attention.output
        return _Layer(
            query=self._linear(inner.query),
            key=self._linear(inner.key),
            value=self._linear(inner.value),
            mix=self._linear(outer.dense),
            first_norm=outer.LayerNorm,
            widen=self._linear(layer.intermediate.dense),
            activate=layer.intermediate.intermediate_act_fn,
            narrow=self._linear(layer.output.dense),
            second_norm=layer.output.LayerNorm,
        )

    def _attend(self, layer: _Layer, states: Any, lengths: list[int]) -> Any:
        """Return what each token takes from the tokens of its own text."""
        parts = [
            project(states).view(len(states), self._heads, -1)
            for project in (layer.query, layer.key, layer.value)
        ]
        contexts, begin = [], 0
        for length, group in groupby(lengths):  # texts of one length go together
            many = len(list(group))
            end = begin + many * length
            query, key, value = (
                part[begin:end].view(many, length, self._heads, -1).transpose(1, 2)
                for part in parts
            )
            context = self._torch.nn.functional.scaled_dot_product_attention(query, key, value)
            contexts.append(context.transpose(1, 2).reshape(many * length, -1))
            begin = end
        return self._torch.cat(contexts)

    def _linear(self, module: Any) -> Any:
        """Return a linear layer, in oneDNN's own order of weights where that can be had.

        PyTorch's way reads the weights of a large layer at a fraction of what memory gives when
        there are few tokens: a lone query takes twice as long.
        """
        torch, weight, bias = self._torch, module.weight, module.bias
        if weight.device.type != "cpu" or weight.dtype != torch.float32:
            return module
        try:
            arranged = torch.ops.mkldnn._reorder_linear_weight(weight.detach(), _FEW_TOKENS)

            def run(states: Any) -> Any:
                return torch.ops.mkldnn._linear_pointwise(states, arranged, bias, "none", [], "")

            with torch.inference_mode():
                sample = torch.linspace(-1, 1, weight.shape[1]).expand(2, -1)
                if not torch.allclose(run(sample), module(sample), atol=1e-4, rtol=1e-4):
                    return module
        except (AttributeError, RuntimeError, NotImplementedError):  # another build of PyTorch
            return module
        module.weight = None  # one copy is enough
        return run
