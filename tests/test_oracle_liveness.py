"""Activation peaks against the live tensors of the `transformers` models themselves, run on the meta device.

The rule of what counts. A dispatch mode sees every operation of a forward pass and adds up the storages that came into
being in it, from their creation until Python and torch have let go of them (a finalizer on the storage); views share
their storage. Left out are what exists before the pass (parameters, buffers, input ids) and the rotary tables, which
engines compute once. Attention is one fused kernel, as SDPA's flash kernel on a GPU (the meta device alone would fall
back to the S x S formula): the model asks for an attention implementation registered here, whose body is the meta
kernel of `aten._scaled_dot_product_flash_attention`. There is no KV cache. After the model come the steps that our head
has too: logits of the wanted positions, their fp32 copy and a full sort.
"""

from __future__ import annotations

import json
import weakref
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from transformers import CONFIG_MAPPING, AttentionInterface, AutoModelForCausalLM
from transformers.integrations.moe import ExpertsInterface

from roofplan.dtypes import DType
from roofplan.hwspecs.load import load_fleet
from roofplan.simulator.liveness import peak
from roofplan.simulator.lowering import latent
from roofplan.simulator.lowering.decoder import lower
from roofplan.simulator.scenario import Numerics, Phase, Scenario, Step
from roofplan.simulator.workload import zoo
from roofplan.simulator.workload.formats import FORMATS
from roofplan.simulator.workload.hf import parse_config

TOLERANCE = 0.001  # of the peak; the README claims it for dense models and experts run as one kernel
FUSED = "one_kernel_on_meta"  # no "flash" in it: transformers would look for the flash-attn package


@dataclass(frozen=True)
class Case:
    """A bundled model, its depth cut, and one prefill: `sequences` of `new_tokens`, logits for the last `logits`."""

    name: str
    new_tokens: int = 4096
    logits: int = 1
    sequences: int = 1
    layers: int = 3

    def __str__(self) -> str:
        return f"{self.name}-{self.sequences}x{self.new_tokens}-logits{self.logits}-layers{self.layers}"

    def config(self) -> dict[str, Any]:
        """The model's config.json with `layers` layers."""
        entries = map(json.loads, zoo.ZOO.read_text(encoding="utf-8").splitlines())
        config = next(e["config"] for e in entries if e["name"] == self.name)
        return {**config, "num_hidden_layers": self.layers}


def one_kernel_attention(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float | None = None,
    **_: Any,
) -> tuple[torch.Tensor, None]:
    assert attention_mask is None
    if query.shape[3] != value.shape[3]:  # that kernel knows one width: of latent attention the output alone is made
        return query.new_empty(query.shape[0], query.shape[2], query.shape[1], value.shape[3]), None
    out = torch.ops.aten._scaled_dot_product_flash_attention(query, key, value, 0.0, True, scale=scaling)[0]
    return out.transpose(1, 2).contiguous(), None


def gate_in_one_kernel(gate_up: torch.Tensor) -> torch.Tensor:
    """Memory of a fused SwiGLU: one output, no intermediate (values do not exist on the meta device)."""
    return torch.nn.functional.glu(gate_up)


def one_kernel_experts(
    self: Any, hidden_states: torch.Tensor, top_k_index: torch.Tensor, top_k_weights: torch.Tensor
) -> torch.Tensor:
    """`grouped_mm` of transformers with what serving kernels fuse: the gate, and weighting plus sum over experts."""
    order = torch.sort(top_k_index.reshape(-1)).indices
    tokens = order // top_k_index.size(-1)
    offsets = torch.cumsum(torch.histc(top_k_index.int(), bins=self.num_experts), dim=0, dtype=torch.int32)
    gathered = hidden_states[tokens]
    gate_up = torch.nn.functional.grouped_mm(gathered, self.gate_up_proj.transpose(-2, -1), offs=offsets)
    gated = gate_in_one_kernel(gate_up)
    del gate_up
    out = torch.nn.functional.grouped_mm(gated, self.down_proj.transpose(-2, -1), offs=offsets)
    del gated
    out.mul_(top_k_weights.reshape(-1)[order].to(out.dtype).unsqueeze(-1))
    return torch.zeros_like(hidden_states).index_add_(0, tokens, out)


@pytest.fixture(autouse=True)
def _implementations() -> Iterator[None]:
    AttentionInterface.register(FUSED, one_kernel_attention)
    ExpertsInterface.register(FUSED, one_kernel_experts)
    yield
    AttentionInterface._global_mapping.pop(FUSED)
    ExpertsInterface._global_mapping.pop(FUSED)


class LiveBytes(TorchDispatchMode):
    """Bytes of live storages and their peak. Storages made while `paused` are followed, but weigh nothing."""

    def __init__(self, existing: list[torch.Tensor]) -> None:
        super().__init__()
        self.existing = {t.untyped_storage()._cdata for t in existing}
        self.sizes: dict[int, int] = {}
        self.live = self.peak = 0
        self.paused = False

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(out):
            if isinstance(tensor, torch.Tensor):
                self._follow(tensor.untyped_storage())
        self.peak = max(self.peak, self.live)
        return out

    def _follow(self, storage: torch.UntypedStorage) -> None:
        address = storage._cdata
        if address not in self.existing and address not in self.sizes:
            self.sizes[address] = 0 if self.paused else storage.nbytes()
            self.live += self.sizes[address]
            weakref.finalize(storage, self._release, address)

    def _release(self, address: int) -> None:
        self.live -= self.sizes.pop(address)


def torch_peak(case: Case, experts: str = FUSED, fuse_gate: bool = False) -> int:
    """Peak of live bytes of the transformers model and its sampling on the meta device."""
    config = case.config()
    skipped = ("model_type", "quantization_config")
    settings = CONFIG_MAPPING[config["model_type"]](**{k: v for k, v in config.items() if k not in skipped})
    options = {"experts_implementation": experts} if "num_experts_per_tok" in config else {}
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(
            settings, attn_implementation=FUSED, dtype=torch.bfloat16, **options
        ).eval()
        ids = torch.zeros(case.sequences, case.new_tokens, dtype=torch.long)
    for module in model.modules():
        if fuse_gate and hasattr(module, "_apply_gate"):
            module._apply_gate = gate_in_one_kernel
    mode = LiveBytes([*model.parameters(), *model.buffers(), ids])
    model.model.rotary_emb.register_forward_pre_hook(lambda *_: setattr(mode, "paused", True))
    model.model.rotary_emb.register_forward_hook(lambda *_: setattr(mode, "paused", False))
    with torch.no_grad(), mode:
        logits = model(ids, use_cache=False, logits_to_keep=case.logits).logits.float()
        ordered = torch.sort(logits, descending=True)
        del logits, ordered
    assert mode.live == 0  # nothing was missed or counted twice
    return mode.peak


def our_peak(case: Case) -> float:
    """Peak of the lowered program."""
    model = parse_config(case.config(), name=case.name, file="config.json")
    numerics = Numerics(FORMATS["bf16"], DType.BF16)
    scenario = Scenario(model, load_fleet("h200"), case.sequences, case.new_tokens, case.new_tokens, numerics)
    step = Step(Phase.PREFILL, case.sequences, case.new_tokens, 0, logit_tokens=case.sequences * case.logits)
    return float(peak(lower(scenario, step)).bytes)


DENSE = (
    Case("llama-3.1-8b"),  # the MLP is the peak
    Case("llama-3.1-8b", sequences=8, new_tokens=512),
    Case("llama-3.1-70b"),
    Case("mistral-7b-v0.3"),
    Case("qwen2.5-7b"),
    Case("qwen3-8b"),
    Case("qwen3-32b"),
    Case("llama-3.1-8b", logits=4096),  # logits, their fp32 copy and the sort are the peak
    Case("mistral-7b-v0.3", logits=4096),
    Case("llama-3.1-8b", logits=256),
    Case("qwen3-8b", sequences=256, new_tokens=1),  # what a decode step of 256 users makes of activations
)


@pytest.mark.parametrize("case", DENSE, ids=str)
def test_dense_peak(case: Case) -> None:
    assert our_peak(case) == pytest.approx(torch_peak(case), rel=TOLERANCE)


@pytest.mark.parametrize("name", ["mixtral-8x7b", "qwen3-30b-a3b"])
def test_expert_peak_with_fused_gate_and_combine(name: str) -> None:
    assert our_peak(Case(name)) == pytest.approx(torch_peak(Case(name)), rel=TOLERANCE)


def test_expert_peak_of_transformers_with_fused_gate() -> None:
    """Wide experts peak at the gate, so transformers' own combine does not matter."""
    case = Case("mixtral-8x7b")
    assert our_peak(case) == pytest.approx(torch_peak(case, "grouped_mm", fuse_gate=True), rel=TOLERANCE)


@pytest.mark.parametrize("new_tokens", [512, 4096])
def test_latent_attention_peak(new_tokens: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without an engine's memory for earlier chunks: DeepSeek's dense layers, whose peak is the attention."""
    monkeypatch.setattr(latent, "CONTEXT_CHUNK_TOKENS", 0)
    case = Case("deepseek-v3", new_tokens=new_tokens, layers=3)
    assert our_peak(case) == pytest.approx(torch_peak(case), rel=TOLERANCE)


def test_shared_experts_run_first_and_so_need_a_little_more(monkeypatch: pytest.MonkeyPatch) -> None:
    """Engines hold the shared experts' product while the routed ones run; transformers runs them last."""
    monkeypatch.setattr(latent, "CONTEXT_CHUNK_TOKENS", 0)
    case = Case("deepseek-v3", layers=5)
    product = 4096 * 7168 * 2
    assert our_peak(case) - product == pytest.approx(torch_peak(case), rel=0.005)


@pytest.mark.parametrize("name", ["llama-3.1-8b", "qwen3-32b", "mixtral-8x7b"])
def test_depth_does_not_change_the_peak(name: str) -> None:
    ours = {our_peak(Case(name, layers=layers)) for layers in (2, 3, 5, 32)}
    theirs = {torch_peak(Case(name, layers=layers)) for layers in (2, 3, 5)}
    assert len(ours) == len(theirs) == 1


def test_single_layer_peak() -> None:
    """The only layer's input is the embedding itself."""
    case = Case("llama-3.1-8b", layers=1)
    assert our_peak(case) == pytest.approx(torch_peak(case), rel=TOLERANCE)
