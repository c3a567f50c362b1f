"""A transformer in plain torch, to see whether operators add up to steps: the very operators its lowering prices.

Rotary embedding, RMS norms, grouped heads, a gated feed-forward, a KV cache that is filled beforehand, logits of the
last positions, softmax and the largest. Before a step is timed everything else is read once, so that its weights come
from memory, as those of a model larger than the cache do.
"""

from __future__ import annotations

from functools import partial
from typing import Any, NamedTuple

from ...simulator.scenario import Phase, Step
from ...simulator.workload.hf import parse_config
from ...simulator.workload.model import Model
from ..timer import Timing, on_cpu
from . import pieces
from .pool import Pool


class Size(NamedTuple):
    """Widths and counts of the transformer."""

    layers: int = 4
    hidden: int = 768
    heads: int = 12
    kv_heads: int = 4
    intermediate: int = 2048
    vocab: int = 8192
    context: int = 640

    @property
    def head_dim(self) -> int:
        """Elements of a head."""
        return self.hidden // self.heads

    @property
    def name(self) -> str:
        """What records call it."""
        return f"torch-{self.layers}x{self.hidden}"


class StepCase(NamedTuple):
    """A step to predict and to time: `tokens` new ones of each sequence behind `past`."""

    phase: Phase
    sequences: int
    tokens: int
    past: int

    @property
    def step(self) -> Step:
        """The step as the simulator knows it."""
        return Step(self.phase, self.sequences, self.tokens, self.past)


CASES = (
    *(StepCase(Phase.PREFILL, b, n, 0) for b, n in ((1, 48), (1, 128), (1, 256), (2, 96), (4, 64))),
    *(StepCase(Phase.DECODE, b, 1, past) for b in (1, 2, 4, 8, 16) for past in (127, 511)),
)


def model_of(size: Size) -> Model:
    """The same transformer as facts."""
    config = {
        "model_type": "llama",
        "torch_dtype": "float32",
        "hidden_size": size.hidden,
        "num_hidden_layers": size.layers,
        "num_attention_heads": size.heads,
        "num_key_value_heads": size.kv_heads,
        "head_dim": size.head_dim,
        "intermediate_size": size.intermediate,
        "vocab_size": size.vocab,
        "max_position_embeddings": size.context,
        "tie_word_embeddings": False,
    }
    return parse_config(config, name=size.name, file=size.name)


class Layer(NamedTuple):
    """Weights of one layer."""

    norm: Any
    qkv: Any
    out: Any
    ffn_norm: Any
    gate_up: Any
    down: Any


class Transformer:
    """The transformer with random weights and caches for up to `sequences` sequences."""

    def __init__(self, torch: Any, size: Size, sequences: int, seed: int = 0) -> None:
        self._torch, self._size = torch, size
        random = torch.Generator().manual_seed(seed)

        def weight(*shape: int) -> Any:
            return torch.empty(*shape).uniform_(-0.05, 0.05, generator=random)

        hidden, wide, dim = size.hidden, size.intermediate, size.head_dim
        self._embed, self._head = weight(size.vocab, hidden), weight(size.vocab, hidden)
        self._norm = weight(hidden)
        made = (size.heads + 2 * size.kv_heads) * dim
        self._layers = [
            Layer(
                weight(hidden),
                weight(made, hidden),
                weight(hidden, size.heads * dim),
                weight(hidden),
                weight(2 * wide, hidden),
                weight(hidden, wide),
            )
            for _ in range(size.layers)
        ]
        shape = (size.layers, sequences, size.kv_heads, size.context, dim)
        self._keys, self._values = weight(*shape), weight(*shape)
        angle = torch.arange(size.context)[:, None] / 10000 ** (torch.arange(dim // 2) / (dim // 2))
        self._cos, self._sin = (torch.cat((f(angle), f(angle)), dim=-1) for f in (torch.cos, torch.sin))

    def run(self, case: StepCase, tokens: Any) -> Any:
        """One step on (sequences, new) token numbers; the next token of each sequence."""
        torch, linear = self._torch, self._torch.nn.functional.linear
        x = torch.nn.functional.embedding(tokens, self._embed)
        residual = torch.zeros_like(x)
        for index, layer in enumerate(self._layers):
            residual, normed = pieces.add_norm(torch, x, residual, layer.norm)
            x = linear(self._attention(index, linear(normed, layer.qkv), case), layer.out)
            residual, normed = pieces.add_norm(torch, x, residual, layer.ffn_norm)
            x = linear(pieces.gated(torch, linear(normed, layer.gate_up)), layer.down)
        _, last = pieces.add_norm(torch, x, residual, self._norm)
        logits = linear(last[:, -1], self._head).clone()
        return torch.softmax(logits, dim=-1).argmax(dim=-1)

    def _attention(self, index: int, made: Any, case: StepCase) -> Any:
        torch, size, end = self._torch, self._size, case.past + case.tokens
        caches = self._keys[index, : case.sequences], self._values[index, : case.sequences]
        tables, heads = (self._cos, self._sin), (size.heads, size.kv_heads)
        q = pieces.rope_and_append(torch, made, heads, tables, caches, slice(case.past, end))
        keys, values = (cache[:, :, :end] for cache in caches)
        attended = torch.nn.functional.scaled_dot_product_attention(
            q, keys, values, is_causal=case.phase is Phase.PREFILL, enable_gqa=True
        )
        return attended.transpose(1, 2).reshape(case.sequences, case.tokens, -1)


def _tokens(torch: Any, size: Size, case: StepCase) -> Any:
    return torch.arange(case.sequences * case.tokens).view(case.sequences, case.tokens) % size.vocab


def _run(made: Transformer, case: StepCase, tokens: Any, _: int) -> object:
    return made.run(case, tokens)


def time_steps(torch: Any, size: Size, cases: tuple[StepCase, ...], pool: Pool, budget_s: float) -> list[Timing]:
    """Time every case; before each step the pool is read, which leaves nothing of the weights in the caches."""
    made = Transformer(torch, size, max(case.sequences for case in cases))
    timings, threads = [], int(torch.get_num_threads())
    with torch.inference_mode():
        for case in cases:  # memory is handed out, code is loaded
            made.run(case, _tokens(torch, size, case))
        for case in cases:
            tokens = _tokens(torch, size, case)
            timings.append(on_cpu(partial(_run, made, case, tokens), budget_s, threads, pool.sweep))
    return timings
