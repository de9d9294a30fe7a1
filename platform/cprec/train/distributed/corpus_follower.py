"""Follows the corpus of a run: new versions join the plan while it is open."""

from dataclasses import replace

from cluster.errors import DataError
from corpus.store.tables import Corpus
from cprec.runs.events import CorpusVersionAdopted
from cprec.runs.portions import build_replay, remaining_portions
from cprec.schedule.plan_notes import annealing_warning, count_planned, describe_joined
from cprec.stream.prompt_check import require_streams_fit
from cprec.stream.row_encoder import RowEncoder, describe_fallback
from cprec.train.distributed.controller_state import ControllerState

CLOSED_ADVICE = (
    "finishes as planned; go on from its last stable checkpoint with jobs/cpt.py --continue-from"
)
"""What a run that takes up nothing any more does, for people."""


class CorpusFollower:
    """Holds the streams that training reads, and extends the plan by newer corpus versions.

    `check` looks for a newer version. If the plan is open and the version has rows to train,
    `check` loads the version and adds these rows to the plan.

    Attributes:
        streams: The training streams of the version that was loaded last, by key.
        row_encoder: What turns that version's rows into tokens, shared by all read tasks.
    """

    def __init__(self, state: ControllerState) -> None:
        self._state = state
        self._samples_at_check = 0
        self._refused_version = 0
        self._message = f"has corpus version {state.run_plan.version}"
        self.row_encoder = state.settings.row_encoder
        # Not the newest one, which may be refused below.
        corpus = Corpus.open(state.settings.corpus_uri, state.run_plan.newest_planned)
        self._load(corpus, self.row_encoder.with_titles_of(corpus))

    def is_due(self) -> bool:
        """Returns whether it is time to look at the corpus: at once while workers wait."""
        trained = self._state.controller.samples - self._samples_at_check
        return self._state.workers_wait or trained >= self._state.settings.poll_samples

    def check(self) -> str | None:
        """Adopts a newer version of the corpus if the plan is open and its prompts fit.

        Returns:
            What the run does with it, for people; None if there is no newer version.
        """
        state, settings = self._state, self._state.settings
        self._samples_at_check = state.controller.samples
        corpus = Corpus.open(settings.corpus_uri)
        if corpus.version <= max(state.run_plan.version, self._refused_version):
            return None
        if not state.controller.is_open:
            return (
                f"does not take up corpus version {corpus.version}: "
                f"it is {state.controller.phase}, and {CLOSED_ADVICE}"
            )
        domain, mixed, texts = state.run_plan.new_streams(corpus)
        replayed = texts if settings.replay_share else []
        domain_portions, mixed_portions, text_portions = (
            remaining_portions(joining, settings.passes) for joining in (domain, mixed, replayed)
        )
        if not (domain_portions or mixed_portions or text_portions):
            state.write_run_plan(replace(state.run_plan, version=corpus.version))
            self._message = f"has nothing to train of corpus version {corpus.version}"
            return self._message
        joined = {(p.source, p.version) for p in (*domain_portions, *mixed_portions)}
        try:
            encoder = self.row_encoder.with_titles_of(corpus)
            require_streams_fit(
                encoder, [s for s in (*domain, *mixed) if (s.source, s.version) in joined]
            )
        except DataError as error:
            # Trained, it would end the run. What comes later stands on it, and waits too.
            self._refused_version = corpus.version
            self._message = (
                f"does not take up corpus version {corpus.version}, and goes on without it and "
                f"without later ones: {error}; to take it up, stop the run first"
            )
            return self._message
        slower = encoder.fallback_reason if not self.row_encoder.fallback_reason else ""
        self._load(corpus, encoder)

        before = state.controller.plan
        consumed = before.consumed_portions(state.controller.join_position())
        with state.controller.transaction():
            position = state.controller.extend_plan(
                domain_portions,
                mixed_portions,
                settings.max_domain_samples,
                build_replay(settings.replay_share, corpus.streams(), settings.passes, consumed),
                settings.annealing_share,
            )
            plan = state.controller.plan
            state.write_run_plan(state.run_plan.adopt_version(corpus, plan, domain))
        state.record(
            CorpusVersionAdopted(
                samples=position,
                version=corpus.version,
                sources=count_planned(
                    plan, [(s.source, s.version) for s in (*domain, *mixed, *replayed)]
                ),
                stable_end=plan.wsa.stable_end,
                annealing_end=plan.wsa.annealing_end,
                stable_end_before=before.wsa.stable_end,
            )
        )
        state.workers_wait = False
        notes: list[str | None] = [
            f"takes up corpus version {corpus.version} at sample {position:,}: "
            f"S = {plan.wsa.stable_end:,}, A = {plan.wsa.annealing_end:,}"
        ]
        if settings.max_domain_samples is not None:
            offered = {(p.source, p.version): p.count for p in domain_portions}
            notes.append(describe_joined(plan, position, offered, settings.max_domain_samples))
        if slower:
            notes.append(describe_fallback(slower))
        notes.append(
            annealing_warning(plan, settings.min_annealing_share, settings.global_batch_size)
        )
        self._message = "\n".join(note for note in notes if note)
        return self._message

    def check_or_repeat(self) -> str:
        """Checks the corpus; returns the last message again if there is no newer version."""
        return self.check() or self._message

    def _load(self, corpus: Corpus, row_encoder: RowEncoder) -> None:
        """Takes over the streams of a version, and an encoder with the titles of its items."""
        self.streams = corpus.streams_by_key()
        self.row_encoder = row_encoder
