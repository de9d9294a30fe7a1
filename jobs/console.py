# PYTHON_ARGCOMPLETE_OK
"""Console: a web page that shows runs and models as they are now, and steers them.

    python jobs/console.py my.yaml
    python jobs/console.py my.yaml --as anna --console.port 8091
    python jobs/console.py --storage s3://bucket/runs --dry-run

Prints the address with a token, which the page needs. CPREC_CONSOLE_TOKEN sets the token instead.
The page shows all runs below `storage`, one run live, and the registered models; it holds,
releases, anneals and stops a run, appends a domain of `data.root`, promotes and rolls back.
"""

import source_roots  # noqa: F401

import argparse
import getpass
import sys

from cluster.console import print_line
from cprec.config.command import Job, add_as_flag, main
from cprec.config.recipe import Recipe

KEYS = ("storage", "corpus", "mlflow", "data", "console")


def run_job(recipe: Recipe, options: argparse.Namespace) -> None:
    """Serves the console until Ctrl-C or SIGTERM."""
    from cprec.workflows.console import describe_console, read_or_make_token, run_console

    token, is_new = read_or_make_token()
    print_line(describe_console(recipe))
    if not options.dry_run:
        name = options.by or getpass.getuser()
        run_console(recipe, sys.argv[1:], name, print_line, token, is_new)


JOB = Job(run_job, __doc__, KEYS, add_as_flag, again="the same command starts the console again")

if __name__ == "__main__":
    sys.exit(main(JOB))
