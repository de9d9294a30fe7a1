"""Tells Ray that this machine is taken away, as soon as the cloud announces it.

    python spot.py aws --address HEAD:6379      # beside a node; drains it on a spot notice
    python spot.py gcp --address HEAD:6379
    python spot.py file --file PATH             # the notice of any other cloud: a file appears
    python spot.py now --seconds 90             # the node ends: drain it, and wait until it may

Ray drains the node until the deadline of the notice. A run then saves a checkpoint at once
(`cprec.train.distributed.preemption`), and goes on elsewhere without counting a failure.

SIGTERM is a notice, too. This file stands alone, because it is in the image, which holds no other
file of ours (cluster/image/Dockerfile).
"""

import argparse
import json
import logging
import math
import signal
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from http.client import HTTPException
from pathlib import Path
from typing import Protocol

LINK_LOCAL = "http://169.254.169.254"
"""Where both clouds answer a machine's questions about itself."""

ANSWER_S = 2.0
"""Seconds that an answer may take: the service is on the machine itself."""

RETRY_S = 1.0
"""Seconds between two tries to drain, and between two looks at the node."""

AWS_TOKEN_S = 21_600
"""Seconds for which a token of AWS is asked; six hours are the most."""

HOOK_PATIENCE_S = 10.0
"""Seconds for which `now` tries: where a whole cluster ends, its head may be gone already."""

GCP_SECONDS = 30.0
"""Seconds between Google's notice and the end."""

log = logging.getLogger("spot")


@dataclass(frozen=True)
class Notice:
    """An announcement that this machine is taken away.

    Attributes:
        deadline: When (Unix seconds).
        reason: What the cloud said, for people.
    """

    deadline: float
    reason: str


Poll = Callable[[], Notice | None]
"""Asks once for a notice. Raises OSError or ValueError where there is no usable answer."""


class Nodes(Protocol):
    """The Ray nodes of this machine."""

    def alive(self) -> set[str]:
        """Returns the ids of those whose raylet is alive."""

    def drain(self, node_id: str, notice: Notice) -> None:
        """Asks Ray to drain one. Raises whatever Ray raises, or RuntimeError if Ray refuses."""


# -- the notices of clouds


class AwsNotices:
    """Spot notices of AWS, by the second version of its metadata service."""

    def __init__(self, base: str = LINK_LOCAL) -> None:
        """Begins without a token.

        Args:
            base: URL of the metadata service.
        """
        self._base, self._token = f"{base}/latest", ""

    def poll(self) -> Notice | None:
        """Asks once; see `Poll`. A token that is no longer taken is replaced the next time."""
        if not self._token:
            lifetime = {"X-aws-ec2-metadata-token-ttl-seconds": str(AWS_TOKEN_S)}
            self._token = _ask(f"{self._base}/api/token", lifetime, "PUT").strip()
        token = {"X-aws-ec2-metadata-token": self._token}
        try:
            answer = _ask(f"{self._base}/meta-data/spot/instance-action", token)
        except urllib.error.HTTPError as error:
            if error.code == 404:
                return None
            if error.code == 401:
                self._token = ""
            raise
        try:
            said = json.loads(answer)
            time_ = datetime.fromisoformat(said["time"])
            action = str(said["action"])
        except (TypeError, KeyError) as error:
            raise ValueError(f"no spot notice: {answer[:200]!r}") from error
        if time_.tzinfo is None:
            time_ = time_.replace(tzinfo=UTC)
        return Notice(time_.timestamp(), f"AWS: {action} at {said['time']}")


class GcpNotices:
    """Preemptions of Google Cloud, by its metadata service."""

    def __init__(self, base: str = LINK_LOCAL, seconds: float = GCP_SECONDS) -> None:
        """Does not ask yet.

        Args:
            base: URL of the metadata service.
            seconds: Time between the notice and the end, which is not said.
        """
        self._url = f"{base}/computeMetadata/v1/instance/preempted"
        self._seconds = seconds

    def poll(self) -> Notice | None:
        """Asks once; see `Poll`."""
        answer = _ask(self._url, {"Metadata-Flavor": "Google"}).strip()
        if answer not in ("TRUE", "FALSE"):
            raise ValueError(f"neither TRUE nor FALSE: {answer[:200]!r}")
        if answer == "FALSE":
            return None
        return Notice(time.time() + self._seconds, "Google Cloud: preempted")


def poll_file(path: Path, seconds: float) -> Notice | None:
    """Returns a notice once a file is there; see `Poll`.

    Args:
        path: The file.
        seconds: Time between the notice and the end.
    """
    if not path.exists():
        return None
    return Notice(time.time() + seconds, f"{path} is there")


def _ask(url: str, headers: Mapping[str, str], method: str = "GET") -> str:
    """Returns the beginning of an answer of the machine's metadata service, never by a proxy."""
    request = urllib.request.Request(url, headers=dict(headers), method=method)  # noqa: S310
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with opener.open(request, timeout=ANSWER_S) as answer:
            return str(answer.read(1 << 12).decode("ascii"))
    except HTTPException as error:
        raise ValueError(f"{url}: no HTTP: {error!r}") from error


# -- the nodes


class RayNodes:
    """The Ray nodes of this machine, found among its processes and drained through the GCS."""

    def __init__(self, address: str | None, node_id: str | None) -> None:
        """Connects to nothing yet, but imports Ray, so that a notice need not wait for that.

        Args:
            address: Host and port of the GCS; None: RAY_ADDRESS, or that of the processes here.
            node_id: The only node to look at; None: all.
        """
        import ray  # noqa: F401

        self._address, self._only = address, node_id

    def alive(self) -> set[str]:
        """Returns the ids of those whose raylet is alive."""
        from ray._private.services import find_node_ids

        found = set(find_node_ids())
        return found & {self._only} if self._only else found

    def drain(self, node_id: str, notice: Notice) -> None:
        """Asks Ray to drain one; see `Nodes`."""
        from ray._private.services import canonicalize_bootstrap_address_or_die
        from ray._raylet import GcsClient  # type: ignore[attr-defined]  # compiled
        from ray.core.generated import autoscaler_pb2 as messages

        # A new client each time: it does not survive a GCS that is started again.
        gcs = GcsClient(address=self._address or canonicalize_bootstrap_address_or_die("auto"))
        reason = messages.DrainNodeReason.Value(  # type: ignore[attr-defined]  # generated
            "DRAIN_NODE_REASON_PREEMPTION"
        )
        is_accepted, why_not = gcs.drain_node(
            node_id, reason, notice.reason, int(notice.deadline * 1000)
        )
        if not is_accepted:
            raise RuntimeError(f"Ray does not drain the node {node_id}: {why_not}")


# -- what this process does


def wait_for_notice(
    poll: Poll, terminated: threading.Event, every_s: float, seconds: float
) -> Notice:
    """Asks for a notice until there is one. No failure ends it, and only the first one is logged.

    Args:
        poll: Asks once.
        terminated: Set by SIGTERM, which is a notice.
        every_s: Time between two questions (seconds).
        seconds: Time between SIGTERM and the end (seconds).
    """
    is_failing = False
    while not terminated.is_set():
        try:
            notice = poll()
        except (OSError, ValueError) as error:
            if not is_failing:
                log.warning("no usable answer, asking on: %s", error)
            is_failing = True
        else:
            if notice is not None:
                return notice
            if is_failing:
                log.info("answers again")
            is_failing = False
        terminated.wait(every_s)
    return Notice(time.time() + seconds, "SIGTERM")


def drain(nodes: Nodes, notice: Notice, patience_s: float) -> bool:
    """Drains all nodes of this machine; waits until they have ended, or the deadline has passed.

    Args:
        nodes: The nodes.
        notice: Why and until when.
        patience_s: Time for which Ray may refuse or be out of reach before this gives up (seconds).

    Returns:
        Whether every node was drained that was there.
    """
    drained: set[str] = set()
    gives_up_at = min(time.time() + patience_s, notice.deadline)
    while (alive := nodes.alive()) and time.time() < notice.deadline:
        for node_id in sorted(alive - drained):
            try:
                nodes.drain(node_id, notice)
            except Exception as error:  # whatever it is, the next try may succeed
                log.warning("%s", error)
            else:
                left = notice.deadline - time.time()
                log.info("%s; the node %s is drained, %.0f s left", notice.reason, node_id, left)
                drained.add(node_id)
        if alive - drained and time.time() >= gives_up_at:
            return False
        time.sleep(RETRY_S)
    return not alive - drained


def main(arguments: Sequence[str] | None = None, nodes: Nodes | None = None) -> int:
    """Waits for a notice and drains this machine's nodes; returns 0 if Ray took it.

    Args:
        arguments: Those of the command line.
        nodes: The nodes; None: those of Ray.
    """
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("source", choices=["aws", "gcp", "file", "now"], help="who announces it")
    parser.add_argument("--address", help="HOST:PORT of the GCS (default: that of the node here)")
    parser.add_argument("--node-id", help="drain this node only (default: all on this machine)")
    parser.add_argument("--file", type=Path, help="the file whose appearance is a notice")
    parser.add_argument(
        "--seconds",
        type=float,
        default=GCP_SECONDS,
        help="from a notice to the end, where that is not said (default: %(default)s)",
    )
    parser.add_argument("--every", type=float, default=2.0, help="seconds between two questions")
    parser.add_argument("--metadata", default=LINK_LOCAL, help="URL of the metadata service")
    options = parser.parse_args(arguments)
    if (options.source == "file") != (options.file is not None):
        parser.error("--file belongs to `file`, which needs it")
    logging.basicConfig(level=logging.INFO, format="%(asctime)s spot: %(message)s")
    terminated = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: terminated.set())
    nodes = nodes or RayNodes(options.address, options.node_id)
    if options.source == "now":
        notice = Notice(time.time() + options.seconds, "told to drain now")
        return 0 if drain(nodes, notice, HOOK_PATIENCE_S) else 1
    polls: dict[str, Poll] = {
        "aws": AwsNotices(options.metadata).poll,
        "gcp": GcpNotices(options.metadata, options.seconds).poll,
        "file": partial(poll_file, options.file, options.seconds),
    }
    log.info("asking every %g s for a notice (%s)", options.every, options.source)
    notice = wait_for_notice(polls[options.source], terminated, options.every, options.seconds)
    return 0 if drain(nodes, notice, math.inf) else 1


if __name__ == "__main__":
    sys.exit(main())
