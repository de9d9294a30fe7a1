"""Evaluates models on Ray: each task loads a model and takes a contiguous part of the samples."""

import itertools
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import ray
import torch
from numpy.typing import NDArray
from safetensors.torch import load

from cluster import storage
from cluster.console import Say
from cluster.progress import Advance, track
from cluster.ray_tasks import get_results, get_streamed, start_with_progress
from corpus.store.tables import Corpus
from cprec.baselines.training import ItemText
from cprec.config.recipe import Recipe
from cprec.downstream import hybrid, stored_baselines
from cprec.downstream.domain import Domain
from cprec.downstream.evaluated_model import EvaluatedModel
from cprec.downstream.hybrid import HybridModel, build_encoders
from cprec.downstream.stored_model import BEHAVIOUR_FOLDER, StoredModel
from cprec.evaluation.answer_matching import Answer
from cprec.evaluation.candidate_rows import PassKind
from cprec.evaluation.candidate_scoring import PromptEncoder, score_samples
from cprec.evaluation.generation import generate_answers
from cprec.evaluation.listwise.generation import generate_rankings
from cprec.evaluation.perplexity import compute_perplexity
from cprec.evaluation.scoring_check import ScoringMethod, choose_decoding, choose_scoring
from cprec.model import adapter, backbone
from cprec.runs import checkpoint
from cprec.stream.row_encoder import RowEncoder
from cprec.train.engine import compile_layers


def score_model(
    recipe: Recipe,
    model: EvaluatedModel,
    corpus: Corpus,
    domain: str,
    samples: pa.Table,
    workers: int,
    row_encoder: RowEncoder | None,
    say: Say,
    text: ItemText | None = None,
) -> NDArray[np.float64]:
    """Scores the candidates of samples with a model, inside a Ray session.

    A baseline that has not been trained yet is trained first.

    Args:
        recipe: The recipe.
        model: The model.
        corpus: The corpus.
        domain: Domain of the samples.
        samples: The samples.
        workers: Number of tasks of a language model; a baseline takes one.
        row_encoder: Encoder of titles for a language model; None for a baseline.
        say: Takes a line where the model is not scored by the fastest method.
        text: The items' text, for a baseline that reads it.

    Returns:
        Scores [n, candidates]; higher is better.
    """
    if model.is_baseline:
        task = ray.remote(stored_baselines.score_baseline).options(
            num_cpus=recipe.train.cpus_per_worker
        )
        reference = task.remote(recipe, corpus, domain, model.name, model.seed, samples, text)
        with track(model.label, say):
            return np.asarray(get_results([reference])[0])
    with track(model.label, say, len(samples), "samples") as advance:
        parts = _map_samples(
            recipe, _score_task, model, corpus, domain, samples, workers, row_encoder, advance
        )
    if notice := parts[0][1]:
        say(f"{model.label}: {notice}")
    return np.concatenate([scores for scores, _ in parts])


def generate_on_ray(
    recipe: Recipe,
    model: EvaluatedModel,
    corpus: Corpus,
    domain: str,
    samples: pa.Table,
    workers: int,
    row_encoder: RowEncoder | None,
    say: Say,
) -> list[list[Answer]]:
    """Generates a language model's answers to samples, inside a Ray session.

    Args:
        recipe: The recipe.
        model: The language model.
        corpus: The corpus.
        domain: Domain of the samples.
        samples: The samples.
        workers: Number of tasks.
        row_encoder: Encoder of titles.
        say: Takes a line where answers are generated without a cache.

    Returns:
        Each sample's answers, in order (cprec.evaluation.generation).
    """
    with track(f"answers of {model.label}", say, len(samples), "samples") as advance:
        parts = _map_samples(
            recipe, _generate_task, model, corpus, domain, samples, workers, row_encoder, advance
        )
    if reason := parts[0][1]:
        say(f"{model.label}: answers are generated without a cache, which is wrong: {reason}")
    return [answers for part, _ in parts for answers in part]


def compute_perplexities(
    recipe: Recipe, models: Sequence[EvaluatedModel], text: str, say: Say
) -> list[float]:
    """Computes the perplexity of a plain text under each language model, inside a Ray session."""
    task = ray.remote(_perplexity_task).options(
        num_cpus=recipe.train.cpus_per_worker, num_gpus=recipe.train.gpus_per_worker
    )
    with track("perplexity of evaluate.text", say, len(models), "models") as advance:
        return get_results([task.remote(recipe, model, text) for model in models], advance)


def _map_samples(
    recipe: Recipe,
    function: Any,
    model: EvaluatedModel,
    corpus: Corpus,
    domain: str,
    samples: pa.Table,
    workers: int,
    row_encoder: RowEncoder | None,
    advance: Advance,
) -> list[Any]:
    """Runs a function as Ray tasks on contiguous parts of the samples.

    Returns:
        The result for each part, in the order of the samples.
    """
    bounds = np.linspace(0, len(samples), workers + 1).astype(int)
    parts = [samples.slice(start, stop - start) for start, stop in itertools.pairwise(bounds)]
    streams = [
        start_with_progress(
            function,
            *(recipe, model, corpus, domain, part, row_encoder),
            total=len(part),
            num_cpus=recipe.train.cpus_per_worker,
            num_gpus=recipe.train.gpus_per_worker,
        )
        for part in parts
    ]
    return get_streamed(streams, advance)


def load_model(recipe: Recipe, model: EvaluatedModel) -> tuple[Any, Any]:
    """Loads a language model for evaluation, with its adapter and projector if it has them.

    Args:
        recipe: The recipe, whose precision is used.
        model: The language model.

    Returns:
        The model, on the GPU if there is one, and its tokenizer.
    """
    network, tokenizer = backbone.load(model.base, model.revision, recipe.model.precision)
    if model.checkpoint is not None:
        stored = StoredModel.at(model.checkpoint)
        with tempfile.TemporaryDirectory() as folder:
            directory = Path(folder)
            if stored.adapter_uri is not None:
                adapter_directory = storage.download(
                    stored.adapter_uri, directory / checkpoint.ADAPTER
                )
                network = adapter.load(network, adapter_directory)
            behaviour_uri = storage.join(model.checkpoint, BEHAVIOUR_FOLDER)
            if storage.exists(behaviour_uri):
                network = hybrid.load(
                    network, storage.download(behaviour_uri, directory / BEHAVIOUR_FOLDER)
                )  # type: ignore[assignment]
    if model.behaviour_weights is not None:
        embeddings = load(storage.read_bytes(model.behaviour_weights))["item.weight"][1:]
        untrained = HybridModel(network, embeddings, model.seed)
        untrained.projector.to(network.device, network.dtype)
        network = untrained.eval()  # type: ignore[assignment]
    if torch.cuda.is_available():
        network = network.to("cuda")  # type: ignore[arg-type]
    return network, tokenizer


def prepare_scoring(recipe: Recipe, network: Any) -> ScoringMethod:
    """Finds out how a loaded model scores, and compiles its layers if the recipe says so.

    Args:
        recipe: Longest prompt, and whether to compile.
        network: The model, which is used for scoring only.

    Raises:
        RecipeError: The base is not a causal model.
    """
    method = choose_scoring(network, recipe.model.max_tokens)
    # Only packed rows have few shapes; and on a CPU their layout is a list, with a code for each.
    if recipe.evaluate.compile and network.device.type == "cuda" and method.kind is PassKind.PACKED:
        compile_layers(network)
    return method


def _build_encoder(
    recipe: Recipe,
    model: EvaluatedModel,
    network: Any,
    tokenizer: Any,
    domain: Domain,
    row_encoder: RowEncoder | None,
) -> PromptEncoder:
    """Builds the prompt encoder that fits a model.

    Hybrid prompts need the tokenizer's offsets. Text-only prompts are joined from titles that were
    tokenised once and are in Ray's object store.
    """
    if row_encoder is None or isinstance(network, HybridModel):
        return build_encoders(
            tokenizer, recipe.model.max_tokens, network, domain.items_by_index(), model.template
        ).for_evaluation
    return row_encoder.load_prompt_encoder()


def _score_task(
    recipe: Recipe,
    model: EvaluatedModel,
    corpus: Corpus,
    domain_name: str,
    samples: pa.Table,
    row_encoder: RowEncoder | None,
    advance: Advance,
) -> tuple[NDArray[np.float64], str]:
    """Loads a language model and scores the candidates of samples with it.

    Returns:
        The scores, and a line that says how; empty for the fastest method.
    """
    network, tokenizer = load_model(recipe, model)
    domain = Domain.from_corpus(corpus, domain_name, recipe.evaluate.split)
    encoder = _build_encoder(recipe, model, network, tokenizer, domain, row_encoder)
    method = prepare_scoring(recipe, network)
    scores = score_samples(network, encoder, samples, recipe.evaluate.batch, method, advance)
    return scores, method.notice


def _generate_task(
    recipe: Recipe,
    model: EvaluatedModel,
    corpus: Corpus,
    domain_name: str,
    samples: pa.Table,
    row_encoder: RowEncoder | None,
    advance: Advance,
) -> tuple[list[list[Answer]], str]:
    """Loads a language model and generates its answers to samples.

    Returns:
        The answers, and why there was no cache; empty if there was one.
    """
    network, tokenizer = load_model(recipe, model)
    domain = Domain.from_corpus(corpus, domain_name, recipe.evaluate.split)
    method = choose_decoding(network, recipe.model.max_tokens)
    if model.writes_rankings:
        rankings = generate_rankings(
            network,
            tokenizer,
            samples,
            domain.titles,
            recipe.evaluate.batch,
            recipe.model.max_tokens,
            method.fast,
            advance,
        )
        return rankings, method.reason
    encoder = _build_encoder(recipe, model, network, tokenizer, domain, row_encoder)
    constrained = recipe.evaluate.mode == "constrained"
    texts = generate_answers(
        network,
        tokenizer,
        encoder,
        samples,
        domain.titles,
        recipe.evaluate.batch,
        constrained,
        method=method,
        advance=advance,
    )
    return texts, method.reason


def _perplexity_task(recipe: Recipe, model: EvaluatedModel, text: str) -> float:
    """Loads a language model and computes the perplexity of a plain text under it."""
    network, tokenizer = load_model(recipe, model)
    return compute_perplexity(network, tokenizer, text, recipe.model.max_tokens)
