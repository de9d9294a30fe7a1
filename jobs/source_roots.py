"""Makes `cprec`, `corpus` and `cluster` importable for a job that runs from a plain checkout, as under `ray job submit --working-dir .`.

`python jobs/X.py` puts only `jobs/` on the path. Where the distribution is installed this adds nothing. Workers get the same code as `py_modules` (cluster/session.py).
"""

import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent

# Behind the standard library, so that `platform` stays the standard library's.
for root in (ROOT, ROOT / "platform"):
    if str(root) not in sys.path:
        sys.path.append(str(root))
