"""Rotary positions: keys that stand in a cache are turned to another position, without the text that they came from.

A rotary embedding turns a key by an angle that grows with its position, and turns add up: a key at position p becomes
the key at position q when it is turned by q - p. Where the frequencies depend on how long the text is, they do not.
"""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from ccm.core.errors import UnsupportedModelError
from ccm.engine.families import attention_modules, decoder, entry_sizes

Angles = tuple[Tensor, Tensor]  # cosines and sines, (1, T, rotary dimensions), float32
Apply = Callable[..., tuple[Tensor, Tensor]]  # (queries, keys, cosines, sines) -> the two turned
_TURNS: dict[str, Callable[[Any], bool]] = {  # which layers of hybrid models know positions; others say use_rope
    "cohere2": lambda attention: attention.sliding_window is not None,
    "exaone4": lambda attention: attention.sliding_window is None or attention.is_sliding,
}


class Turn:
    """A turn of keys by a number of positions each.

    Args:
        angles: per layer; None where the layer knows no positions.
        apply: the model's own function, which knows which dimensions turn together.
    """

    def __init__(self, angles: list[Angles | None], apply: Apply) -> None:
        self._angles, self._apply = angles, apply

    def __call__(self, layer: int, keys: Tensor) -> Tensor:
        """The keys (B, K, T, D) of that layer, turned in float32 at least; their dtype stays."""
        angles = self._angles[layer]
        if angles is None or not keys.shape[2]:
            return keys
        exact = keys.to(torch.promote_types(keys.dtype, torch.float32))
        return self._apply(exact, exact, *(angle.to(exact.dtype) for angle in angles))[1].to(keys.dtype)


class Rope:
    """The rotary embedding of a model, layer by layer, as something by which keys can be moved.

    Raises:
        UnsupportedModelError: when the model has no rotary positions, or such that keys cannot be moved.
    """

    def __init__(self, base: PreTrainedModel) -> None:
        name, config = type(base).__name__, base.config.get_text_config()
        self._rotary: Any = getattr(decoder(base), "rotary_emb", None)
        attentions: list[Any] = attention_modules(base)
        self._apply = _family_rotation(attentions[0])
        if self._rotary is None or self._apply is None:
            raise UnsupportedModelError(
                f"{name} has no rotary positions, so its keys cannot be moved; use a model that has."
            )
        if any("dynamic" in kind for kind in _kinds(getattr(config, "rope_parameters", None))):
            raise UnsupportedModelError(
                f"The rotary frequencies of {name} change with the length of the text (rope_type 'dynamic'), so the "
                "keys cannot be moved; load it with another rope_type, such as 'default' or 'yarn'."
            )
        typed = "layer_type" in inspect.signature(self._rotary.forward).parameters
        turns = _TURNS.get(config.model_type, lambda attention: getattr(attention, "use_rope", True))
        self._types = [
            (config.layer_types[i] if typed else "") if turns(attention) else None
            for i, attention in enumerate(attentions)
        ]
        self._check(name, entry_sizes(base)[0][1], base.device)

    def by(self, delta: Tensor) -> Turn:
        """The turn of T keys by ``delta`` (T,) positions, which may be negative."""
        angles = {kind: self._angles(kind, delta) for kind in {*self._types} if kind is not None}
        assert self._apply is not None
        return Turn([None if kind is None else angles[kind] for kind in self._types], self._apply)

    def _angles(self, kind: str, delta: Tensor) -> Angles:
        """Without the factor by which some ropes scale their keys: those that are to be turned are scaled already."""
        like = torch.zeros((), device=delta.device)
        angles = self._rotary(like, delta[None], **({"layer_type": kind} if kind else {}))
        cos, sin = (angles.real, angles.imag) if isinstance(angles, Tensor) else angles
        scale = (cos.square() + sin.square()).sqrt()
        return cos / scale, sin / scale

    def _check(self, name: str, dim: int, device: torch.device) -> None:
        """Turning by three positions and by four more must equal turning by seven."""
        x = torch.linspace(-1.0, 1.0, dim, device=device).expand(1, 1, 1, dim)
        three, four, seven = (self.by(torch.tensor([n], device=device)) for n in (3, 4, 7))
        for layer in range(len(self._types)):
            error = (four(layer, three(layer, x)) - seven(layer, x)).abs().max().item()
            if not error < 1e-5:
                raise UnsupportedModelError(
                    f"The rotary positions of {name} do not add up (by {error:.1g} in layer {layer}), so its keys "
                    "cannot be moved; use a model with another rope."
                )


def _family_rotation(attention: Any) -> Apply | None:
    """The family's own function, of queries and keys (B, H, T, D); None where it has none."""
    family = sys.modules[type(attention).__module__]
    rotate = getattr(family, "apply_rotary_emb", None)
    if rotate is None:
        return getattr(family, "apply_rotary_pos_emb", None)

    def apply(query: Tensor, key: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor]:
        """Llama 4's, which takes (B, T, H, D) and complex angles."""
        query, key = rotate(query.transpose(1, 2), key.transpose(1, 2), torch.complex(cos, sin))
        return query.transpose(1, 2), key.transpose(1, 2)

    return apply


def _kinds(parameters: Any) -> list[str]:
    """The types of rope in a config's parameters, which may be by type of layer."""
    tables = [parameters or {}, *(table for table in (parameters or {}).values() if isinstance(table, dict))]
    return [table["rope_type"] for table in tables if table.get("rope_type")]
