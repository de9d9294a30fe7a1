"""A secret in a recipe is refused, and no message repeats it."""

import argparse
import json
from dataclasses import replace
from pathlib import Path

import pytest

from cluster.errors import RecipeError
from cprec.config.cli import Job, parse_arguments
from cprec.config.command import main
from cprec.config.recipe import Recipe
from cprec.config.recipe_file import iter_keys, load_recipe
from cprec.config.secrets import redact, reject_secrets

PLANTED = "pl4nted"
SECRETS = [
    f"postgresql://user:{PLANTED}@host/mlflow",
    f"postgresql+psycopg2://user:a/{PLANTED}@host:5432/mlflow",
    f"postgresql://host/mlflow?user=u&password={PLANTED}",
    f"https://:{PLANTED}@mlflow.example",
    f"s3://KEY:{PLANTED}@bucket/runs",
    f"https://bucket.s3.amazonaws.com/x?X-Amz-Algorithm=A&X-Amz-Signature={PLANTED}&X-Amz-Date=1",
    f"https://account.blob.core.windows.net/x?sv=1&sig={PLANTED}",
    f"https://storage.googleapis.com/x?X-Goog-Signature={PLANTED}",
    f"https://hub.example/base?access_token={PLANTED}",
    f"AWS_SECRET_ACCESS_KEY={PLANTED}",
    f"hf_{PLANTED}{'a' * 30}",
    f"Authorization: Bearer {PLANTED}.eyJhbGci.x-y_z",
    f"authorization: Basic {PLANTED}6cGFzcw==",
    f"DefaultEndpointsProtocol=https;AccountName=me;AccountKey={PLANTED}+/Ab==;EndpointSuffix=x",
    f"Endpoint=sb://me.servicebus.windows.net/;SharedAccessKey={PLANTED}=",
]
NO_SECRETS = [
    "http://127.0.0.1:5000",
    "http://host:5000/path@x",
    "s3://bucket/run:1@x",
    "sqlite:////place/mlflow.db",
    "organisation/model-7b",
    "models:/cprec@champion",
    "s3://bucket/tokens=1/secret-santa",
    "the bearer is a basic authorization: none",
    "s3://bucket/accountkeys/bearer certificates",
]


@pytest.mark.parametrize("secret", SECRETS)
@pytest.mark.parametrize("key", ["storage", "mlflow.uri", "model.base", "data.root"])
def test_a_secret_in_a_key_is_refused_without_repeating_it(
    tmp_path: Path, secret: str, key: str
) -> None:
    file = tmp_path / "recipe.yaml"
    section, _, name = key.partition(".")
    file.write_text(json.dumps({section: {name: secret} if name else secret}))
    for arguments in ([str(file)], [f"--{key}", secret]):
        with pytest.raises(RecipeError, match=f"{key} holds .* in the environment") as caught:
            parse_arguments(arguments, JOB, file if arguments[0] == str(file) else EMPTY)
        assert PLANTED not in str(caught.value)


JOB = Job(lambda recipe, options: None, "A job.", ())
EMPTY = Path(__file__).resolve().parents[4] / "jobs" / "recipes" / "demo.yaml"


@pytest.mark.parametrize("secret", SECRETS)
@pytest.mark.parametrize(
    "template",
    [
        '{"mlflow": SECRET}',
        '{"mlflow": {"uri": [SECRET]}}',
        '{"train": {"global_batch": SECRET}}',
        '{"data": {"k_core": [SECRET]}}',
        '{"storage": {"uri": SECRET}}',
        '{"mlflow": {SECRET: 1}}',
        '{"mlflow": {"uri": SECRET',
        '{"mlflow": {"uri": SECRET}, "mlflow": {"uri": SECRET}}',
    ],
)
def test_a_secret_in_a_wrong_recipe_is_not_repeated(
    tmp_path: Path, template: str, secret: str
) -> None:
    file = tmp_path / "recipe.yaml"
    file.write_text(template.replace("SECRET", json.dumps(secret)))
    with pytest.raises(RecipeError) as caught:
        load_recipe(str(file))
    assert PLANTED not in redact(str(caught.value))


def test_a_secret_in_a_flag_is_refused() -> None:
    def add_flag(parser: argparse.ArgumentParser) -> None:
        parser.add_argument("--text")

    with pytest.raises(RecipeError, match="text holds a password"):
        parse_arguments(["--text", SECRETS[4]], replace(JOB, add_flags=add_flag), EMPTY)


@pytest.mark.parametrize("text", NO_SECRETS)
def test_what_is_no_secret_stays(text: str) -> None:
    assert redact(text) == text
    reject_secrets({"storage": text}, "test")


def test_the_defaults_hold_no_secret() -> None:
    reject_secrets(Recipe().flatten(), "the defaults")
    assert all(redact(key.description) == key.description for key in iter_keys())


@pytest.mark.parametrize("error", [RecipeError, ValueError])
def test_a_job_that_fails_prints_no_secret(
    error: type[Exception], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(recipe: Recipe, options: object) -> None:
        raise error(f"cannot reach {SECRETS[0]}")

    monkeypatch.setattr("sys.argv", ["job"])
    assert main(Job(fail, "fails", ())) == (1 if error is RecipeError else 2)
    printed = capsys.readouterr()
    assert "cannot reach postgresql://***@host/mlflow" in printed.err
    assert PLANTED not in printed.err + printed.out
