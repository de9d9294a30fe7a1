"""The base model: what it is, and which of its weights are trained."""

from typing import Literal

from pydantic import Field, model_validator

from cluster.errors import RecipeError
from cluster.section import Section


class ModelSettings(Section):
    """`model`: the base model, and which of its weights are trained."""

    base: str = Field(
        "tiny",
        description="a Hugging Face causal LM: hub id, directory or s3:// URI; "
        "or tiny: a small LLaMA, built from the corpus's titles",
    )
    revision: str | None = Field(None, description="revision of a hub id")
    license: str | None = Field(
        None,
        description="license of the base, such as apache-2.0, for model cards; "
        "null: what the base's own card (README.md) says",
    )
    adapter: Literal["lora", "full", "partial", "prompt"] = Field(
        "lora",
        description="what is trained of the base; lora: a low-rank adapter; full: every weight; "
        "partial: a part of its weights; prompt: none, but a soft prompt before every prompt",
    )
    last_layers: int = Field(
        2, ge=1, description="partial: layers to train, counted from the end of the base"
    )
    trained_weights: tuple[str, ...] = Field(
        (),
        description="partial: names of weights to train instead of the last layers, with * for "
        "any text, such as ['*norm*', '*.layers.0.*']",
    )
    soft_tokens: int = Field(20, ge=1, description="prompt: tokens of the soft prompt")
    lora_rank: int = Field(8, ge=1, description="rank r of LoRA, on all linear layers")
    lora_alpha: int = Field(32, ge=1, description="alpha of LoRA")
    lora_dropout: float = Field(0.1, ge=0.0, lt=1.0, description="dropout of LoRA while training")
    precision: Literal["fp32", "bf16"] = Field(
        "fp32",
        description="precision of weights and activations; master weights and optimizer stay fp32",
    )
    fp8: bool = Field(
        False,
        description="frozen weights in FP8 while pre-training (needs lora, bf16, zero_stage < 3 "
        "and a GPU with FP8): nearly exact",
    )
    fp8_fast_accumulation: bool = Field(
        False,
        description="products in FP8 are summed with fewer bits, which is faster; needs fp8",
    )
    max_tokens: int = Field(
        2048,
        ge=64,
        description="largest number of tokens of a prompt and its answer; "
        "the oldest titles of a history are dropped first",
    )

    @model_validator(mode="after")
    def _check_fp8(self) -> "ModelSettings":
        if self.fp8 and (self.adapter != "lora" or self.precision != "bf16"):
            raise ValueError(
                "model.fp8 needs adapter: lora and precision: bf16, "
                f"not {self.adapter} and {self.precision}"
            )
        if self.fp8_fast_accumulation and not self.fp8:
            raise ValueError("model.fp8_fast_accumulation needs model.fp8")
        return self

    def require_stage(self, zero_stage: int | None) -> None:
        """Checks that a ZeRO stage goes together with FP8.

        Args:
            zero_stage: The stage that is asked for, or was chosen; None where it is not yet.

        Raises:
            RecipeError: It does not.
        """
        if self.fp8 and zero_stage == 3:
            raise RecipeError(
                "model.fp8: not at ZeRO stage 3, which parts no weights in FP8; set "
                "train.zero_stage 2 or lower, or model.fp8 false where a GPU has no room for that"
            )


class TinySettings(Section):
    """`tiny`: the model that is built when model.base is tiny."""

    hidden: int = Field(64, ge=16, description="hidden size")
    layers: int = Field(2, ge=1, description="number of layers")
    heads: int = Field(4, ge=1, description="number of attention heads")
    vocabulary: int = Field(
        1024, ge=300, description="tokens of the tokenizer, trained on the corpus's titles"
    )
    language_steps: int = Field(
        300,
        ge=0,
        description="steps of language training on generated product text; 0: random weights",
    )
