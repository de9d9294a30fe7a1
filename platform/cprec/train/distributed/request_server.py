"""Carries out what other processes ask of a run, through its control channel."""

from collections.abc import Callable
from dataclasses import replace

from cluster.errors import RunError, UserError
from cprec.runs.control.control_channel import ControlChannel
from cprec.runs.control.lease import LeaseLostError
from cprec.runs.control.request_queue import BadRequest, Request
from cprec.runs.events import AnnealingCalled, Held, Released, RequestRefused, VersionAnnounced
from cprec.schedule.plan import Plan
from cprec.schedule.plan_notes import annealing_warning
from cprec.schedule.wsa import Phase
from cprec.train.distributed.controller_state import ControllerState
from cprec.train.distributed.corpus_follower import CLOSED_ADVICE, CorpusFollower

MAX_EVENTS = 20
"""Refused requests that become events of their own, of those that are served at a time."""

STOP_ANSWER = "finishes its step, saves a checkpoint and ends; the same command goes on from there"


class RequestServer:
    """Serves the requests that wait in a run's control channel."""

    def __init__(
        self,
        state: ControllerState,
        corpus: CorpusFollower,
        channel: ControlChannel,
        stop: Callable[[str | None], None],
    ) -> None:
        """Takes what requests are about.

        Args:
            state: What the controller decides on.
            corpus: Looks for new corpus versions.
            channel: Where requests come from, and answers go.
            stop: Lets the workers save a checkpoint and end, once; takes who asked.
        """
        self._state = state
        self._corpus = corpus
        self._channel = channel
        self._stop = stop

    def serve(self) -> None:
        """Answers the requests that wait, in order; what is refused becomes an event.

        Whatever a request is, and whatever storage does meanwhile, training goes on.
        """
        refusals: list[RequestRefused] = []
        try:
            for request in self._channel.take_requests():
                try:
                    self._channel.answer(request.id, self.handle(request))
                except LeaseLostError:
                    raise
                except UserError as error:
                    refusals.append(self._refuse(request, str(error)))
        except OSError:  # storage is away for a moment: what was not answered is served later
            pass
        if len(refusals) > MAX_EVENTS:
            more = f"and {len(refusals) - MAX_EVENTS:,} more at the same time"
            refusals[MAX_EVENTS:] = [refusals[-1].model_copy(update={"because": more})]
        if refusals:
            self._state.record(*refusals)

    def _refuse(self, request: Request | BadRequest, problem: str) -> RequestRefused:
        """Answers that a request is refused; returns the event of it."""
        because = problem
        if isinstance(request, BadRequest):
            because += f"; now at {self._channel.set_aside(request, problem)}"
        else:
            self._channel.answer(request.id, problem, refused=True)
        samples = self._state.controller.samples
        return RequestRefused(samples=samples, request=request.id, because=because)

    def handle(self, request: Request | BadRequest) -> str:
        """Carries out a request; returns the answer.

        Raises:
            UserError: The request is refused; says why.
        """
        if isinstance(request, BadRequest):
            raise RunError(f"does not know what to do: {request.problem}")
        controller = self._state.controller
        if request.action == "look":
            return self._look_at_corpus(request.by)
        if request.action == "stop":
            self._stop(request.by)
            return STOP_ANSWER
        if request.action == "anneal" and self._was_carried_out(request.id):
            return _describe_annealing(controller.plan)
        if request.action == "anneal" and self._state.run_plan.closed and not self._anneals:
            # It was called before, maybe by a controller that could not record it any more.
            return _describe_annealing(controller.plan)
        if not controller.is_open:
            raise RunError(f"is {controller.phase}, and {CLOSED_ADVICE}")
        if request.action == "anneal":
            return self._start_annealing(request)
        return self._set_hold(request.action == "hold", request.by)

    def _look_at_corpus(self, by: str | None) -> str:
        answer = self._corpus.check_or_repeat()
        if by is not None:
            samples = self._state.controller.samples
            self._state.record(VersionAnnounced(samples=samples, by=by, answer=answer))
        return answer

    @property
    def _anneals(self) -> bool:
        return self._state.controller.phase in (Phase.ANNEALING, Phase.DONE)

    def _was_carried_out(self, request_id: str) -> bool:
        """Returns whether a controller before this one started annealing for a request."""
        return any(
            isinstance(event, AnnealingCalled) and event.request == request_id
            for event in self._state.events
        )

    def _start_annealing(self, request: Request) -> str:
        state, controller = self._state, self._state.controller
        with controller.transaction():
            position = controller.start_annealing()
            state.write_run_plan(
                replace(state.run_plan, plan=controller.plan, hold=False, closed=True)
            )
        state.record(
            AnnealingCalled(
                samples=position,
                stable_end=controller.plan.wsa.stable_end,
                annealing_end=controller.plan.total_samples,
                request=request.id,
                by=request.by,
            )
        )
        state.advance(controller.samples)
        warning = annealing_warning(
            controller.plan, state.settings.min_annealing_share, controller.global_batch_size
        )
        answer = _describe_annealing(controller.plan)
        return f"{answer}\n{warning}" if warning else answer

    def _set_hold(self, hold: bool, by: str | None) -> str:
        state, controller = self._state, self._state.controller
        if hold != controller.hold:
            with controller.transaction():
                controller.set_hold(hold)
                state.write_run_plan(replace(state.run_plan, hold=hold))
            samples = controller.samples
            event = Held if hold else Released
            state.record(event(samples=samples, by=by))
            state.advance(samples)
        stable_end = controller.plan.wsa.stable_end
        if hold:
            return (
                "stays in its stable phase, waiting for new domains at "
                f"{stable_end:,} samples, until released"
            )
        return f"anneals when its stable phase is trained, at {stable_end:,} samples"


def _describe_annealing(plan: Plan) -> str:
    return f"anneals from sample {plan.wsa.stable_end:,} on, to {plan.total_samples:,}"
