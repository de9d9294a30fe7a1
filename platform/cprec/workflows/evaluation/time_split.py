"""A split by time: models that were trained up to a day, scored on what was bought after it.

Leave-one-out alone is none: among the users' training interactions are some of later days than
another user's last one. Here a model is refused if it was trained on anything of the days that are
scored, or later.
"""

from collections.abc import Mapping
from datetime import UTC, datetime

import pyarrow as pa
import pyarrow.compute as pc

from cluster.errors import CorpusError, RunError
from corpus.sampling.source import Source, SourceKind
from corpus.settings import SECONDS_PER_DAY, day_start
from corpus.store.tables import Corpus, newest_timestamp
from cprec.config.sections.evaluation import EvaluateSettings


def select_days(samples: pa.Table, settings: EvaluateSettings) -> pa.Table:
    """Returns the samples whose target was bought on the days of a split by time.

    Args:
        samples: Samples of the corpus.
        settings: The days; without any, all samples are returned.

    Raises:
        CorpusError: There are none; the message says of which days there are some.
    """
    if settings.from_day is None:
        return samples
    time = samples["timestamp"]
    selected = pc.greater_equal(time, day_start(settings.from_day))
    if settings.to_day is not None:
        end = day_start(settings.to_day) + SECONDS_PER_DAY
        selected = pc.and_(selected, pc.less(time, end))
    found = samples.filter(selected)
    if not len(found):
        span = pc.min_max(time).as_py()
        raise CorpusError(
            f"evaluate.from_day: no {settings.split} sample of {settings.days}; there are some "
            f"from {_as_text(span['min'])} to {_as_text(span['max'])}; choose other days, or "
            "append newer interactions first"
        )
    return found


def newest_held_out(corpus: Corpus, source: Source) -> int:
    """Returns the newest time that baselines may read beside training targets, in Unix seconds.

    They stop early by the targets of the validation split. Of a user without a training sample
    they learn from the history of the first validation sample, or else of the first test sample
    (cprec.baselines.sequences). When those items were bought is not kept; that was before the
    target of the sample, whose time therefore counts.

    Args:
        corpus: The corpus.
        source: Source of the domain's samples.
    """
    train, validation, test = (
        corpus.read_samples(source, split) for split in ("train", "validation", "test")
    )
    others = pa.chunked_array([*train["user_id"].chunks, *validation["user_id"].chunks])
    # The last item of a test history is held out too, and one item alone is no sequence.
    only_test = pc.and_(
        pc.invert(pc.is_in(test["user_id"], others)),
        pc.greater(pc.list_value_length(test["history"]), 2),
    )
    first_test = test.filter(only_test).group_by("user_id").aggregate([("timestamp", "min")])
    times = (validation["timestamp"], first_test["timestamp_min"])
    return max(pc.max(column).as_py() or 0 for column in times)


def check_trained_before(
    name: str,
    newest_versions: Mapping[Source, int] | None,
    corpus: Corpus,
    from_day: str,
    held_out: int = 0,
) -> str:
    """Checks that a model was trained on nothing of a day or later, as far as that is known.

    Args:
        name: Name of the model, for messages.
        newest_versions: Newest version of the corpus that it was trained on, by source; None:
            unknown, or another corpus.
        corpus: The corpus.
        from_day: The day.
        held_out: Newest time of what it read of other splits than training, in Unix seconds.

    Returns:
        Up to when it was trained, as a line to say.

    Raises:
        RunError: It was trained on interactions of that day or later.
    """
    if newest_versions is None:
        unknown = "what of this corpus it was trained on is not known"
        return f"{name}: {unknown}, and may be of {from_day} or later"
    newest = max(
        (
            newest_timestamp(stream)
            for stream in corpus.streams()
            if stream.version <= newest_versions.get(stream.source, -1)
            and stream.source.kind != SourceKind.TEXT
        ),
        default=None,
    )
    if newest is None:
        return f"{name}: trained on no interactions of this corpus"
    newest = max(newest, held_out)
    if newest >= day_start(from_day):
        versions = max(newest_versions.values())
        raise RunError(
            f"evaluate.from_day {from_day}: {name} was trained on interactions up to "
            f"{_as_text(newest)}, corpus version {versions} included, so this is no split by time; "
            "choose a later day or a model that was trained before it, or leave this one out"
        )
    return f"{name}: trained on interactions up to {_as_text(newest)}"


def _as_text(timestamp: int) -> str:
    """Returns a time (Unix seconds) as text."""
    return f"{datetime.fromtimestamp(timestamp, UTC):%Y-%m-%d %H:%M} UTC"
