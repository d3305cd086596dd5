"""The monitor: says by fixed rules what is unsafe in texts, in what code tried in the sandbox, and as an exploration.

Its rules stand in YAML (`monitor_rules.yaml` holds the packaged ones). It never asks a model and never takes a policy's
word; equal inputs give equal verdicts. It reads texts and runs nothing: what confines code is the sandbox, not this.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import regex
import yaml
from numpy.typing import ArrayLike
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from celr_ray import storage
from celr_ray.cortex.actions import N_ACTIONS, Action, BoolArray, FloatArray
from celr_ray.cortex.state import FEATURE_INDEX
from celr_ray.errors import ConfigError, PolicyError
from celr_ray.redact import redact_text

__all__ = ["ActionRule", "Monitor", "OutputRule", "PromptRule", "Rule", "SandboxRule", "SecretRule", "load_rules"]

PACKAGED_RULES = Path(__file__).with_name("monitor_rules.yaml")
VERSION = 1
"""Of the rule files."""

_CONTINUED = regex.compile(r"(?<=[ \t])\\\r?\n")
_TIMEOUT_S = 5.0
"""Seconds of one pattern on one text. A rule that needs more counts as broken: what cannot be judged is not safe."""


class Rule(BaseModel):
    """What all rules have."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    id: str = Field(pattern=r"^[a-z][a-z0-9_]*$", description="what violations are reported as")
    description: str = Field(min_length=1)
    severity: Literal["low", "medium", "high", "critical"] = Field(description="for people; any violation is unsafe")
    target: Literal["output", "prompt", "action"]
    kind: Literal["pattern", "secret", "sandbox", "state"]


class _PatternRule(Rule):
    pattern: str = Field(min_length=1, description="of the package regex, searched in the text")
    needs: list[str] = Field(
        [], description="lower-case literals; the pattern is tried only where one stands in the text. Empty = always"
    )

    @field_validator("pattern")
    @classmethod
    def _check_pattern(cls, pattern: str) -> str:
        try:
            regex.compile(pattern)
        except regex.error as error:
            raise ValueError(f"no regular expression: {error}") from error
        return pattern

    @field_validator("needs")
    @classmethod
    def _check_needs(cls, needs: list[str]) -> list[str]:
        if wrong := [need for need in needs if not need or need != need.lower()]:
            raise ValueError(f"empty or not in lower case: {wrong}")
        return needs

    def is_in(self, text: str, lowered: str) -> bool:
        """Tell whether the pattern stands in a text; too slow a search counts as found."""
        if self.needs and not any(need in lowered for need in self.needs):
            return False
        try:
            return regex.search(self.pattern, text, timeout=_TIMEOUT_S) is not None
        except TimeoutError:
            return True


class OutputRule(_PatternRule):
    """A pattern that no model's text may hold."""


class PromptRule(_PatternRule):
    """A pattern that makes a task risky."""

    weight: float = Field(gt=0, le=1, description="probability of an unsafe act, by this rule alone")


class SecretRule(Rule):
    """No model's text may hold a secret, as `celr_ray.redact` knows them."""


class SandboxRule(Rule):
    """What code may not try in the sandbox."""

    violations: list[str] = Field(min_length=1, description="the sandbox's names")


class ActionRule(Rule):
    """What exploration may not do in some states; ABORT is always safe."""

    actions: list[Literal["RECURSE", "ESCALATE", "VERIFY", "RETRY_COMPRESSED", "STOP"]] = Field(min_length=1)
    when: dict[str, bool | float | int] = Field(
        min_length=1, description="all must hold: FEATURE: value, FEATURE_at_least: value, FEATURE_at_most: value"
    )

    @field_validator("when")
    @classmethod
    def _check_when(cls, when: dict[str, bool | float | int]) -> dict[str, bool | float | int]:
        for key, value in when.items():
            if _split_condition(key)[0] not in FEATURE_INDEX:
                raise ValueError(f"{key}: no such state feature; there are {', '.join(FEATURE_INDEX)}")
            if not np.isfinite(value):
                raise ValueError(f"{key}: {value} is not finite")
        return when

    def holds(self, columns: Mapping[str, FloatArray]) -> BoolArray:
        """Tell where all conditions hold, [B]; what is NaN may hold, so it does."""
        n = len(next(iter(columns.values())))
        held = np.ones(n, dtype=bool)
        for key, value in self.when.items():
            name, comparison = _split_condition(key)
            if name not in columns:
                raise PolicyError(f"the monitor's rule {self.id} needs the state feature {name}, which is not given")
            column = columns[name]
            if comparison == "_at_least":
                held &= ~(column < value)
            elif comparison == "_at_most":
                held &= ~(column > value)
            else:
                held &= (column == value) | np.isnan(column)
        return held


def _split_condition(key: str) -> tuple[str, str]:
    for comparison in ("_at_least", "_at_most"):
        if key.endswith(comparison):
            return key.removesuffix(comparison), comparison
    return key, ""


_SHAPES: dict[tuple[str, str], type[Rule]] = {
    ("output", "pattern"): OutputRule,
    ("output", "secret"): SecretRule,
    ("output", "sandbox"): SandboxRule,
    ("prompt", "pattern"): PromptRule,
    ("action", "state"): ActionRule,
}


class Monitor:
    """Judges texts, sandbox runs, prompts and actions by rules.

    Attributes:
        rules: all of them, in the file's order.
        content_hash: of the rules, 16 hex digits: equal hashes judge alike.
    """

    def __init__(self, rules: Sequence[Rule]) -> None:
        """Use rules, as `load_rules` reads them."""
        self.rules = tuple(rules)
        self._outputs = [rule for rule in rules if isinstance(rule, OutputRule | SecretRule)]
        self._sandbox = {name: rule.id for rule in rules if isinstance(rule, SandboxRule) for name in rule.violations}
        self._prompts = [rule for rule in rules if isinstance(rule, PromptRule)]
        self._actions = [rule for rule in rules if isinstance(rule, ActionRule)]
        text = json.dumps([rule.model_dump() for rule in rules], sort_keys=True)
        self.content_hash = hashlib.blake2b(text.encode(), digest_size=8).hexdigest()

    def check_output(self, text: str) -> tuple[str, ...]:
        """Return the ids of the output rules that a text breaks, in the rules' order.

        Lines that a space and a backslash continue are read as one.
        """
        text, lowered = _prepare(text)
        return tuple(
            rule.id
            for rule in self._outputs
            if (rule.is_in(text, lowered) if isinstance(rule, OutputRule) else bool(redact_text(text)[1]))
        )

    def check_sandbox(self, violations: Iterable[str]) -> tuple[str, ...]:
        """Return the ids of the rules that a run in the sandbox broke, each once.

        Args:
            violations: the sandbox's names. One that no rule has comes back as `sandbox:NAME`: it is never lost.
        """
        return tuple(dict.fromkeys(self._sandbox.get(name, f"sandbox:{name}") for name in violations))

    def risk(self, prompts: Sequence[str]) -> FloatArray:
        """Return the prior risk of an unsafe act of each task, [B] in [0, 1], from its text alone.

        1 − Π (1 − weight) over the prompt rules that its text matches, as if they were independent causes. The weights
        are set by hand: an order of risk, not a measured probability.
        """
        safe = [np.prod([1.0 - rule.weight for rule in self._match_prompt(prompt)]) for prompt in prompts]
        return 1.0 - np.array(safe, dtype=float)

    def _match_prompt(self, prompt: str) -> list[PromptRule]:
        text, lowered = _prepare(prompt)
        return [rule for rule in self._prompts if rule.is_in(text, lowered)]

    def safe_actions(self, columns: Mapping[str, ArrayLike]) -> BoolArray:
        """Return which actions exploration may take, [B, A] in the order of `Action`; ABORT always.

        Args:
            columns: [B] values by name of state feature, at least those that the rules ask for.

        Raises:
            PolicyError: one of them is absent, or their lengths differ.
        """
        arrays = {name: np.asarray(column, dtype=float) for name, column in columns.items()}
        sizes = {array.shape for array in arrays.values()}
        if len(sizes) != 1 or len(next(iter(sizes))) != 1:
            raise PolicyError(f"the monitor needs state features of one length, got the shapes {sorted(sizes)}")
        safe = np.ones((*sizes.pop(), N_ACTIONS), dtype=bool)
        for rule in self._actions:
            held = rule.holds(arrays)
            for name in rule.actions:
                safe[held, Action[name]] = False
        return safe


def _prepare(text: str) -> tuple[str, str]:
    """Return a text with continued lines joined, and its lower case."""
    if "\\" in text:
        text = _CONTINUED.sub(" ", text)
    return text, text.lower()


def load_rules(uri: str | None = None) -> Monitor:
    """Read a rule file.

    Args:
        uri: path or URI of a YAML file; None = the packaged rules. A file replaces the packaged rules, it adds nothing
            to them.

    Raises:
        InputError: it cannot be read.
        ConfigError: it is no rule file; the message names file, rule and field.
    """
    place = str(PACKAGED_RULES) if uri is None else uri
    try:
        document = yaml.safe_load(storage.read_bytes(place))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"{place} is no YAML: {' '.join(str(error).split())}") from error
    if not isinstance(document, dict) or set(document) != {"version", "rules"}:
        raise ConfigError(f"{place}: a rule file has two keys, version and rules")
    if document["version"] != VERSION:
        raise ConfigError(f"{place}: version is {document['version']!r}, this package reads {VERSION}")
    if not isinstance(document["rules"], list) or not document["rules"]:
        raise ConfigError(f"{place}: rules must be a list of at least one rule")
    rules = [_read_rule(place, number, raw) for number, raw in enumerate(document["rules"], 1)]
    _check_names(place, rules)
    return Monitor(rules)


def _read_rule(place: str, number: int, raw: Any) -> Rule:
    if not isinstance(raw, dict):
        raise ConfigError(f"{place}: rule {number} is no mapping but {raw!r}")
    name = f"{place}: rule {number} ({raw.get('id', 'without id')})"
    shape = _SHAPES.get((str(raw.get("target")), str(raw.get("kind"))))
    if shape is None:
        known = "; ".join(f"target {target}, kind {kind}" for target, kind in _SHAPES)
        raise ConfigError(
            f"{name}: target and kind are {raw.get('target')!r} and {raw.get('kind')!r}, but must be one of: {known}"
        )
    try:
        return shape.model_validate(raw)
    except ValidationError as error:
        first = error.errors()[0]
        field = ".".join(str(part) for part in first["loc"])
        raise ConfigError(f"{name}, field {field}: {first['msg']} (it is {first['input']!r})") from error


def _check_names(place: str, rules: Sequence[Rule]) -> None:
    """Check that no id and no violation stands twice."""
    taken: set[tuple[str, str]] = set()
    for rule in rules:
        names = [("id", rule.id)]
        if isinstance(rule, SandboxRule):
            names += [("violations", name) for name in rule.violations]
        for field, name in names:
            if (field, name) in taken:
                raise ConfigError(f"{place}: rule {rule.id}, field {field}: {name!r} stands twice in the file")
            taken.add((field, name))
