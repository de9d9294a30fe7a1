"""Continual pre-training of large language models for recommendation, on Ray.

    import cprec

    recipe = cprec.Recipe.from_file("my.yaml", run="first")
    cprec.Corpus.build(recipe)
    run = cprec.pretrain(recipe)
    run.model().rank(["oak lamp"], ["steel mug", "garden hose"])

`__all__` lists what is public. A name is imported when it is first used, so that `import cprec`
costs nothing.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from cluster.errors import CprecError, PlatformFault, UserError
    from cprec.api.corpus import Corpus
    from cprec.api.evaluation import Promotion, evaluate, promote
    from cprec.api.model import Model
    from cprec.api.recipe import Recipe
    from cprec.api.run import Run
    from cprec.api.training import pretrain, start

__all__ = [
    "Corpus",
    "CprecError",
    "Model",
    "PlatformFault",
    "Promotion",
    "Recipe",
    "Run",
    "UserError",
    "evaluate",
    "pretrain",
    "promote",
    "start",
]

_MODULES = {
    "cluster.errors": ("CprecError", "PlatformFault", "UserError"),
    "cprec.api.corpus": ("Corpus",),
    "cprec.api.evaluation": ("Promotion", "evaluate", "promote"),
    "cprec.api.model": ("Model",),
    "cprec.api.recipe": ("Recipe",),
    "cprec.api.run": ("Run",),
    "cprec.api.training": ("pretrain", "start"),
}
"""Where the public names are, by module."""


def __getattr__(name: str) -> Any:
    """Imports a public name, and keeps it."""
    for module, names in _MODULES.items():
        if name in names:
            globals()[name] = value = getattr(import_module(module), name)
            return value
    raise AttributeError(f"module 'cprec' has no attribute {name!r}")


def __dir__() -> list[str]:
    """Lists the public names, for completion in a shell or a notebook."""
    return __all__
