"""Decoding in batches: from rows of token ids to the token ids of their answers, the most probable ones or sampled ones.

    prefix -> keys and values, computed once and kept
    rows   -> read side by side, each seeing the prefix and itself
    steps  -> one token a row and step; rows that have ended leave the batch

Two passes can be stepped through: the fast one, with caches of its own that grow in place and are shared by the heads of a
group, and the one of transformers, with its cache. Logits are computed in the compute dtype, and those `NEAR` the highest once
more in float32: at the size of logits bfloat16 has steps of 1/8, which would tie tokens.

Rows of one batch are padded on the left, so that every row's next token stands in the same column; what stands in the
padding is seen by nobody.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from transformers import DynamicCache

from tunesmith.models.elementwise import gate, rms_norm, rotate
from tunesmith.models.fast_llama import FastLlama
from tunesmith.models.joined import JoinedProduct, write

NEAR = 2.0**-6
"""Distance from the highest logit, relative to its size plus one, within which logits are computed again: two steps of bfloat16."""
_PREFILL_TOKENS = 4096
"""Most tokens of rows that are read in one pass: bounds the memory of their attention."""
_LEAVE = 0.75
"""Rows that have ended leave the batch when at most this share still goes on: leaving copies the caches of the others."""


class Rule(Protocol):
    """What answers may say: the tokens that may come next."""

    def forbid(self, rows: Sequence[int], logits: Tensor) -> None:
        """Set the logits, shape (n, n_vocabulary), of what the given rows may not say next to minus infinity, in place."""

    def take(self, row: int, token: int) -> None:
        """Hear what a row said."""


class Running(Protocol):
    """Rows that are being written.

    Attributes:
        states: shape (n, D). What the head reads for the next token of each row.
    """

    states: Tensor

    def step(self, tokens: Tensor) -> None:
        """Read one more token a row, shape (n,)."""

    def keep(self, rows: Tensor) -> None:
        """Go on with these rows alone, by their places, shape (m,); a place that is named twice goes on as two rows."""


class Steps(Protocol):
    """A pass that can be stepped through."""

    head: Tensor

    def begin(self, rows: Sequence[Sequence[int]], n_new: int) -> Running:
        """Read rows after the prefix, to which up to `n_new` tokens each will be added."""


def greedy(steps: Steps, rows: Sequence[Sequence[int]], *, stop: int, n_new: int, rule: Rule | None = None) -> list[list[int]]:
    """Return the token ids that each row is answered with, the stop token last where the answer ended by itself.

    Args:
        steps: The pass.
        rows: Per row, the token ids after the prefix; at least one.
        stop: Token that ends an answer.
        n_new: Most tokens of an answer.
        rule: What answers may say; anything when None.
    """
    return _decode(steps.begin(rows, n_new), len(rows), lambda states, going, _: _likeliest(steps.head, states, going, rule), stop, n_new, rule)


def sample(
    steps: Steps, rows: Sequence[Sequence[int]], draws: NDArray[np.float64], *, temperature: float, stop: int, n_new: int, rule: Rule | None = None
) -> list[list[list[int]]]:
    """Return k sampled answers to each row. Rows are read once, whatever k is.

    Args:
        steps: The pass.
        rows: As in `greedy`; n of them.
        draws: shape (n, k, n_new). What decides each token, uniform in [0, 1): the token at that place of the cumulated probabilities.
        temperature: What logits are divided by.
        stop: As in `greedy`.
        n_new: As in `greedy`.
        rule: As in `greedy`, of n * k rows, the k of one row side by side.
    """
    n, k, _ = draws.shape
    uniform = torch.from_numpy(draws).flatten(0, 1)
    running = steps.begin(rows, n_new)
    running.keep(torch.arange(n).repeat_interleave(k))

    def choose(states: Tensor, going: Sequence[int], step: int) -> Tensor:
        logits = _logits(steps.head, states, going, rule)
        cumulated = (logits.float() / temperature).softmax(1).double().cumsum(1).cpu()
        return torch.searchsorted(cumulated, uniform[list(going), step, None] * cumulated[:, -1:], right=True)[:, 0]

    answers = _decode(running, n * k, choose, stop, n_new, rule)
    return [answers[at : at + k] for at in range(0, n * k, k)]


def _decode(running: Running, n_rows: int, choose: Callable[[Tensor, Sequence[int], int], Tensor], stop: int, n_new: int, rule: Rule | None) -> list[list[int]]:
    """Write answers; `choose` takes states, their rows and the step's number, and returns the next token of each, shape (n,), on the CPU."""
    answers: list[list[int]] = [[] for _ in range(n_rows)]
    going = list(range(n_rows))
    for step in range(n_new):
        tokens = choose(running.states, going, step)
        for row, token in zip(going, tokens.tolist(), strict=True):
            if not _has_ended(answers[row], stop, n_new):
                answers[row].append(token)
                if rule:
                    rule.take(row, token)
        places = [place for place, row in enumerate(going) if not _has_ended(answers[row], stop, n_new)]
        if not places:
            break
        if len(places) <= _LEAVE * len(going):
            chosen = torch.tensor(places)
            running.keep(chosen)
            going, tokens = [going[place] for place in places], tokens[chosen]
        running.step(tokens)
    return answers


def _has_ended(answer: list[int], stop: int, n_new: int) -> bool:
    return len(answer) == n_new or (bool(answer) and answer[-1] == stop)


def _logits(head: Tensor, states: Tensor, rows: Sequence[int], rule: Rule | None) -> Tensor:
    """Return what the head says, shape (n, n_vocabulary), in its precision; minus infinity for what the rule forbids."""
    logits = states.to(head.dtype) @ head.t()
    if rule:
        rule.forbid(rows, logits)
    return logits


def _likeliest(head: Tensor, states: Tensor, rows: Sequence[int], rule: Rule | None) -> Tensor:
    """Return the most probable token of each row that its rule allows, shape (n,), on the CPU."""
    logits = _logits(head, states, rows, rule)
    highest = logits.amax(1, keepdim=True)
    place, token = (logits >= highest - (highest.abs() + 1) * NEAR).nonzero(as_tuple=True)
    exact = (states[place].float() * head[token].float()).sum(1)
    order = exact.argsort(descending=True, stable=True).cpu()
    first = np.unique(place.cpu()[order].numpy(), return_index=True)[1]
    return token.cpu()[order][first]


class FastSteps:
    """Steps of the fast pass.

    Args:
        forward: The pass.
        head: Weights of the language-model head in the compute dtype, shape (n_vocabulary, D).
        prefix: Token ids that every row starts with; may be empty.
    """

    def __init__(self, forward: FastLlama, head: Tensor, prefix: Sequence[int]) -> None:
        self.forward, self.head = forward, head
        write([product for weights in forward._layers for product in weights.products])
        # Of the prefix: shape (L, K, n_prefix, d).
        self.keys = self.values = head.new_empty(len(forward._layers), forward._n_kv_heads, 0, forward._head_dim)
        if prefix:
            read = self.begin([prefix], 0)
            self.keys, self.values = read.keys[:, 0], read.values[:, 0]

    @torch.no_grad()
    def begin(self, rows: Sequence[Sequence[int]], n_new: int) -> _FastRows:
        """Read rows after the prefix."""
        return _FastRows(self, rows, n_new)


class _FastRows:
    """Rows that the fast pass writes.

    Attributes:
        keys, values: shape (L, n, K, capacity, d). Of each row's own tokens; `_width` columns are filled.
        states: shape (n, D).
    """

    def __init__(self, steps: FastSteps, rows: Sequence[Sequence[int]], n_new: int) -> None:
        forward = steps.forward
        self._steps, self._width = steps, max(map(len, rows))
        n, dtype = len(rows), forward.dtype
        shape = (len(forward._layers), n, forward._n_kv_heads, self._width + n_new, forward._head_dim)
        device = forward.device
        self.keys, self.values = (torch.empty(shape, dtype=dtype, device=device) for _ in range(2))
        input_ids = torch.tensor([[0] * (self._width - len(row)) + list(row) for row in rows], device=device)
        self._padding = torch.tensor([self._width - len(row) for row in rows], device=device)
        # Added to scores: what stands in a row's padding is not seen.
        columns, unseen = torch.arange(shape[3], device=device), torch.finfo(dtype).min / 2
        self._mask = torch.zeros(n, shape[3], dtype=dtype, device=device).masked_fill_(columns < self._padding[:, None], unseen)
        self.states = torch.empty(n, forward.width, device=device)
        causal = torch.full((self._width, self._width), unseen, dtype=dtype, device=device).triu_(1)
        size = max(1, _PREFILL_TOKENS // self._width)
        for at in (slice(start, min(n, start + size)) for start in range(0, n, size)):
            mask = (self._mask[at, None, : self._width] + causal).clamp_(min=unseen)
            hidden = self._through(input_ids[at], at, slice(0, self._width), mask)
            self.states[at] = hidden.view(at.stop - at.start, self._width, -1)[:, -1].float()
        self.states = self._normed(self.states)

    @torch.no_grad()
    def step(self, tokens: Tensor) -> None:
        """Read one more token a row."""
        at = self._width
        self._width += 1
        hidden = self._through(tokens[:, None].to(self.states.device), slice(None), slice(at, at + 1), self._mask[:, None, : at + 1])
        self.states = self._normed(hidden.float())

    def keep(self, rows: Tensor) -> None:
        """Go on with these rows alone."""
        filled, rows = slice(0, self._width), rows.to(self.states.device)
        for name in ("keys", "values"):
            old = getattr(self, name)
            new = old.new_empty(old.shape[0], len(rows), *old.shape[2:])
            new[:, :, :, filled] = old[:, rows][:, :, :, filled]
            setattr(self, name, new)
        self._padding, self._mask, self.states = self._padding[rows], self._mask[rows], self.states[rows]

    def _normed(self, hidden: Tensor) -> Tensor:
        forward = self._steps.forward
        return rms_norm(hidden, forward._norm, forward._epsilon)[0]

    def _through(self, input_ids: Tensor, rows: slice, columns: slice, mask: Tensor) -> Tensor:
        """Read tokens of rows, shape (n, w), that stand in the given columns; return the last layer's output, shape (n * w, D)."""
        forward = self._steps.forward
        epsilon, n_kv, group, d = forward._epsilon, forward._n_kv_heads, forward._group, forward._head_dim
        n_prefix = self._steps.keys.shape[2]
        places = torch.arange(columns.start, columns.stop, device=forward.device) - self._padding[rows, None]
        angles = torch.outer((places.clamp_(min=0) + n_prefix).flatten().float(), forward._frequencies)
        cos, sin = angles.cos().to(forward.dtype), angles.sin().to(forward.dtype)
        x = forward._embedding[input_ids.flatten()]
        n_q, n_k = n_kv * group * d, n_kv * d
        for layer, weights in enumerate(forward._layers):
            mixed = _product(weights.qkv, rms_norm(x, weights.norm1, epsilon)[0])
            q = rotate(mixed[:, :n_q].view(-1, n_kv, group, d), cos[:, None, None], sin[:, None, None])
            k = rotate(mixed[:, n_q : n_q + n_k].view(-1, n_kv, d), cos[:, None], sin[:, None])
            x = _product(weights.o, self._attend(layer, rows, columns, q, k, mixed[:, n_q + n_k :].reshape(-1, n_kv, d), mask), x)
            inner = x.new_empty(len(x), weights.down.n_in)
            gate(_product(weights.gate_up, rms_norm(x, weights.norm2, epsilon)[0]), inner)
            x = _product(weights.down, inner, x)
        return x

    def _attend(self, layer: int, rows: slice, columns: slice, q: Tensor, k: Tensor, v: Tensor, mask: Tensor) -> Tensor:
        """Let tokens attend to the prefix and to their row so far.

        Args:
            layer: Number of the layer.
            rows: Which rows the tokens belong to.
            columns: Where they stand in each.
            q: shape (n * w, K, group, d), rotated.
            k: shape (n * w, K, d), rotated.
            v: shape (n * w, K, d).
            mask: shape (n, 1 or w, columns.stop). Added to the scores.

        Returns:
            shape (n * w, H d).
        """
        n_kv, group, d = q.shape[1:]
        w = columns.stop - columns.start
        keys, values = self.keys[layer, rows], self.values[layer, rows]
        n = len(keys)
        keys[:, :, columns], values[:, :, columns] = k.view(n, w, n_kv, d).transpose(1, 2), v.view(n, w, n_kv, d).transpose(1, 2)
        keys, values = keys[:, :, : columns.stop], values[:, :, : columns.stop]
        prefix_keys, prefix_values = self._steps.keys[layer], self._steps.values[layer]
        # The heads of a group share keys: they stand below each other as more queries, and no key is copied.
        queries = q.view(n, w, n_kv, group, d).permute(0, 2, 3, 1, 4).mul(d**-0.5)
        own = (queries.reshape(n, n_kv, group * w, d) @ keys.transpose(2, 3)).view(n, n_kv, group, w, -1)
        own += mask[:, None, None]
        # All rows ask the prefix in one product a key-value head.
        shared = torch.bmm(queries.permute(1, 0, 2, 3, 4).reshape(n_kv, n * group * w, d), prefix_keys.transpose(1, 2))
        shared = shared.view(n_kv, n, group, w, -1).transpose(0, 1)
        weights = torch.cat([shared, own], dim=-1).softmax(-1)
        n_prefix = prefix_keys.shape[1]
        to_prefix = weights[..., :n_prefix].transpose(0, 1).reshape(n_kv, n * group * w, n_prefix)
        attended = torch.bmm(to_prefix, prefix_values).view(n_kv, n, group, w, d).transpose(0, 1)
        attended = attended + (weights[..., n_prefix:].reshape(n, n_kv, group * w, -1) @ values).view(n, n_kv, group, w, d)
        return attended.permute(0, 3, 1, 2, 4).reshape(n * w, n_kv * group * d)


def _product(product: JoinedProduct, x: Tensor, residual: Tensor | None = None) -> Tensor:
    """Return a product of x, shape (N, n_in), plus a residual where there is one: shape (N, n_out)."""
    given = torch.cat([x, x @ product.a.t()], dim=1) if product.rank else x
    return given @ product.joined.t() if residual is None else torch.addmm(residual, given, product.joined.t())


class PlainSteps:
    """Steps of the pass of transformers.

    Args:
        model: A transformers model, or PEFT's around one that may have a prefix of virtual tokens.
        dtype: What matrix products are computed in: weights of another precision are cast for them. None leaves them as they are.
        prefix: Token ids that every row starts with; may be empty.
    """

    def __init__(self, model: Any, dtype: torch.dtype | None, prefix: Sequence[int]) -> None:
        self._model = model.get_base_model() if hasattr(model, "get_base_model") else model
        self.dtype, self.device = dtype, self._model.device
        self.head: Tensor = self._model.lm_head.weight.detach()
        is_virtual = getattr(getattr(model, "active_peft_config", None), "is_prompt_learning", False)
        with torch.no_grad():
            self.cache = model.get_prompt(batch_size=1) if is_virtual else DynamicCache(config=self._model.config)
        if prefix:
            seen = torch.ones(1, self.cache.get_seq_length() + len(prefix), dtype=torch.long)
            self.read(torch.tensor([list(prefix)]), seen, self.cache)

    @torch.no_grad()
    def read(self, input_ids: Tensor, seen: Tensor, cache: Any) -> Tensor:
        """Read tokens into a cache and return what the head reads at the last of each row.

        Args:
            input_ids: shape (n, w).
            seen: shape (n, tokens in the cache + w). 1 where a token stands, 0 in the padding.
            cache: Of n rows; grows.

        Returns:
            shape (n, D), float32.
        """
        positions = (seen.cumsum(1)[:, -input_ids.shape[1] :] - 1).clamp_(min=0)
        input_ids, seen, positions = (each.to(self.device) for each in (input_ids, seen, positions))
        with torch.autocast(self.device.type, self.dtype, enabled=self.dtype is not None):
            made = self._model.model(input_ids=input_ids, attention_mask=seen, position_ids=positions, cache=cache, use_cache=True)
        last: Tensor = made.last_hidden_state[:, -1].float()
        return last

    def begin(self, rows: Sequence[Sequence[int]], n_new: int) -> _PlainRows:
        """Read rows after the prefix; the cache grows as it needs to."""
        return _PlainRows(self, rows)


class _PlainRows:
    """Rows that the pass of transformers writes.

    Attributes:
        states: shape (n, D).
    """

    def __init__(self, steps: PlainSteps, rows: Sequence[Sequence[int]]) -> None:
        self._steps, self._cache = steps, copy.deepcopy(steps.cache)
        self._cache.batch_repeat_interleave(len(rows))
        width = max(map(len, rows))
        padding = torch.tensor([width - len(row) for row in rows])
        own = (torch.arange(width) >= padding[:, None]).long()
        self._seen = torch.cat([torch.ones(len(rows), steps.cache.get_seq_length(), dtype=torch.long), own], dim=1)
        self.states = steps.read(torch.tensor([[0] * (width - len(row)) + list(row) for row in rows]), self._seen, self._cache)

    def step(self, tokens: Tensor) -> None:
        """Read one more token a row."""
        self._seen = torch.cat([self._seen, torch.ones(len(tokens), 1, dtype=torch.long)], dim=1)
        self.states = self._steps.read(tokens[:, None], self._seen, self._cache)

    def keep(self, rows: Tensor) -> None:
        """Go on with these rows alone."""
        self._cache.batch_select_indices(rows.to(self._steps.device))
        self._seen, self.states = self._seen[rows], self.states[rows]
