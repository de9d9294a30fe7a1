#!/usr/bin/env python3
"""Writes the table of models.md: which way each family of models takes, found on tiny random ones.

    python docs/reference/models.py            writes it
    python docs/reference/models.py --check    exits with 1 if it is not up to date
    python docs/reference/models.py NAME ...   prints what is found for these families, and why

A tiny model of each family is built from its configuration class in transformers, without weights
to download, and tried with the functions that jobs use.
"""

import argparse
import copy
import sys
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "platform")]

import torch  # noqa: E402
import transformers as hf  # noqa: E402

from cluster.errors import UserError  # noqa: E402
from cprec.config.sections.model import ModelSettings  # noqa: E402
from cprec.config.sections.pretraining import TrainSettings  # noqa: E402
from cprec.evaluation.candidate_rows import PassKind  # noqa: E402
from cprec.evaluation.scoring_check import choose_decoding, choose_scoring  # noqa: E402
from cprec.model import adapter  # noqa: E402
from cprec.model.libraries import silence_libraries  # noqa: E402
from cprec.train.forward import supervised_logits  # noqa: E402
from cprec.train.pack_check import choose_packing  # noqa: E402

PAGE = HERE / "models.md"
BEGIN, END = "<!-- families -->", "<!-- end -->"
MAX_TOKENS = 256
SCORING = {
    PassKind.PACKED: "packed",
    PassKind.MASKED: "one pass",
    PassKind.ALONE: "each alone",
}

IDS: dict[str, Any] = {"vocab_size": 160, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
SHAPE: dict[str, Any] = {
    **IDS,
    "hidden_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 96,
    "max_position_embeddings": 1024,
}
GROUPED: dict[str, Any] = {**SHAPE, "num_key_value_heads": 2}
HEADS: dict[str, Any] = {**GROUPED, "head_dim": 16}
WINDOW: dict[str, Any] = {**HEADS, "sliding_window": 32}
SMALL: dict[str, Any] = {
    **IDS,
    "hidden_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
}
LINEAR: dict[str, Any] = {
    **HEADS,
    "layer_types": ["linear_attention", "full_attention"],
    "linear_num_value_heads": 4,
    "linear_num_key_heads": 2,
    "linear_key_head_dim": 16,
    "linear_value_head_dim": 16,
}
EXPERTS: dict[str, Any] = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32}
MAMBA: dict[str, Any] = {
    "mamba_n_heads": 8,
    "mamba_d_head": 16,
    "mamba_d_state": 8,
    "mamba_n_groups": 1,
    "mamba_chunk_size": 16,
}
ALTERNATING = ["sliding_attention", "full_attention"]

FAMILIES: Mapping[str, Callable[[], Any]] = {
    "Llama": lambda: hf.LlamaConfig(**GROUPED),
    "Mistral": lambda: hf.MistralConfig(**WINDOW),
    "Mixtral": lambda: hf.MixtralConfig(**GROUPED, num_local_experts=4),
    "Qwen2": lambda: hf.Qwen2Config(**GROUPED),
    "Qwen2, sliding": lambda: hf.Qwen2Config(
        **GROUPED, use_sliding_window=True, sliding_window=32, max_window_layers=1
    ),
    "Qwen3": lambda: hf.Qwen3Config(**HEADS),
    "Qwen3-MoE": lambda: hf.Qwen3MoeConfig(**HEADS, **EXPERTS),
    "Qwen3-Next": lambda: hf.Qwen3NextConfig(**LINEAR, num_experts=0, mlp_only_layers=[0, 1]),
    "Qwen3.5": lambda: hf.Qwen3_5TextConfig(**LINEAR),
    "Gemma": lambda: hf.GemmaConfig(**HEADS),
    "Gemma 2": lambda: hf.Gemma2Config(**WINDOW),
    "Gemma 3": lambda: hf.Gemma3TextConfig(**WINDOW, layer_types=ALTERNATING),
    "Phi": lambda: hf.PhiConfig(**SHAPE),
    "Phi-3": lambda: hf.Phi3Config(**{**GROUPED, "sliding_window": 32}),
    "OLMo 2": lambda: hf.Olmo2Config(**GROUPED),
    "OLMo 3": lambda: hf.Olmo3Config(**WINDOW, layer_types=ALTERNATING),
    "Granite": lambda: hf.GraniteConfig(**GROUPED),
    "Granite-MoE-hybrid": lambda: hf.GraniteMoeHybridConfig(
        **GROUPED,
        **MAMBA,
        layer_types=["mamba", "attention"],
        num_local_experts=4,
        num_experts_per_tok=2,
        shared_intermediate_size=32,
    ),
    "Cohere": lambda: hf.CohereConfig(**GROUPED),
    "Cohere 2": lambda: hf.Cohere2Config(
        **{**GROUPED, "sliding_window": 32, "layer_types": ALTERNATING}
    ),
    "SmolLM3": lambda: hf.SmolLM3Config(**GROUPED),
    "EXAONE 4": lambda: hf.Exaone4Config(**GROUPED, sliding_window=32, layer_types=ALTERNATING),
    "ERNIE 4.5": lambda: hf.Ernie4_5Config(**HEADS),
    "Llama 4": lambda: hf.Llama4TextConfig(
        **HEADS,
        num_local_experts=4,
        intermediate_size_mlp=96,
        attention_chunk_size=32,
        no_rope_layers=[1, 0],
        layer_types=["chunked_attention", "full_attention"],
    ),
    "gpt-oss": lambda: hf.GptOssConfig(
        **WINDOW, num_local_experts=4, num_experts_per_tok=2, layer_types=ALTERNATING
    ),
    "DeepSeek-V3": lambda: hf.DeepseekV3Config(
        **{**SHAPE, "num_key_value_heads": 4},
        n_routed_experts=4,
        num_experts_per_tok=2,
        n_group=1,
        topk_group=1,
        moe_intermediate_size=32,
        q_lora_rank=16,
        kv_lora_rank=16,
        qk_rope_head_dim=8,
        qk_nope_head_dim=8,
        v_head_dim=16,
        first_k_dense_replace=1,
    ),
    "JetMoe": lambda: hf.JetMoeConfig(
        **IDS,
        hidden_size=64,
        num_hidden_layers=2,
        num_key_value_heads=2,
        kv_channels=16,
        intermediate_size=96,
        num_local_experts=4,
        num_experts_per_tok=2,
        max_position_embeddings=1024,
    ),
    "GPT-2": lambda: hf.GPT2Config(**IDS, n_embd=64, n_layer=2, n_head=4),
    "GPT-Neo": lambda: hf.GPTNeoConfig(
        **IDS,
        hidden_size=64,
        num_layers=2,
        num_heads=4,
        attention_types=[[["global", "local"], 1]],
        window_size=32,
        max_position_embeddings=1024,
    ),
    "GPT-J": lambda: hf.GPTJConfig(
        **IDS, n_embd=64, n_layer=2, n_head=4, rotary_dim=8, n_positions=1024
    ),
    "GPT-NeoX": lambda: hf.GPTNeoXConfig(**SHAPE),
    "OPT": lambda: hf.OPTConfig(
        **SMALL, ffn_dim=96, max_position_embeddings=1024, word_embed_proj_dim=64
    ),
    "XGLM": lambda: hf.XGLMConfig(
        **IDS,
        d_model=64,
        num_layers=2,
        attention_heads=4,
        ffn_dim=96,
        max_position_embeddings=1024,
    ),
    "StableLM": lambda: hf.StableLmConfig(**GROUPED),
    "Nemotron": lambda: hf.NemotronConfig(**GROUPED),
    "Falcon": lambda: hf.FalconConfig(**SMALL, alibi=False),
    "Falcon, ALiBi": lambda: hf.FalconConfig(**SMALL, alibi=True),
    "BLOOM": lambda: hf.BloomConfig(**IDS, hidden_size=64, n_layer=2, n_head=4),
    "MPT": lambda: hf.MptConfig(**IDS, d_model=64, n_layers=2, n_heads=4, max_seq_len=1024),
    "MiniMax": lambda: hf.MiniMaxConfig(
        **HEADS,
        num_local_experts=4,
        layer_types=["linear_attention", "full_attention"],
        block_size=16,
    ),
    "Mamba": lambda: hf.MambaConfig(**IDS, hidden_size=64, num_hidden_layers=2, state_size=8),
    "Mamba 2": lambda: hf.Mamba2Config(
        **IDS,
        hidden_size=64,
        num_hidden_layers=2,
        state_size=8,
        num_heads=8,
        head_dim=16,
        n_groups=1,
        chunk_size=16,
    ),
    "RWKV": lambda: hf.RwkvConfig(
        **IDS,
        hidden_size=64,
        attention_hidden_size=64,
        num_hidden_layers=2,
        intermediate_size=96,
        context_length=1024,
    ),
    "xLSTM": lambda: hf.xLSTMConfig(
        **IDS, hidden_size=64, num_hidden_layers=2, num_heads=4, chunk_size=16
    ),
    "RecurrentGemma": lambda: hf.RecurrentGemmaConfig(
        **IDS,
        hidden_size=64,
        num_hidden_layers=3,
        num_attention_heads=4,
        intermediate_size=96,
        attention_window_size=32,
        lru_width=64,
    ),
    "Jamba": lambda: hf.JambaConfig(
        **GROUPED,
        num_experts=2,
        attn_layer_period=2,
        attn_layer_offset=1,
        mamba_d_state=8,
        use_mamba_kernels=False,
    ),
    "Zamba 2": lambda: hf.Zamba2Config(
        **{**GROUPED, "num_hidden_layers": 3},
        layers_block_type=["mamba", "hybrid", "mamba"],
        hybrid_layer_ids=[1],
        mamba_d_state=8,
        mamba_headdim=16,
        n_mamba_heads=8,
        chunk_size=16,
        num_mem_blocks=1,
        use_mamba_kernels=False,
    ),
    "Bamba": lambda: hf.BambaConfig(**GROUPED, **MAMBA, attn_layer_indices=[1]),
    "Falcon-H1": lambda: hf.FalconH1Config(
        **GROUPED, **{**MAMBA, "mamba_n_heads": 4}, mamba_d_ssm=64
    ),
    "LFM2": lambda: hf.Lfm2Config(
        **GROUPED, layer_types=["conv", "full_attention"], conv_L_cache=3
    ),
    "BERT, not causal": lambda: hf.BertConfig(**SHAPE),
}
"""Configuration of a tiny model of each family."""


@dataclass(frozen=True)
class Ways:
    """What a family takes, one text a column; `notes` holds the reasons."""

    pack: str
    score: str
    generate: str
    lora: str
    full: str
    notes: Mapping[str, str]

    @property
    def cells(self) -> tuple[str, ...]:
        """The columns of the table."""
        return self.pack, self.score, self.generate, self.lora, self.full


def build(name: str, scale: float = 1.0, seed: int = 0) -> Any:
    """Builds a tiny random model of a family.

    Args:
        name: The family, a key of FAMILIES.
        scale: Factor on its matrices: fresh weights are nearly linear, and loud ones are not.
        seed: Seed of the weights.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = hf.AutoModelForCausalLM.from_config(FAMILIES[name]())
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.mul_(scale)
    return model.eval()


def pack_way(model: Any) -> tuple[bool, str | None]:
    """Returns whether a model's samples are packed, and else why not."""
    compute = partial(supervised_logits, model, device=torch.device("cpu"))
    with torch.no_grad():
        return choose_packing(
            lambda batch: compute(batch=batch), model, TrainSettings(), MAX_TOKENS
        )


def trains(model: Any, adapter_kind: str) -> str:
    """Returns whether a model takes a gradient step with its adapter, or why it does not."""
    try:
        settings = ModelSettings(adapter=adapter_kind, lora_dropout=0.0)  # type: ignore[arg-type]
        trained = adapter.attach(copy.deepcopy(model), settings, 0)
        ids = torch.arange(20, 60)[None]
        loss = trained(input_ids=ids, labels=ids, use_cache=False).loss
        loss.backward()
        gradients = [p.grad for p in trained.parameters() if p.grad is not None]
        finite = gradients and all(bool(g.isfinite().all()) for g in gradients)
        return "yes" if finite else "no gradient"
    except Exception as error:  # whatever the libraries raise, it belongs into the table
        return f"no: {type(error).__name__}: {str(error).splitlines()[0][:60]}"


def find_ways(name: str) -> Ways:
    """Builds a model of a family and finds which way it takes."""
    model = build(name)
    lora, full = trains(model, "lora"), trains(model, "full")
    try:
        packed, why_padded = pack_way(copy.deepcopy(model))
        scoring = choose_scoring(model, MAX_TOKENS)
        decoding = choose_decoding(model, MAX_TOKENS)
    except UserError as error:
        return Ways(*["refused"] * 5, {"refused": str(error)})
    notes = {"pack": why_padded or "", "score": scoring.reason, "generate": decoding.reason}
    return Ways(
        "packed" if packed else "padded",
        SCORING[scoring.kind],
        "cache" if decoding.fast else "recomputed",
        lora,
        full,
        {key: reason for key, reason in notes.items() if reason},
    )


def table() -> str:
    """Renders the table of all families."""
    head = ("family", "train.pack", "score", "generate", "LoRA", "full")
    lines = [f"| {' | '.join(head)} |", "|---" * len(head) + "|"]
    lines += [f"| {' | '.join((name, *find_ways(name).cells))} |" for name in FAMILIES]
    return "\n".join(lines)


def main() -> int:
    """Writes, checks or prints; returns the exit code."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--check", action="store_true", help="write nothing; 1 if it differs")
    parser.add_argument("names", nargs="*", metavar="NAME", help="print these families only")
    options = parser.parse_args()
    silence_libraries()
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    for name in options.names:
        ways = find_ways(name)
        print(name, *ways.cells, sep=" | ")
        for key, reason in ways.notes.items():
            print(f"    {key}: {reason}")
    if options.names:
        return 0
    before = PAGE.read_text(encoding="utf-8")
    start, stop = before.index(BEGIN) + len(BEGIN), before.index(END)
    after = f"{before[:start]}\n{table()}\n{before[stop:]}"
    if options.check and before != after:
        print("docs/reference/models.md is not up to date; run docs/reference/models.py")
        return 1
    PAGE.write_text(after, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
