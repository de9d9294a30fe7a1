"""What a job connects to, and what it reports: MLflow, Ray, cost."""

from pydantic import Field

from cluster.section import Section
from corpus.settings import SafeName


class MlflowSettings(Section):
    """`mlflow`: tracking and registry."""

    uri: str | None = Field(
        None,
        description="tracking server or SQL URI; "
        "default: SQLite beside the runs (<storage>/mlflow.db, local storage only)",
    )
    experiment: str = Field("cprec", min_length=1, description="experiment that holds the runs")
    model: SafeName = Field("cprec", description="name of the registered model")


class ClusterSettings(Section):
    """`cluster`: the Ray session."""

    address: str = Field(
        "auto",
        description="auto: the cluster this job runs in, else a local session; "
        "local: always a local one; or host:port",
    )
    num_cpus: int | None = Field(
        None,
        ge=1,
        description="logical CPUs of a local session; "
        "default: as many as the recipe's workers need",
    )


class CostSettings(Section):
    """`cost`: what an hour of compute costs, for the report of a run."""

    price_per_worker_hour: float | None = Field(
        None,
        ge=0,
        allow_inf_nan=False,
        description="price of an hour of one worker, with its GPU if it has one; null: no estimate",
    )
    currency: str = Field("USD", max_length=20, description="what the price is in")
