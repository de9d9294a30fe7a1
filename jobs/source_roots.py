"""Makes `cprec`, `corpus` and `cluster` importable for a job that runs from a plain checkout.

`python jobs/X.py` puts only `jobs/` on the path, also under `ray job submit --working-dir .`.
Workers get the same code as `py_modules` (cluster/ray_session.py).
"""

import sys
from importlib.util import find_spec
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent

# After jobs/, and before everything that is installed: a job runs the checkout that it is in, even
# where another one is installed. `platform` stands before the standard library's module of that
# name, which does no harm while it is no package (docs/decisions/001-platform-is-a-source-root.md).
for root in (ROOT, ROOT / "platform"):
    sys.path.insert(1, str(root))

if missing := [name for name in ("deltalake", "pydantic", "ruamel") if find_spec(name) is None]:
    sys.exit(
        f"error: {sys.executable} lacks libraries of cprec ({', '.join(missing)}, ...): run "
        f"`make environment` in {ROOT}, then `source .venv/bin/activate`"
    )
