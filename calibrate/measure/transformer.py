"""A transformer in plain torch, to see whether operators add up to steps: the very operators its lowering prices.

Rotary embedding, RMS norms, grouped heads, a gated feed-forward, a KV cache that is filled beforehand, logits of the
last positions, softmax and the largest. Before a step is timed everything else is read once, so that its weights come
from memory, as those of a model larger than the cache do.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from ...simulator.scenario import Phase, Step
from ...simulator.workload.hf import parse_config
from ...simulator.workload.model import Model
from ..timer import Timing, on_cpu
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
        nn, size = self._torch.nn.functional, self._size
        positions = slice(case.past, case.past + case.tokens)
        shape = (size.hidden,)
        x = nn.embedding(tokens, self._embed)
        residual = self._torch.zeros_like(x)
        for index, layer in enumerate(self._layers):
            residual = residual + x
            made = nn.linear(nn.rms_norm(residual, shape, layer.norm, 1e-6), layer.qkv)
            x = residual + nn.linear(self._attention(index, made, case, positions), layer.out)
            residual = x
            gate, up = nn.linear(nn.rms_norm(x, shape, layer.ffn_norm, 1e-6), layer.gate_up).chunk(2, dim=-1)
            x = nn.linear(nn.silu(gate) * up, layer.down)
        last = nn.rms_norm(residual + x, shape, self._norm, 1e-6)[:, -1]
        logits = nn.linear(last, self._head).clone()
        return self._torch.softmax(logits, dim=-1).argmax(dim=-1)

    def _attention(self, index: int, made: Any, case: StepCase, positions: slice) -> Any:
        size = self._size
        parts = made.view(case.sequences, case.tokens, -1, size.head_dim).transpose(1, 2)
        q, k, v = parts.split([size.heads, size.kv_heads, size.kv_heads], dim=1)
        keys, values = (cache[index, : case.sequences] for cache in (self._keys, self._values))
        keys[:, :, positions], values[:, :, positions] = self._rotated(k, positions), v
        q, end = self._rotated(q, positions), positions.stop
        attended = self._torch.nn.functional.scaled_dot_product_attention(
            q, keys[:, :, :end], values[:, :, :end], is_causal=case.phase is Phase.PREFILL, enable_gqa=True
        )
        return attended.transpose(1, 2).reshape(case.sequences, case.tokens, -1)

    def _rotated(self, x: Any, positions: slice) -> Any:
        first, second = x.chunk(2, dim=-1)
        return x * self._cos[positions] + self._torch.cat((-second, first), dim=-1) * self._sin[positions]


def time_steps(torch: Any, size: Size, cases: tuple[StepCase, ...], pool: Pool, budget_s: float) -> list[Timing]:
    """Time every case; before each step the pool is read, which leaves nothing of the weights in the caches."""
    made = Transformer(torch, size, max(case.sequences for case in cases))
    timings = []
    with torch.inference_mode():
        for case in cases:
            tokens = torch.arange(case.sequences * case.tokens).view(case.sequences, case.tokens) % size.vocab
            timings.append(on_cpu(lambda _, c=case, t=tokens: made.run(c, t), budget_s, before=pool.sweep))  # type: ignore[misc]
    return timings
