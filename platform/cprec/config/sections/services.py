"""What a job connects to: MLflow and Ray."""

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
