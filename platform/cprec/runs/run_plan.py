"""The run plan: what a run will train and from which corpus, as plan.json below <storage>/<run>/.

The file is written before any change to it takes effect.
"""

import json
from collections import Counter
from dataclasses import asdict, dataclass, replace
from typing import Any

from pydantic import TypeAdapter

from cluster.errors import RunError
from cluster.storage import join, read_bytes_if_exists
from corpus.sampling.source import SourceKind
from corpus.settings import UNRECORDED_TEMPLATE
from corpus.store.tables import Corpus, Stream
from cprec.encode.prompt import PromptTemplate, find_template
from cprec.runs.control.fence import UNFENCED, RunWriter
from cprec.runs.events import CorpusVersionAdopted, RunStarted
from cprec.runs.json_lines import open_events, read_events
from cprec.runs.portions import domain_names, select_streams
from cprec.runs.record_files import parse_json
from cprec.runs.records import PLAN_FILE
from cprec.schedule.plan import Plan


@dataclass(frozen=True)
class RunPlan:
    """A run's plan together with its state.

    Attributes:
        corpus: Fingerprint of the corpus's first version, which identifies the corpus.
        version: Newest corpus version that the run has taken up; it may have had nothing to train.
        plan: The plan.
        domains: Domains that the run pre-trains on, including those that joined.
        passed_over: Domains that the corpus held at the start and the recipe did not name.
        hold: Whether the stable phase stays open when it runs dry.
        closed: Whether annealing was called, so that nothing joins any more.
        parent: URI of the checkpoint that the run goes on from; None: it started from the base.
        token_form: Rules by which text became tokens when its weights were first trained
            (`cprec.runs.token_form`).
        prompt_template: Template of its prompts.
        lease: Number of the lease under which it was written; 0: by an earlier release.
    """

    corpus: str
    version: int
    plan: Plan
    domains: tuple[str, ...]
    passed_over: tuple[str, ...]
    hold: bool = False
    closed: bool = False
    parent: str | None = None
    token_form: int = 1
    prompt_template: str = UNRECORDED_TEMPLATE
    lease: int = 0

    @classmethod
    def read(cls, run_uri: str) -> "RunPlan | None":
        """Reads the plan of a run; None if the run never started.

        Raises:
            RunError: The file is damaged.
        """
        uri = join(run_uri, PLAN_FILE)
        content = read_bytes_if_exists(uri)
        if content is None or content.isspace():  # `Lease.adopt` makes white space
            return None
        try:
            values: dict[str, Any] = parse_json(content)
            _SHAPE.validate_python(values)
            names = {key: tuple(values[key]) for key in ("domains", "passed_over")}
            plan = cls(**{**values, **names, "plan": Plan.from_json(values["plan"])})
            find_template(plan.prompt_template)
        except (ValueError, TypeError, KeyError, ArithmeticError, RecursionError):
            raise RunError(
                f"{uri}: damaged, it holds no plan; restore the file, or use another --run"
            ) from None
        return plan

    def write(self, run_uri: str, writer: RunWriter = UNFENCED) -> None:
        """Writes plan.json, durably."""
        values = {**asdict(self), "plan": self.plan.to_json(), "lease": writer.number or 0}
        writer.replace(join(run_uri, PLAN_FILE), json.dumps(values, indent=1).encode())

    def record_start(self, run_uri: str, run: str, writer: RunWriter) -> None:
        """Writes the first events of a run, unless they are there.

        A start that died just after it had written the plan left none of them, or not all.
        """
        if any(isinstance(event, CorpusVersionAdopted) for event in read_events(run_uri)):
            return
        plan = self.plan
        samples_by_source: Counter[str] = Counter()
        for (source, _), samples in plan.count_by_stream(0, plan.total_samples).items():
            samples_by_source[source] += samples
        events = open_events(run_uri, writer)
        events.retain(lambda event: not isinstance(event, RunStarted))
        events.append(
            RunStarted(
                samples=0,
                run=run,
                parent=self.parent,
                warmup_end=plan.wsa.warmup_end,
                stable_end=plan.wsa.stable_end,
                annealing_end=plan.wsa.annealing_end,
            )
        )
        events.append(
            CorpusVersionAdopted(
                samples=0,
                version=self.version,
                sources=samples_by_source,
                stable_end=plan.wsa.stable_end,
                annealing_end=plan.wsa.annealing_end,
            )
        )
        events.flush()

    @property
    def template(self) -> PromptTemplate:
        """The template of its prompts."""
        return find_template(self.prompt_template)

    @property
    def newest_planned(self) -> int:
        """The newest corpus version of which the plan has rows."""
        streams = self.plan.count_by_stream(0, self.plan.total_samples)
        return max((version for _, version in streams), default=self.version)

    def new_streams(self, corpus: Corpus) -> tuple[list[Stream], list[Stream], list[Stream]]:
        """Returns the streams of later corpus versions that this run would train.

        Args:
            corpus: The corpus in a later version.

        Returns:
            (domain-specific, mixed, text).
        """
        later = [stream for stream in corpus.streams() if stream.version > self.version]
        return (
            select_streams(later, SourceKind.DOMAIN, self.passed_over),
            select_streams(later, SourceKind.MIXED),
            select_streams(later, SourceKind.TEXT),
        )

    def adopt_version(self, corpus: Corpus, plan: Plan, domain_streams: list[Stream]) -> "RunPlan":
        """Returns the run plan after a later corpus version joined.

        Args:
            corpus: The corpus in that version.
            plan: The extended plan.
            domain_streams: Domain-specific streams that joined.
        """
        domains = (*self.domains, *domain_names(domain_streams))
        return replace(
            self, version=corpus.version, plan=plan, domains=tuple(dict.fromkeys(domains))
        )


_SHAPE = TypeAdapter(RunPlan)
"""The types of all values of plan.json."""
