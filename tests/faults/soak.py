"""A soak: a run is killed, filled and poisoned at random, and must end as an undisturbed one.

    python tests/faults/soak.py --folder DIR --minutes 60 --seed 1
    python tests/faults/soak_nodes.py --folder DIR --kills 100 --seed 1     the same on three nodes

Every 5 to 60 seconds one thing happens to a run of simulated shoppers: a process dies, a domain is
appended, the stable phase is held or released, a file of a checkpoint is damaged, a request makes
no sense, a second driver is started, or the disk is full for some seconds. The driver is started
again whenever it ended. After that the run is left alone until its end. Then its plan is trained
once more without any fault, by as many workers at each sample, and the two are compared: audit,
steps, parameters.

It is no part of `make test`. The disk is filled only where DIR is on a small file system, such as
`mount -t tmpfs -o size=512m tmpfs DIR`.
"""

import argparse
import itertools
import json
import math
import os
import random
import shutil
import signal
import statistics
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Mapping
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import psutil

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "platform")]

from corpus.ingest import simulation  # noqa: E402
from corpus.store.tables import Corpus  # noqa: E402
from cprec.config.recipe_file import load_recipe  # noqa: E402
from cprec.runs import checkpoint  # noqa: E402
from cprec.runs.control.attempts import list_attempts  # noqa: E402
from tests.integration import jobs  # noqa: E402

SHORTEST_S, LONGEST_S = 5.0, 60.0
"""Seconds between two faults; short times are as frequent as long ones on a scale of logarithms."""

END_S = 3600.0
"""Seconds that the run may take to its end, once it is left alone."""

REFUSED_S = 300.0
"""Seconds in which a second driver must be refused."""

SMALL_DISK_BYTES = 4 << 30
"""A file system with more free bytes than this is not filled."""

FIRST_DOMAINS = ["Garden", "Office"]
LATER_DOMAINS = ["Sports", "Music", "Books", "Toys"]

BAD_REQUESTS = ("{garbage", "7", "null", "[]", "{}", '{"do": "relaese"}', '{"do": 7}', "\x00", "")

PROCESSES = {
    "worker": "ray::RayTrainWorker",
    "controller": "ray::ControllerActor",
    "data coordinator": "ray::SplitCoordinator",
    "trainer": "ray::TrainController",
}
"""What is killed by the title of its process."""

PROGRAMS = {"raylet": "raylet", "GCS": "gcs_server"}
"""What is killed by the name of its program."""


Fault = tuple[int, Callable[[], bool]]
"""How often something happens, as a weight, and how; it returns whether it could."""


class Soak:
    """One soak: the run, what happened to it, and how it took it.

    Attributes:
        TRAIN: Keys of `train` beside those of every soak.
    """

    TRAIN: ClassVar[dict[str, Any]] = {}

    def __init__(self, folder: Path, seed: int, users: int) -> None:
        """Builds the corpus and the recipe below a folder, unless they are there already."""
        self.folder, self.run_folder = folder, folder / "runs" / "soak"
        self.happened: Counter[str] = Counter()
        self.exit_codes: Counter[int] = Counter()
        self.recoveries_s: list[float] = []
        self.random = random.Random(seed)
        self.driver: subprocess.Popen[str] | None = None
        self._killed_at: float | None = None
        self._rows_at_resume: int | None = None
        self.recipe = folder / "recipe.yaml"
        if not self.recipe.exists():
            self._write_recipe(users)
            self._job("build_corpus", str(self.recipe))
        present = Corpus.open(f"{folder}/corpus").statistics()["domains"]
        self._later_domains = [name for name in LATER_DOMAINS if name not in present]

    def _write_recipe(self, users: int) -> None:
        """Writes the interactions of all domains, and a recipe that begins with the first ones."""
        simulate = {"users": users, "items_per_domain": 60}
        root = f"{self.folder}/shoppers"
        everything = {
            "root": root,
            "format": "simulated",
            "domains": FIRST_DOMAINS + LATER_DOMAINS,
            "held_out": ["Games"],
        }
        whole = load_recipe(str(jobs.recipe(self.folder, simulate=simulate, data=everything)))
        simulation.write_data_root(whole.data, whole.simulate, whole.seed)
        jobs.recipe(
            self.folder,
            run="soak",
            data={"root": root, "domains": FIRST_DOMAINS, "held_out": ["Games"]},
            schedule={
                "lr_max": 1e-3,
                "segment_samples": 256,
                "poll_samples": 64,
                "hold_open": True,
            },
            train={"global_batch": 32, "zero_stage": 1, "max_failures": 10_000, **self.TRAIN},
            checkpoint={"every_samples": 256, "keep": 5},
        )

    # -- processes

    def driver_environment(self) -> dict[str, str]:
        """Returns variables of drivers, beside those of this process."""
        return {}

    def roots(self) -> list[int]:
        """Returns the processes whose descendants can be killed."""
        return [] if self.driver is None else [self.driver.pid]

    def _job(self, job: str, *arguments: str, timeout_s: float = 300) -> int:
        """Runs a job to its end; returns its exit code."""
        with (self.folder / "jobs.log").open("ab") as log:
            command = [sys.executable, f"jobs/{job}.py", *arguments]
            ended = subprocess.run(
                command, cwd=ROOT, stdout=log, stderr=log, timeout=timeout_s, check=False
            )
        return ended.returncode

    def _start_driver(self) -> "subprocess.Popen[str]":
        return self._start("driver.log", self.driver_environment())

    def _start(
        self, log_name: str, environment: Mapping[str, str], *arguments: str
    ) -> "subprocess.Popen[str]":
        """Starts a training, which writes what it says to a log of the folder."""
        with (self.folder / log_name).open("a") as log:
            return subprocess.Popen(
                [sys.executable, "jobs/cpt.py", str(self.recipe), *arguments],
                cwd=ROOT,
                env={**os.environ, **environment},
                stdout=log,
                stderr=log,
                text=True,
                start_new_session=True,
            )

    def keep_driver(self) -> bool:
        """Starts the driver if none is at work; returns whether the run has ended well."""
        if self.driver is not None and (code := self.driver.poll()) is not None:
            self.exit_codes[code] += 1
            self.driver = None
            if code == 0:
                return True
            if code == 1:
                raise SystemExit(f"the driver ended with 1; see {self.folder / 'driver.log'}")
        if self.driver is None:
            self.driver = self._start_driver()
        return False

    def victims(self, matches: Callable[[psutil.Process], bool]) -> list[psutil.Process]:
        found = []
        for root in self.roots():
            with suppress(psutil.NoSuchProcess):
                for process in psutil.Process(root).children(recursive=True):
                    with suppress(psutil.NoSuchProcess, psutil.AccessDenied):
                        if matches(process):
                            found.append(process)
        return found

    def kill(self, victims: list[psutil.Process]) -> bool:
        """Kills one of the processes; returns whether there was one."""
        if not victims:
            return False
        with suppress(psutil.NoSuchProcess):
            self.random.choice(victims).kill()
        self.note_kill()
        return True

    def note_kill(self) -> None:
        """Notes that something was killed, from which the run recovers."""
        self._killed_at, self._rows_at_resume = time.time(), None

    # -- faults: each returns whether it could happen

    def kill_titled(self, title: str) -> bool:
        """Kills a process by the beginning of its title."""
        return self.kill(self.victims(lambda p: (p.cmdline() or [""])[0].startswith(title)))

    def kill_program(self, name: str) -> bool:
        """Kills a process by the name of its program."""
        return self.kill(self.victims(lambda p: Path((p.cmdline() or [""])[0]).name == name))

    def kill_driver(self) -> bool:
        """Kills the driver alone."""
        return self.driver is not None and self.kill([psutil.Process(self.driver.pid)])

    def kill_everything(self) -> bool:
        """Kills the driver and all processes of its Ray session."""
        if self.driver is None:
            return False
        driver = psutil.Process(self.driver.pid)
        with suppress(psutil.NoSuchProcess):
            driver.suspend()
            for process in driver.children(recursive=True):
                with suppress(psutil.NoSuchProcess):
                    process.kill()
        return self.kill([driver])

    def append(self) -> bool:
        """Appends the next domain."""
        if not self._later_domains or not self.run_folder.joinpath("plan.json").exists():
            return False
        domain = self._later_domains.pop(0)
        if self._job("append_domain", str(self.recipe), "--data.domains", domain) != 0:
            self._later_domains.insert(0, domain)
            return False
        return True

    def release_and_hold(self) -> bool:
        """Releases the stable phase and holds it again, unless it would anneal in between."""
        status = self._status()
        if status.get("state") != "training" or status["samples"] > 0.8 * status["S"]:
            return False
        return self.control("release") and self.control("hold")

    def control(self, action: str) -> bool:
        return self._job("control", str(self.recipe), action) == 0

    def poison(self) -> bool:
        """Leaves requests that make no sense, and one that is a folder."""
        requests = self.run_folder / "requests"
        requests.mkdir(parents=True, exist_ok=True)
        for number, content in enumerate(BAD_REQUESTS):
            (requests / f"bad-{self.random.randrange(1 << 30)}-{number}.json").write_text(content)
        (requests / f"folder-{self.random.randrange(1 << 30)}.json").mkdir()
        return True

    def intrude(self) -> bool:
        """Starts a second driver of the run: one of the two must be refused.

        Where the first one ends meanwhile, the second one takes its place.
        """
        if self.driver is None:
            return False
        intruder = self._start_driver()
        end = time.monotonic() + REFUSED_S
        while intruder.poll() is None and time.monotonic() < end:
            if (code := self.driver.poll()) is not None:
                self.exit_codes[code] += 1
                self.driver = intruder
                return True
            time.sleep(0.2)
        if intruder.poll() != 1 and self.driver.poll() is None:
            self._end(intruder)
            raise SystemExit(f"a second driver was not refused: it ended with {intruder.poll()}")
        return True

    def damage(self) -> bool:
        """Flips a bit of the newest checkpoint, unless it is the only one."""
        manifests = sorted((self.run_folder / "checkpoints").glob("*/manifest.json"))
        if len(manifests) < 2:
            return False
        victim = manifests[-1].parent / checkpoint.OPTIMIZER
        content = bytearray(victim.read_bytes())
        content[self.random.randrange(len(content))] ^= 1
        victim.write_bytes(bytes(content))
        return True

    def fill_disk(self) -> bool:
        """Fills the file system for some seconds."""
        ballast = self.folder / "ballast"
        if shutil.disk_usage(self.folder).free > SMALL_DISK_BYTES:
            return False
        try:
            with ballast.open("wb", buffering=0) as file, suppress(OSError):
                while True:
                    file.write(bytes(1 << 16))
            time.sleep(self.random.uniform(4, 10))
        finally:
            ballast.unlink()
        return True

    # -- the soak

    def faults(self) -> dict[str, Fault]:
        """Returns what can happen, by name."""
        kills: dict[str, Fault] = {
            "kill: driver": (3, self.kill_driver),
            "kill: everything": (2, self.kill_everything),
        }
        for name, title in PROCESSES.items():
            kills[f"kill: {name}"] = (3, partial(self.kill_titled, title))
        for name, program in PROGRAMS.items():
            kills[f"kill: {name}"] = (2, partial(self.kill_program, program))
        return {
            **kills,
            "append": (2, self.append),
            "release and hold": (2, self.release_and_hold),
            "bad requests": (2, self.poison),
            "second driver": (1, self.intrude),
            "damaged checkpoint": (1, self.damage),
            "full disk": (2, self.fill_disk),
        }

    def _watch_recovery(self) -> None:
        """Notes how long it took from the last kill to the first step after it."""
        if self._killed_at is None:
            return
        events = jobs.lines(self.run_folder / "events.jsonl")
        if not any(e["event"] == "resumed" and e["time"] > self._killed_at for e in events):
            return
        rows = len(jobs.lines(self.run_folder / "trace.jsonl"))
        if self._rows_at_resume is None:
            self._rows_at_resume = rows
        elif rows > self._rows_at_resume:
            self.recoveries_s.append(time.time() - self._killed_at)
            self._killed_at = None

    def wait(self, seconds: float) -> bool:
        """Lets the run go on for some time; returns whether it has ended."""
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            if self.keep_driver():
                return True
            with suppress(OSError, ValueError):  # a file that is being replaced
                self._watch_recovery()
            time.sleep(0.5)
        return False

    @property
    def kills(self) -> int:
        """Kills so far, of processes and of nodes."""
        return sum(number for name, number in self.happened.items() if name.startswith("kill: "))

    def disturb(self, minutes: float, kills: float = math.inf) -> None:
        """Lets something happen every 5 to 60 seconds, for some minutes or until so many kills."""
        faults = self.faults()
        names, weights = list(faults), [weight for weight, _ in faults.values()]
        end = time.monotonic() + 60 * minutes
        while time.monotonic() < end and self.kills < kills:
            logarithm = self.random.uniform(math.log(SHORTEST_S), math.log(LONGEST_S))
            if self.wait(math.exp(logarithm)):
                return
            name = self.random.choices(names, weights)[0]
            if faults[name][1]():
                self.happened[name] += 1
                print(f"{time.strftime('%H:%M:%S')} {name}; {self._progress()}", flush=True)

    def _status(self) -> dict[str, Any]:
        """Returns what the run says of itself; nothing if it says nothing."""
        with suppress(OSError, ValueError):
            status: dict[str, Any] = json.loads((self.run_folder / "status.json").read_text())
            return status
        return {}

    def _progress(self) -> str:
        status = self._status()
        return f"{status.get('samples', 0):,} of {status.get('A', 0):,} samples"

    def finish(self) -> None:
        """Leaves the run alone until it has ended."""
        end = time.monotonic() + END_S
        while time.monotonic() < end:
            if self.wait(5):
                return
            status = self._status()
            if status.get("hold") and status.get("state") == "waiting":
                self.control("release")
        raise SystemExit(f"the run did not end within {END_S:,.0f} s; {self._progress()}")

    def stop(self) -> None:
        """Ends what is still running."""
        if self.driver is not None and self.driver.poll() is None:
            self._end(self.driver)

    @staticmethod
    def _end(driver: "subprocess.Popen[str]") -> None:
        driver.send_signal(signal.SIGTERM)
        with suppress(subprocess.TimeoutExpired):
            driver.wait(timeout=120)
        if driver.poll() is None:
            os.killpg(driver.pid, signal.SIGKILL)

    def compare(self) -> dict[str, Any]:
        """Trains the plan of the run once more, without any fault, and compares the two."""
        sizes = find_world_sizes(self.run_folder)
        undisturbed = self._train_again(sizes)
        audit = json.loads((self.run_folder / "audit.json").read_text())
        weights = [_last_weights(folder) for folder in (self.run_folder, undisturbed)]
        return {
            "planned": audit["planned"],
            "missing": audit["missing"],
            "repeated": audit["repeated"],
            "groups of workers": len(list_attempts(str(self.run_folder))),
            "steps": len(jobs.lines(self.run_folder / "trace.jsonl")),
            "changes of the number of workers": len(sizes) - 1,
            "steps are equal": _steps(self.run_folder) == _steps(undisturbed),
            "parameters are equal, bit for bit": weights[0].keys() == weights[1].keys()
            and all(bool((weights[1][name] == value).all()) for name, value in weights[0].items()),
        }

    def _train_again(self, sizes: list[tuple[int, int]]) -> Path:
        """Trains the plan of the run, each sample by as many workers as there.

        Args:
            sizes: `find_world_sizes` of the run.

        Returns:
            The folder of the other run.
        """
        names = (f"undisturbed-{number}" for number in itertools.count())  # of each comparison
        folder = next(f for name in names if not (f := self.run_folder.parent / name).exists())
        folder.mkdir()
        shutil.copy(self.run_folder / "plan.json", folder)
        # What was appended too late for the run is not for the other one either.
        options = ["--corpus-version", str(self._status()["corpus_version"])]
        options += ["--run", folder.name, "--schedule.hold_open", "false"]
        stops = [samples for samples, _ in sizes[1:]]
        if stops:
            options += ["--checkpoint.milestones", ",".join(map(str, stops))]
        for (_, workers), stop in zip(sizes, [*stops, None], strict=True):
            arguments = [*options, "--workers", str(workers)]
            if stop is not None:
                self._train_until(stop, folder, arguments)
            elif code := self._job("cpt", str(self.recipe), *arguments, timeout_s=END_S):
                raise SystemExit(f"the other run ended with {code}; see {self.folder}/jobs.log")
        return folder

    def _train_until(self, stop: int, folder: Path, arguments: list[str]) -> None:
        """Trains a run up to a checkpoint at `stop` samples, and leaves none behind it."""
        driver = self._start("jobs.log", {}, *arguments)
        saved = folder / "checkpoints"
        jobs.kill_when(driver, lambda: any(saved.glob(f"{stop:012d}-*/manifest.json")))
        for found in saved.iterdir():
            if int(found.name.partition("-")[0]) > stop:
                shutil.rmtree(found)


def find_world_sizes(folder: Path) -> list[tuple[int, int]]:
    """Returns from which sample on how many workers trained what counts of a run, in order."""
    sizes: list[tuple[int, int]] = []
    for attempt in list_attempts(str(folder)):
        sizes = [size for size in sizes if size[0] < attempt.samples]
        if not sizes or sizes[-1][1] != attempt.workers:
            sizes.append((attempt.samples, attempt.workers))
    return sizes


def _steps(folder: Path) -> list[list[Any]]:
    """Returns what must be equal in the traces of two runs of the same plan."""
    keys = ("step", "samples", "lr", "loss", "ids_digest", "phase", "sources")
    return [[row[key] for key in keys] for row in jobs.lines(folder / "trace.jsonl")]


def _last_weights(folder: Path) -> dict[str, Any]:
    uri = checkpoint.latest_uri(str(folder))
    return dict(checkpoint.load_training_state(uri).weights)


def run_soak(soak: Soak, minutes: float, kills: float = math.inf) -> dict[str, Any]:
    """Disturbs a run for some minutes or until so many kills; returns what it showed."""
    begin = time.monotonic()
    try:
        soak.disturb(minutes, kills)
        disturbed_s = time.monotonic() - begin
        soak.finish()
    finally:
        soak.stop()
    return {
        "minutes with faults": round(disturbed_s / 60, 1),
        "minutes in all": round((time.monotonic() - begin) / 60, 1),
        "kills": soak.kills,
        "happened": dict(sorted(soak.happened.items())),
        "exit codes of the driver": {str(c): n for c, n in sorted(soak.exit_codes.items())},
        "recoveries": len(soak.recoveries_s),
        "recovery (s), median": round(statistics.median(soak.recoveries_s or [0.0]), 1),
        "recovery (s), longest": round(max(soak.recoveries_s, default=0.0), 1),
        **soak.compare(),
    }


def is_well(result: dict[str, Any]) -> bool:
    """Returns whether what had to be equal was, and no sample was missing or repeated."""
    return all(
        result[key] for key in result if key.endswith(("are equal", "bit for bit"))
    ) and not (result["missing"] or result["repeated"])


def parse_options(parser: argparse.ArgumentParser) -> argparse.Namespace:
    """Adds what all soaks take, and reads the command line."""
    parser.add_argument("--folder", type=Path, required=True, help="an empty folder")
    parser.add_argument("--seed", type=int, default=1, help="of the choice of faults")
    parser.add_argument("--go-on", action="store_true", help="with a soak that was stopped")
    options = parser.parse_args()
    options.folder = options.folder.absolute()
    options.folder.mkdir(parents=True, exist_ok=True)
    if any(options.folder.iterdir()) is not options.go_on:
        state = "holds no soak" if options.go_on else "is not empty; see --go-on"
        parser.error(f"{options.folder} {state}")
    return options


def main() -> int:
    """Runs a soak and prints what it showed; returns 0 if the run ended as an undisturbed one."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--minutes", type=float, default=60.0, help="how long faults happen")
    parser.add_argument("--users", type=int, default=2000, help="simulated shoppers")
    options = parse_options(parser)
    soak = Soak(options.folder, options.seed, options.users)
    result = {"seed": options.seed, **run_soak(soak, options.minutes)}
    print(json.dumps(result, indent=1))
    return 0 if is_well(result) else 1


if __name__ == "__main__":
    sys.exit(main())
