"""The rules: how the COMP entries h(1..t) of the steps become the memory Mem(t).

A rule is one class with two faces that must agree:

* parallel, for training: which memory columns a block may see (:meth:`Rule.holds`) and, if the memory is not the COMP
  columns themselves, the matrix that mixes COMP columns into memory columns (:meth:`Rule.mixing`);
* online, for inference: how the entries of a new step change the memory (:meth:`Rule.fold`).

A rule also says when a context is compressed and whether its raw text stays. A new rule is one subclass here and one
row in ``TABLE`` of ``tests/helpers.py``.

Shapes: B batch, K kv heads, T steps, N COMP tokens a step, D head dim.
"""

from __future__ import annotations

import inspect
import math
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from ccm.core.errors import ConfigError, unknown_name

RULES: dict[str, type[Rule]] = {}


class Rule(nn.Module):
    """The base class of all rules. Its own memory is the concatenation of all steps.

    Class attributes:
        name: the rule's name in settings and on the command line; a class without one of its own is not registered.
        compresses: when COMP tokens follow: after every "step", once when the "context" closes, or "never".
        keeps_text: whether the raw text stays visible after the compression.
        reversible: whether a step only adds entries, so that a rollback can take it out.
        needs_content: whether :meth:`mixing` and :meth:`write` need the hidden states at the COMP tokens.
        adapters: names of other rules whose adapters this rule can run with.
    """

    name: ClassVar[str] = ""
    compresses: ClassVar[Literal["step", "context", "never"]] = "step"
    keeps_text: ClassVar[bool] = False
    reversible: ClassVar[bool] = True
    needs_content: ClassVar[bool] = False
    adapters: ClassVar[tuple[str, ...]] = ()

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if "name" in cls.__dict__:
            RULES[cls.name] = cls

    @property
    def forgets(self) -> bool:
        """Whether nothing of the context stays, so that the model need not read it."""
        return self.compresses == "never" and not self.keeps_text

    @property
    def mixes(self) -> bool:
        """Whether :meth:`mixing` returns weights."""
        return self.needs_content or self.mixing(0, 1, 1, None) is not None

    def build(self, *, layers: int, kv_heads: int, hidden: int, n_tok: int) -> None:
        """Create the rule's own parameters for the sizes of a base model; most rules have none."""

    def compresses_after(self, step: int, steps: int) -> bool:
        """Whether COMP tokens follow step number ``step`` (from 1) of a context of ``steps`` steps."""
        return self.compresses == "step" or (self.compresses == "context" and step == steps)

    def entries_of(self, tokens: int, n_tok: int) -> int:
        """The number of entries that a step of ``tokens`` tokens writes."""
        if self.compresses == "step":
            return n_tok
        return 0 if self.forgets else tokens

    @classmethod
    def raw(cls, head: int, *, sink: bool) -> int:
        """How many first tokens stay visible beyond a layer's sliding window: those of the head, or the sink.

        Under rules that hide no text, a layer sees as much of the head as the stock model does.
        """
        stock = cls.keeps_text or cls.compresses == "never"
        return (0 if stock else head) if head else int(sink)

    def holds(self, written: Tensor, now: Tensor) -> Tensor:
        """Whether Mem(``now``) contains the memory columns of step ``written``, elementwise; steps count from 1."""
        return written <= now

    def mixing(self, layer: int, steps: int, n_tok: int, content: Tensor | None) -> Tensor | None:
        """Weights (B or 1, K or 1, T * N memory columns, T * N COMP columns); None stands for the identity.

        Memory column ``t * N + j`` is slot j of Mem(t + 1). ``content`` (B, T * N, hidden) is the input of the
        attention at the COMP tokens if :attr:`needs_content` is set, else None.
        """
        return None

    def write(self, layer: int, step: Tensor, content: Tensor | None) -> Tensor | None:
        """The weight of a new step for :meth:`fold`, broadcastable to (B, K, N, 1); None if the rule uses none.

        ``step`` (B,) int64 is the number of the step, from 1; ``content`` (B, N, hidden) is as in :meth:`mixing`.
        """
        return None

    def fold(self, memory: Tensor, fresh: Tensor, weight: Tensor | None) -> Tensor:
        """Mem(t) (B, K, M', D) from Mem(t-1) (B, K, M, D) and h(t) (B, K, N, D). The sink is never among them.

        The engine folds the mask of entries too: booleans (B, 1, M, 1), with ``weight`` None.
        """
        return torch.cat([memory, fresh], dim=2)


class Concat(Rule):
    """Mem(t) = [Mem(t-1); h(t)]: N entries more with each step. Not recurrent, on a gist adapter: gisting-online."""

    name = "concat"
    adapters = ("gist",)


class Gist(Rule):
    """The whole context is compressed once, when it closes."""

    name = "gist"
    compresses = "context"


class Full(Rule):
    """Full context: the raw entries of all steps stay."""

    name = "full"
    compresses = "never"
    keeps_text = True


class NoContext(Rule):
    """No context: no entry of any step stays."""

    name = "none"
    compresses = "never"


class PosControl(Rule):
    """The authors' control: COMP tokens end the context, and nothing is hidden."""

    name = "pos_control"
    compresses = "context"
    keeps_text = True
    adapters = ("concat", "gist")


class Merge(Rule):
    """Mem(t) = (1 - a_t) Mem(t-1) + a_t h(t) with a_t = 1/t: the mean of all steps, always N entries.

    Subclasses override :meth:`write_weight` only; both faces follow from it.
    """

    name = "merge"
    reversible = False

    def write_weight(self, layer: int, step: Tensor, content: Tensor | None) -> Tensor:
        """a_t in (0, 1], broadcastable to (B, K, steps, N), of the steps with the numbers ``step`` (B or 1, steps).

        ``content`` is (B, steps, N, hidden) or None. Callers replace the weight of step 1 by 1.
        """
        return (1.0 / step)[:, None, :, None]

    def holds(self, written: Tensor, now: Tensor) -> Tensor:
        return written == now

    def mixing(self, layer: int, steps: int, n_tok: int, content: Tensor | None) -> Tensor:
        step = torch.arange(1, steps + 1, device=None if content is None else content.device)[None]
        by_step = None if content is None else content.unflatten(1, (steps, n_tok))
        a = self.write_weight(layer, step.double() if content is None else step.to(content.dtype), by_step)
        mix = _unroll(a).expand(-1, -1, -1, -1, n_tok)  # (B, K, T, T, N)
        eye = torch.eye(n_tok, device=mix.device, dtype=mix.dtype)
        mix = mix[:, :, :, None, :, :] * eye[:, None, :]  # slot j mixes with slot j alone: (B, K, T, N, T, N)
        return mix.flatten(4, 5).flatten(2, 3)

    def write(self, layer: int, step: Tensor, content: Tensor | None) -> Tensor:
        a = self.write_weight(layer, step[:, None], None if content is None else content[:, None])
        return torch.where(step[:, None, None, None] == 1, 1.0, a)[:, :, 0, :, None]

    def fold(self, memory: Tensor, fresh: Tensor, weight: Tensor | None) -> Tensor:
        if memory.shape[2] == 0 or weight is None:
            return fresh
        exact = torch.promote_types(fresh.dtype, torch.float32)  # a running mean in half precision drifts
        return torch.lerp(memory.to(exact), fresh.to(exact), weight.to(exact)).to(fresh.dtype)


class EMA(Merge):
    """Merge with the same weight at every step after the first: an exponential moving average (paper, Table 16)."""

    name = "ema"
    adapters = ("merge",)

    def __init__(self, weight: float = 0.5) -> None:
        super().__init__()
        if not (isinstance(weight, int | float) and 0.0 < weight < 1.0):
            raise ConfigError(
                f"The weight of the rule 'ema' is {weight!r}; it must be a number strictly between 0 and 1."
            )
        self.weight = weight

    def write_weight(self, layer: int, step: Tensor, content: Tensor | None) -> Tensor:
        return torch.full_like(step, self.weight, dtype=torch.get_default_dtype())[:, None, :, None]


class Gate(Merge):
    """Merge with a learned weight a_t = sigmoid(w x + b) for each layer, K/V head and slot.

    x is the input of the attention at the COMP token: what a step says decides how much of the memory it replaces. The
    gates are trained with the adapter, in float32.

    Args:
        bias: b at the start of training; -1 keeps 73 % of the memory at every step.
    """

    name = "gate"
    needs_content = True

    def __init__(self, bias: float = -1.0) -> None:
        super().__init__()
        if isinstance(bias, bool) or not (isinstance(bias, int | float) and math.isfinite(bias)):
            raise ConfigError(f"The bias of the rule 'gate' is {bias!r}; it must be a finite number, such as -1.")
        self.initial = float(bias)

    def build(self, *, layers: int, kv_heads: int, hidden: int, n_tok: int) -> None:
        self.weight = nn.Parameter(torch.zeros(layers, kv_heads, n_tok, hidden))
        self.bias = nn.Parameter(torch.full((layers, kv_heads, n_tok), self.initial))

    def write_weight(self, layer: int, step: Tensor, content: Tensor | None) -> Tensor:
        assert content is not None
        n = content.shape[2]
        exact = torch.promote_types(content.dtype, torch.float32)
        score = torch.einsum("btnh,knh->bktn", content.to(exact), self.weight[layer, :, :n].to(exact))
        return (score + self.bias[layer, :, None, :n]).sigmoid()


def _unroll(a: Tensor) -> Tensor:
    """Write weights a (B, K, T, N) to mixing weights (B, K, T to, T from, N): a_s prod_{s<r<=t} (1 - a_r) for s <= t.

    The product is a sum of logarithms, masked before exp, since the upper triangle would overflow after a few dozen
    steps. It is in float32 at least: in half precision, a gate close to 1 would still keep a hundredth of the memory.
    """
    a = a.to(torch.promote_types(a.dtype, torch.float32), copy=True)
    a[:, :, 0] = 1.0
    keep = torch.log1p(-a[:, :, 1:].clamp(max=1.0 - torch.finfo(a.dtype).eps))  # a gate may saturate at 1
    total = torch.cat([torch.zeros_like(a[:, :, :1]), keep.cumsum(2)], dim=2)  # log prod_{2<=r<=t} (1 - a_r)
    steps = a.shape[2]
    lower = torch.ones(steps, steps, dtype=torch.bool, device=a.device).tril()[..., None]
    ratio = total[:, :, :, None] - total[:, :, None, :]
    return torch.where(lower, ratio, -torch.inf).exp() * a[:, :, None]


def rule_class(name: str) -> type[Rule]:
    """The class of the rule with that name.

    Raises:
        ConfigError: when there is none; the message lists all rules.
    """
    if name not in RULES:
        raise unknown_name("rule", name, RULES)
    return RULES[name]


def make_rule(name: str, options: dict[str, Any] | None = None) -> Rule:
    """The rule with that name, made with its options.

    Raises:
        ConfigError: when the rule or an option is unknown, or an option is missing.
    """
    rule, given = rule_class(name), options or {}
    accepted = inspect.signature(rule.__init__).parameters.values()
    known = {p.name: p.default for p in accepted if p.name not in ("self", "args", "kwargs")}
    if unknown := sorted(given.keys() - known.keys()):
        raise ConfigError(f"The rule {name!r} has no options {unknown}; it has {[*known] or 'none'}.")
    needed = {option for option, default in known.items() if default is inspect.Parameter.empty}
    if missing := sorted(needed - given.keys()):
        raise ConfigError(f"The rule {name!r} needs the options {missing}; give them as rule_options.")
    return rule(**given)
