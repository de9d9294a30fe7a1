"""Makes `cprec`, `corpus` and `cluster` importable for a job that runs from a plain checkout, as under `ray job submit --working-dir .`.

`python jobs/X.py` puts only `jobs/` on the path. Workers get the same code as `py_modules` (cluster/ray_session.py).
"""

import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent

# Behind jobs/, before everything that is installed: a job runs the checkout that it lies in, also where another one is installed.
# That `platform` comes before the standard library's does no harm while it is no package (docs/decisions/001-platform-is-a-source-root.md).
for root in (ROOT, ROOT / "platform"):
    sys.path.insert(1, str(root))
