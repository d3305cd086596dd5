"""The kinds of check, as tasks hold them: specifications only, validated when the task is read.

exact, numeric, regex, choice, json_schema    rules on the extracted answer
python_tests                                  tests of the extracted code, in the sandbox
model, agreement                              opinions of models; for verifiers only
"""

from __future__ import annotations

import ast
from typing import Annotated, Any, Literal

import regex
from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from celr_ray.core.jail.worker import plan_tests
from celr_ray.core.json_check import check_schema

__all__ = [
    "AgreementCheck",
    "Check",
    "ChoiceCheck",
    "ExactCheck",
    "JsonSchemaCheck",
    "ModelCheck",
    "NumericCheck",
    "PythonTestsCheck",
    "RegexCheck",
    "RuleCheck",
]


class _Model(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class ExactCheck(_Model):
    """The answer is this text; blanks, quotes and a full stop at the end do not count."""

    kind: Literal["exact"]
    answer: str = Field(min_length=1)
    ignore_case: bool = True


class NumericCheck(_Model):
    """The answer is this number: |found − answer| ≤ tolerance. A percent sign, a unit or a currency is not read."""

    kind: Literal["numeric"]
    answer: int | Annotated[float, Field(allow_inf_nan=False)]
    tolerance: float = Field(1e-6, ge=0, allow_inf_nan=False, description="absolute")


class RegexCheck(_Model):
    """The pattern is found in the answer; anchor it to ask for the whole of it."""

    kind: Literal["regex"]
    pattern: str = Field(min_length=1)

    @field_validator("pattern")
    @classmethod
    def _compiles(cls, pattern: str) -> str:
        try:
            regex.compile(pattern)
        except regex.error as error:
            raise ValueError(f"no regular expression: {error}") from error
        return pattern


class ChoiceCheck(_Model):
    """The answer is this one of the options."""

    kind: Literal["choice"]
    answer: str
    options: tuple[str, ...] = Field(("A", "B", "C", "D"), min_length=2)

    @model_validator(mode="after")
    def _is_option(self) -> ChoiceCheck:
        if self.answer not in self.options:
            raise ValueError(f"answer {self.answer!r} is not among the options {', '.join(self.options)}")
        return self


class JsonSchemaCheck(_Model):
    """The answer is JSON that fits this schema (draft 2020-12, without references to other documents)."""

    model_config = ConfigDict(serialize_by_alias=True)

    kind: Literal["json_schema"]
    json_schema: dict[str, Any] = Field(alias="schema")

    @field_validator("json_schema")
    @classmethod
    def _is_schema(cls, schema: dict[str, Any]) -> dict[str, Any]:
        check_schema(schema)
        return schema


class PythonTestsCheck(_Model):
    """The answer is Python code that passes these tests in the sandbox; only the standard library can be imported."""

    kind: Literal["python_tests"]
    tests: str = Field(description="top-level asserts, functions test…(), or check(candidate) with an entry_point")
    entry_point: str | None = Field(None, description="name that the code must define; the tests see it as candidate")
    time_limit_s: float = Field(5.0, gt=0, le=600)
    memory_limit_bytes: int = Field(512 << 20, ge=64 << 20)

    @field_validator("entry_point")
    @classmethod
    def _is_name(cls, name: str | None) -> str | None:
        if name is not None and not name.isidentifier():
            raise ValueError(f"{name!r} is no name of a function or class")
        return name

    @model_validator(mode="after")
    def _has_tests(self) -> PythonTestsCheck:
        try:
            tree = ast.parse(self.tests)
        except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
            raise ValueError(f"the tests are no Python: {error}") from error
        if not any(is_test for is_test, _ in plan_tests(tree, self.entry_point or "")):
            raise ValueError("no test found: no top-level assert, no function test…, no check with an entry_point")
        for node in tree.body:
            if isinstance(node, ast.AsyncFunctionDef | ast.ClassDef) and node.name.casefold().startswith("test"):
                raise ValueError(f"{node.name} would not run: only plain functions test…() do")
            if isinstance(node, ast.FunctionDef) and node.name.startswith("test") and _needs_arguments(node):
                raise ValueError(f"{node.name} would not run: it takes arguments")
        return self


def _needs_arguments(node: ast.FunctionDef) -> bool:
    named, keyword_only = [*node.args.posonlyargs, *node.args.args], node.args.kw_defaults
    return len(named) > len(node.args.defaults) or None in keyword_only


class ModelCheck(_Model):
    """A model is asked whether the answer is right. For verifiers only."""

    kind: Literal["model"]
    question: str | None = Field(None, description="what is asked of the answer; null = whether it is correct")
    tier: str = Field("current", min_length=1, description="name of a tier, or current: the one that answered")


class AgreementCheck(_Model):
    """The answer is what enough independent samples say. For verifiers only."""

    kind: Literal["agreement"]
    n_samples: int = Field(3, ge=2, description="answers compared, the judged one included")
    min_share: float = Field(0.6, gt=0, le=1)
    answer: Literal["numeric", "choice", "text"] = "numeric"


RuleCheck = ExactCheck | NumericCheck | RegexCheck | ChoiceCheck | JsonSchemaCheck | PythonTestsCheck
"""What needs no model: all that a checker may be."""

Check = Annotated[RuleCheck | ModelCheck | AgreementCheck, Field(discriminator="kind")]
"""Any check, as tasks hold it; `kind` tells which."""
