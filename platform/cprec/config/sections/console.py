"""Section `console` of the recipe: where the console listens."""

from pydantic import Field

from cluster.section import Section


class ConsoleSettings(Section):
    """`console`: where jobs/console.py listens, and how often it looks at the storage."""

    host: str = Field("127.0.0.1", description="address to listen on; 0.0.0.0: all interfaces")
    port: int = Field(8090, ge=0, le=65535, description="port to listen on; 0: any that is free")
    refresh_s: float = Field(
        2.0,
        ge=0.2,
        description="time (seconds) between two looks at the files of runs, at least; "
        "a look that takes much CPU time is followed by a longer pause",
    )
