"""The ladder of model tiers, weak to strong: what each tier is, how it is reached and what it costs.

Read from a YAML file (`examples/tiers.yaml` explains each field). This module is pure logic over the file's content; it
loads no model and opens no connection: `core.clients` does.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from typing import Any, Literal, Self, overload

import numpy as np
import numpy.typing as npt
import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from celr_ray import storage
from celr_ray.errors import ConfigError
from celr_ray.redact import redact_text

__all__ = ["LIMIT_FIELDS", "Tier", "TierLadder", "load_tiers"]

_TOKENS_PER_PRICE = 1_000_000

_FIELDS_OF = {
    "vllm": {"num_gpus"},
    "openai": {"base_url", "api_key_env", "tokenizer", "timeout_s", "max_retries", "concurrency"},
}
"""Fields that mean something for one engine only."""

LIMIT_FIELDS = ("max_tokens", "max_completion_tokens")
"""What servers call the limit on an answer."""

_IntArray = npt.NDArray[np.integer[Any]]
_FloatArray = npt.NDArray[np.float64]


class Tier(BaseModel):
    """One model of the ladder."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    name: str = Field(min_length=1, description="what logs and tasks call this tier")
    engine: Literal["vllm", "openai"] = Field(
        description="vllm = loaded by the worker itself; openai = a server that speaks OpenAI's chat API"
    )
    model: str = Field(
        min_length=1,
        description="vllm: name or folder that vLLM loads, or smollm2 or qwen2.5-coder-1.5b; openai: the server's name",
    )
    input_usd_per_mtok: float = Field(ge=0, description="price of a million prompt tokens, US$")
    output_usd_per_mtok: float = Field(ge=0, description="price of a million generated tokens, US$")
    context_window: int = Field(ge=2, description="most tokens of prompt and answer together")
    max_output_tokens: int = Field(ge=1, description="most tokens of one answer; a worst case is priced with it")
    temperature: float = Field(0.0, ge=0, le=2, description="0 = greedy")
    top_p: float = Field(1.0, gt=0, le=1, description="sample from the likeliest tokens with this mass; 1 = all")
    num_gpus: float = Field(0, ge=0, description="vllm: GPUs of the engine, or the part of one; 0 = CPU")
    engine_kwargs: dict[str, Any] = Field(
        default_factory=dict,
        description="vllm: arguments of vllm.LLM; openai: more fields of each request, null leaves a default one out. "
        "chat_template_kwargs goes to the chat template",
    )
    base_url: str | None = Field(
        None, pattern=r"^https?://[^\s/]+", description="openai: the server, such as http://127.0.0.1:8000/v1"
    )
    api_key_env: str | None = Field(
        None,
        pattern=r"^[A-Za-z_][A-Za-z0-9_]*$",
        description="openai: name of the environment variable that holds the key; null = the server needs none",
    )
    tokenizer: str | None = Field(
        None,
        min_length=1,
        description="openai: name or folder of the model's tokenizer, as transformers loads it, to count prompt tokens "
        "exactly; null = an upper bound from the text's length",
    )
    timeout_s: float = Field(
        120.0, gt=0, description="openai: seconds without an answer before a try is given up; servers may bill it"
    )
    max_retries: int = Field(3, ge=0, le=100, description="openai: further tries after time-outs, 429, 5xx, no contact")
    concurrency: int = Field(16, ge=1, description="openai: requests at the same time")

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.max_output_tokens >= self.context_window:
            raise ValueError(
                f"max_output_tokens ({self.max_output_tokens}) leaves no room for a prompt in context_window "
                f"({self.context_window}): make it smaller"
            )
        if self.engine == "openai" and self.base_url is None:
            raise ValueError("base_url is missing: engine openai needs the server's address")
        other = "openai" if self.engine == "vllm" else "vllm"
        fields = type(self).model_fields
        if foreign := sorted(name for name in _FIELDS_OF[other] if getattr(self, name) != fields[name].default):
            raise ValueError(f"{', '.join(foreign)} means nothing for engine {self.engine}: remove it")
        if self.engine == "openai":
            self._check_request()
        if self.num_gpus > 1 and not self.num_gpus.is_integer():
            raise ValueError(f"num_gpus must be a whole number above 1, or a part of one GPU; it is {self.num_gpus:g}")
        return self

    def _check_request(self) -> None:
        """Refuse fields of a request by which an answer could cost more than its worst case, or not be read."""
        for name in LIMIT_FIELDS:
            limit = self.engine_kwargs.get(name)
            if limit is not None and not (isinstance(limit, int) and 1 <= limit <= self.max_output_tokens):
                raise ValueError(
                    f"engine_kwargs.{name} is {limit!r}, but worst cases are priced with max_output_tokens "
                    f"({self.max_output_tokens}): set that one"
                )
        for name, usual in (("n", 1), ("stream", False)):
            if self.engine_kwargs.get(name) not in (None, usual):
                raise ValueError(f"engine_kwargs.{name} must be {usual}: one answer is read and paid for; remove it")

    @overload
    def price_usd(self, prompt_tokens: int, output_tokens: int) -> float: ...

    @overload
    def price_usd(self, prompt_tokens: _IntArray, output_tokens: _IntArray | int) -> _FloatArray: ...

    def price_usd(self, prompt_tokens: _IntArray | int, output_tokens: _IntArray | int) -> _FloatArray | float:
        """Return what a call costs: (prompt · input price + output · output price) / 10⁶.

        Args:
            prompt_tokens: tokens of the prompt, a number or [N].
            output_tokens: tokens of the answer, a number or, for prompts [N], also [N].

        Returns:
            US$, a number or [N].
        """
        total = prompt_tokens * self.input_usd_per_mtok + output_tokens * self.output_usd_per_mtok
        return total / _TOKENS_PER_PRICE

    @overload
    def worst_case_usd(self, prompt_tokens: int) -> float: ...

    @overload
    def worst_case_usd(self, prompt_tokens: _IntArray) -> _FloatArray: ...

    def worst_case_usd(self, prompt_tokens: _IntArray | int) -> _FloatArray | float:
        """Return the most that a call can cost: its price with an answer of `max_output_tokens`, US$, shaped alike."""
        return self.price_usd(prompt_tokens, self.max_output_tokens)


class TierLadder(BaseModel):
    """The tiers, weak to strong."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    tiers: tuple[Tier, ...] = Field(min_length=1, description="weak to strong")

    @model_validator(mode="after")
    def _check_names(self) -> Self:
        names = [tier.name for tier in self.tiers]
        if twice := sorted({name for name in names if names.count(name) > 1}):
            raise ValueError(f"two tiers are called {twice[0]!r}: give each its own name")
        return self

    @property
    def n_tiers(self) -> int:
        """How many tiers there are."""
        return len(self.tiers)

    def index(self, name: str) -> int:
        """Return a tier's position, 0 = weakest.

        Raises:
            ConfigError: no tier has this name.
        """
        names = [tier.name for tier in self.tiers]
        if name not in names:
            raise ConfigError(f"no tier is called {name!r}: the ladder has {', '.join(names)}")
        return names.index(name)

    def warnings(self) -> list[str]:
        """Return what is allowed but likely not meant, one sentence each."""
        found = []
        if self.n_tiers == 1:
            found.append(f"the ladder has one tier ({self.tiers[0].name}): ESCALATE is never valid")
        for weak, strong in zip(self.tiers, self.tiers[1:], strict=False):
            if strong.price_usd(1, 1) < weak.price_usd(1, 1):
                found.append(f"tier {strong.name} is cheaper than {weak.name} below it: is the order weak to strong?")
        return found


def load_tiers(uri: str) -> TierLadder:
    """Read a ladder from a YAML file `{tiers: [{name, engine, model, …}, …]}`.

    Raises:
        InputError: the file cannot be read.
        ConfigError: it is no such YAML; the message names file, tier, field, value and what to do.
    """
    try:
        document = yaml.safe_load(storage.read_bytes(uri))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"{uri} is no YAML: {' '.join(str(error).split())}") from error
    if not isinstance(document, Mapping) or not isinstance(document.get("tiers"), list):
        raise ConfigError(f"{uri} has no list `tiers:`; see examples/tiers.yaml for the form")
    try:
        return TierLadder.model_validate(document)
    except ValidationError as error:
        items = error.errors(include_url=False)
        # pydantic also calls the list too short where its tiers are wrong
        items = [item for item in items if item["type"] != "too_short" or len(items) == 1]
        raise ConfigError(f"{uri}: " + "; ".join(_explain(item, document["tiers"]) for item in items)) from error


def _explain(item: Mapping[str, Any], tiers: list[Any]) -> str:
    """Turn one of pydantic's errors into words: tier, field, value, what to do."""
    place, kind = list(item["loc"]), item["type"]
    tier = _name_tier(place[1], tiers) if len(place) > 1 else ""
    field = ".".join(str(part) for part in place[2:] or place[:1])
    message = item["msg"].removeprefix("Value error, ")
    if kind == "missing":
        return f"{tier}{field} is missing: add it ({_describe(field)})"
    if kind == "extra_forbidden":  # its value is not shown: it may be a key
        close = difflib.get_close_matches(field, Tier.model_fields, n=1)
        return f"{tier}there is no field {field}: {f'did you mean {close[0]}?' if close else 'remove it'}"
    if kind == "value_error":
        return f"{tier}{message}"
    if field == "api_key_env":
        return f"{tier}api_key_env must be the name of an environment variable, never the key itself"
    value, _ = redact_text(repr(item["input"])[:200])
    hint = _describe(field)
    return f"{tier}{field} is {value}: {message[:1].lower()}{message[1:]}{f' ({hint})' if hint else ''}"


def _name_tier(position: Any, tiers: list[Any]) -> str:
    name = tiers[position].get("name") if isinstance(tiers[position], Mapping) else None
    return f"tier {name!r}: " if name else f"tier number {position + 1}: "


def _describe(field: str) -> str:
    return (Tier.model_fields[field].description or "") if field in Tier.model_fields else ""
