"""What a run goes on from: a stable checkpoint of a trunk, checked against the new run."""

from dataclasses import dataclass

from cluster.errors import CorpusError, RunError
from corpus.store.tables import Corpus
from cprec.runs import checkpoint
from cprec.runs.run_plan import RunPlan
from cprec.runs.token_form import TOKEN_FORM
from cprec.schedule.plan import Portion


@dataclass(frozen=True)
class Parent:
    """What a run goes on from: a stable checkpoint of a trunk, or the base.

    Attributes:
        uri: URI of the checkpoint; None for the base.
        consumed: What the trunk had consumed there.
        passed_over: Domains that the run passes over.
        token_form: Rules of tokens under which its weights were trained.
    """

    uri: str | None
    consumed: tuple[Portion, ...]
    passed_over: tuple[str, ...]
    token_form: int = TOKEN_FORM


def read_parent(uri: str, corpus: Corpus, seed: int) -> Parent:
    """Reads a parent checkpoint, and checks that it is stable and fits a new run.

    Args:
        uri: URI of the checkpoint.
        corpus: The corpus of the new run.
        seed: Its seed.

    Raises:
        RunError: The checkpoint is damaged, was taken while annealing, or has another seed.
        CorpusError: It was trained on another corpus.
    """
    ledger = checkpoint.read_verified_ledger(uri)
    consumed = ledger.plan.consumed_portions(ledger.samples)
    stable_end = ledger.plan.wsa.stable_end
    if ledger.samples > stable_end:
        raise RunError(
            f"{uri}: taken while annealing ({ledger.samples:,} samples, S = {stable_end:,}); "
            "only stable checkpoints can be continued"
        )
    trunk = RunPlan.read(uri.rsplit("/", 2)[0])  # <run>/checkpoints/<name>
    if trunk is not None and trunk.corpus != corpus.fingerprint:
        raise CorpusError(
            f"{uri} was trained on corpus {trunk.corpus}; {corpus.uri} is {corpus.fingerprint}"
        )
    trained_seed = ledger.plan.domain_eras[0].seed
    if seed != trained_seed:
        raise RunError(
            f"{uri} was trained with seed {trained_seed}, which ordered its samples; "
            f"this recipe has seed {seed}: set --seed {trained_seed}"
        )
    if trunk is None:
        return Parent(uri, consumed, ())
    return Parent(uri, consumed, trunk.passed_over, trunk.token_form)
