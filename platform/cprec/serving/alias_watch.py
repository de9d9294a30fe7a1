"""Decides whether the model that is served changes, from where its alias points. Pure."""

from dataclasses import dataclass, replace


@dataclass(frozen=True)
class AliasWatch:
    """Which version is served for an alias, and which one failed to load.

    Attributes:
        served: Number of the version that is served.
        failed: Number of a version that the alias pointed at and that could not be loaded; it is
            not tried again until the alias has moved.
    """

    served: int
    failed: int | None = None

    def wants(self, pointed: int | None) -> bool:
        """Returns whether the version that the alias points at is to be loaded.

        Args:
            pointed: Its number; None if the alias is gone, which changes nothing.
        """
        return pointed is not None and pointed not in (self.served, self.failed)

    def after_success(self, number: int) -> "AliasWatch":
        """Returns what is known once a version is served."""
        return AliasWatch(number)

    def after_failure(self, number: int) -> "AliasWatch":
        """Returns what is known once a version could not be loaded."""
        return replace(self, failed=number)

    def after_look(self, pointed: int | None) -> "AliasWatch":
        """Returns what is known once the alias was looked up: a version that it left may return."""
        return self if pointed == self.failed else replace(self, failed=None)
