"""Rotary positions: keys in a cache move to other positions, without the text that they came from.

A rotary embedding rotates a key by an angle proportional to its position, and rotations add up: rotating a key at
position p by q - p gives the key at position q. This fails only if the frequencies depend on the length of the text.
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
Apply = Callable[..., tuple[Tensor, Tensor]]  # (queries, keys, cosines, sines) -> rotated queries and keys
_HAS_ROPE: dict[str, Callable[[Any], bool]] = {  # whether a layer of a hybrid model rotates; others say use_rope
    "cohere2": lambda attention: attention.sliding_window is not None,
    "exaone4": lambda attention: attention.sliding_window is None or attention.is_sliding,
}


class Rotation:
    """A rotation of T keys, each by its own number of positions.

    Args:
        angles: per layer; None in layers without positions.
        apply: the function of the model's family, which knows the pairs of dimensions that rotate together.
    """

    def __init__(self, angles: list[Angles | None], apply: Apply) -> None:
        self._angles, self._apply = angles, apply

    def __call__(self, layer: int, keys: Tensor) -> Tensor:
        """Rotate the keys (B, K, T, D) of a layer, in float32 at least; their dtype stays."""
        angles = self._angles[layer]
        if angles is None or not keys.shape[2]:
            return keys
        exact = keys.to(torch.promote_types(keys.dtype, torch.float32))
        return self._apply(exact, exact, *(angle.to(exact.dtype) for angle in angles))[1].to(keys.dtype)


class Rope:
    """The rotary embedding of a model: it makes the rotations that move keys.

    Raises:
        UnsupportedModelError: when the model has no rotary positions, or its rotations do not add up.
    """

    def __init__(self, base: PreTrainedModel) -> None:
        name, config = type(base).__name__, base.config.get_text_config()
        self._rotary: Any = getattr(decoder(base), "rotary_emb", None)
        attentions: list[Any] = attention_modules(base)
        apply = _family_function(attentions[0])
        if self._rotary is None or apply is None:
            raise UnsupportedModelError(
                f"{name} has no rotary positions, so its keys cannot be moved; use a model that has."
            )
        if any("dynamic" in kind for kind in _kinds(getattr(config, "rope_parameters", None))):
            raise UnsupportedModelError(
                f"The rotary frequencies of {name} change with the length of the text (rope_type 'dynamic'), so the "
                "keys cannot be moved; load it with another rope_type, such as 'default' or 'yarn'."
            )
        self._apply = apply
        typed = "layer_type" in inspect.signature(self._rotary.forward).parameters
        has_rope = _HAS_ROPE.get(config.model_type, lambda attention: getattr(attention, "use_rope", True))
        self._types = [
            (config.layer_types[i] if typed else "") if has_rope(attention) else None
            for i, attention in enumerate(attentions)
        ]
        self._check(name, entry_sizes(base.config)[0][1], base.device)

    def by(self, delta: Tensor) -> Rotation:
        """The rotation of T keys by ``delta`` (T,) positions, which may be negative."""
        angles = {kind: self._angles(kind, delta) for kind in {*self._types} if kind is not None}
        return Rotation([None if kind is None else angles[kind] for kind in self._types], self._apply)

    def _angles(self, kind: str, delta: Tensor) -> Angles:
        """The angles without the factor by which some ropes scale keys: keys in a cache are scaled already."""
        like = torch.zeros((), device=delta.device)
        angles = self._rotary(like, delta[None], **({"layer_type": kind} if kind else {}))
        cos, sin = (angles.real, angles.imag) if isinstance(angles, Tensor) else angles
        scale = (cos.square() + sin.square()).sqrt()
        return cos / scale, sin / scale

    def _check(self, name: str, dim: int, device: torch.device) -> None:
        """Refuse a rope in which rotations by three and by four positions do not give one by seven."""
        x = torch.linspace(-1.0, 1.0, dim, device=device).expand(1, 1, 1, dim)
        three, four, seven = (self.by(torch.tensor([n], device=device)) for n in (3, 4, 7))
        for layer in range(len(self._types)):
            error = (four(layer, three(layer, x)) - seven(layer, x)).abs().max().item()
            if not error < 1e-5:
                raise UnsupportedModelError(
                    f"The rotary positions of {name} do not add up (by {error:.1g} in layer {layer}), so its keys "
                    "cannot be moved; use a model with another rope."
                )


def _family_function(attention: Any) -> Apply | None:
    """The function of a family that rotates queries and keys (B, H, T, D); None if the family has none."""
    family = sys.modules[type(attention).__module__]
    rotate = getattr(family, "apply_rotary_emb", None)
    if rotate is None:
        return getattr(family, "apply_rotary_pos_emb", None)

    def apply(query: Tensor, key: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor]:
        """The function of Llama 4 takes (B, T, H, D) and complex angles."""
        query, key = rotate(query.transpose(1, 2), key.transpose(1, 2), torch.complex(cos, sin))
        return query.transpose(1, 2), key.transpose(1, 2)

    return apply


def _kinds(parameters: Any) -> list[str]:
    """The types of rope in a config's parameters; there may be one for each type of layer."""
    tables = [parameters or {}, *(table for table in (parameters or {}).values() if isinstance(table, dict))]
    return [table["rope_type"] for table in tables if table.get("rope_type")]
