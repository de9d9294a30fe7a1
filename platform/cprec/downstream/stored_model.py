"""The forms in which a trained language model is stored, and how each is told and checked.

a checkpoint        manifest.json, adapter/ and, of a hybrid model, behaviour/
an adapter          a PEFT directory, such as the adapter/ of a checkpoint
a merged model      a model directory (config.json) and, of a hybrid model, behaviour/
"""

import posixpath
from dataclasses import dataclass
from enum import StrEnum

from cluster import storage
from cluster.errors import RunError
from cprec.encode.prompt import PROMPT_FILE, PromptTemplate, parse_template
from cprec.model.adapter_config import read_kind
from cprec.model.adapter_files import ADAPTER_CONFIG, ADAPTER_WEIGHTS
from cprec.runs import checkpoint

BEHAVIOUR_FOLDER = "behaviour"
"""Folder of a checkpoint that holds a hybrid model's projector and item embeddings."""
BEHAVIOUR_FILE = "behaviour.safetensors"
"""File of that folder that holds them."""

CARD_TAG = "cprec"
"""Tag in the metadata of every model card that is written here, but that of an exported base."""
MODEL_CONFIG = "config.json"
"""File that makes a folder a model directory."""


class Form(StrEnum):
    """How a model is stored."""

    CHECKPOINT = "checkpoint"
    ADAPTER = "adapter"
    MERGED = "merged model"


@dataclass(frozen=True)
class StoredModel:
    """A stored model.

    Attributes:
        uri: Its folder.
        form: How it is stored there.
    """

    uri: str
    form: Form

    @classmethod
    def at(cls, uri: str) -> "StoredModel":
        """Returns the model at a URI; what is neither adapter nor model is a checkpoint, or none.

        Args:
            uri: Its folder.
        """
        if not storage.exists(storage.join(uri, checkpoint.MANIFEST)):
            for name, form in ((ADAPTER_CONFIG, Form.ADAPTER), (MODEL_CONFIG, Form.MERGED)):
                if storage.exists(storage.join(uri, name)):
                    return cls(uri, form)
        return cls(uri, Form.CHECKPOINT)

    @property
    def adapter_uri(self) -> str | None:
        """Folder of the weights that are loaded onto the base; None of a merged model."""
        match self.form:
            case Form.CHECKPOINT:
                return storage.join(self.uri, checkpoint.ADAPTER)
            case Form.ADAPTER:
                return self.uri
        return None

    @property
    def named_base(self) -> tuple[str, str | None] | None:
        """Base and revision that the adapter names; None where there is no adapter, or no name."""
        if self.adapter_uri is None:
            return None
        _, config = read_kind(self.adapter_uri)
        base = config.get("base_model_name_or_path")
        return None if base is None else (str(base), config.get("revision"))

    @property
    def template(self) -> PromptTemplate | None:
        """Template of the prompts that the model was trained in; None of a base.

        Raises:
            RunError: This release does not have it.
        """
        if self.form != Form.MERGED:
            return checkpoint.read_template(self.uri)
        file = storage.join(self.uri, PROMPT_FILE)
        text = storage.read_text_if_exists(file)
        if text is None and not self._has_card_of_export():
            return None
        return parse_template(text, file)

    def _has_card_of_export(self) -> bool:
        """Returns whether a model directory was exported here, as its card says, and is no base."""
        card = storage.read_text_if_exists(storage.join(self.uri, "README.md")) or ""
        return f"\n- {CARD_TAG}\n" in card

    def verify(self) -> None:
        """Checks that all files of the model are there, and that those of a checkpoint are intact.

        Raises:
            RunError: A file is missing or damaged, or the URI names the adapter alone of a hybrid
                model.
        """
        if self.form == Form.CHECKPOINT:
            checkpoint.verify(self.uri)
        if self.form == Form.ADAPTER:
            if not storage.exists(storage.join(self.uri, ADAPTER_WEIGHTS)):
                raise RunError(f"{self.uri}: {ADAPTER_CONFIG}, but no {ADAPTER_WEIGHTS} beside it")
            parent = posixpath.dirname(self.uri)
            if storage.exists(storage.join(parent, BEHAVIOUR_FOLDER)):
                raise RunError(
                    f"{self.uri}: the adapter of a hybrid model, whose projector is beside it; "
                    f"name {parent}"
                )
