"""How settings are read: flags, environment and YAML into one pydantic-settings model per job.

Precedence: flags, then environment variables (`CELR_RAY_JUDGE__CONCURRENCY=4`), then the file given with
`--config`, then the models' defaults. An unknown flag or YAML key is an error. This module knows no setting by name;
`celr_ray.config` does.
"""

from __future__ import annotations

import argparse
import json
import os
from contextvars import ContextVar
from typing import Annotated, Any, TypeVar

import yaml
from pydantic import AfterValidator, BaseModel, ConfigDict, ValidationError
from pydantic_settings import (
    BaseSettings,
    CliSettingsSource,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
    SettingsError,
    YamlConfigSettingsSource,
)

from celr_ray.errors import ConfigError

__all__ = ["Job", "Section", "Uri", "load_job", "read_json_text"]

_yaml_file: ContextVar[str | None] = ContextVar("yaml_file", default=None)


def read_json_text(value: Any) -> Any:
    """Accept `--judge.engine-kwargs '{"dtype": "float32"}'` from flags and environment."""
    return json.loads(value) if isinstance(value, str) else value


def _absolute(uri: str) -> str:
    """Make a local path absolute: workers on other machines, and a later call from another folder, must mean the same.

    Raises:
        ValueError: it is empty.
    """
    if not uri.strip():
        raise ValueError("an empty path")
    return uri if "://" in uri else os.path.abspath(os.path.expanduser(uri))


Uri = Annotated[str, AfterValidator(_absolute)]


class Section(BaseModel):
    """A part of a job's settings; unknown keys are errors."""

    model_config = ConfigDict(extra="forbid", validate_default=True)


class Job(BaseSettings):
    """Base of all jobs: the sources and their precedence."""

    model_config = SettingsConfigDict(
        extra="forbid",
        env_prefix="CELR_RAY_",
        env_nested_delimiter="__",
        cli_kebab_case=True,
        cli_implicit_flags=True,
        cli_hide_none_type=True,
        cli_avoid_json=True,
        cli_shortcuts={"ingest.format": "format"},
        nested_model_default_partial_update=True,
        validate_default=True,
    )

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Order the sources: arguments, environment, the YAML file of `--config`."""
        path = _yaml_file.get()
        if path is None:
            return init_settings, env_settings
        return init_settings, env_settings, YamlConfigSettingsSource(settings_cls, yaml_file=path)


_J = TypeVar("_J", bound=Job)


def _take_config_flag(arguments: list[str]) -> tuple[str | None, list[str]]:
    """Split `--config FILE` off the arguments."""
    rest: list[str] = []
    path: str | None = None
    words = iter(arguments)
    for word in words:
        if word == "--config":
            path = next(words, None)
            if path is None:
                raise ConfigError("--config needs a YAML file")
        elif word.startswith("--config="):
            path = word.removeprefix("--config=")
        else:
            rest.append(word)
    return path, rest


def _take_list_flags(job: type[Job], arguments: list[str]) -> tuple[dict[str, Any], list[str]]:
    """Split list flags (`--logs A B`) off the arguments: the parser would read commas, quotes and brackets in them.

    Returns:
        The lists as nested settings, and the other arguments.
    """
    names = {f"--{name.replace('_', '-')}": name for name in _list_fields(job)}
    rest: list[str] = []
    current: list[str] | None = None
    gathered: dict[str, list[str]] = {}
    for word in arguments:
        flag, equals, value = word.partition("=")
        if flag in names:
            current = gathered.setdefault(names[flag], [])
            if equals:
                current.append(value)
        elif word.startswith("--") or current is None:
            current = None
            rest.append(word)
        else:
            current.append(word)
    settings: dict[str, Any] = {}
    for name, values in gathered.items():
        *sections, last = name.split(".")
        place = settings
        for section in sections:
            place = place.setdefault(section, {})
        place[last] = values
    return settings, rest


def _list_fields(model: type[BaseModel], prefix: str = "") -> list[str]:
    names: list[str] = []
    for name, field in model.model_fields.items():
        kind = field.annotation
        if isinstance(kind, type) and issubclass(kind, BaseModel):
            names += _list_fields(kind, f"{prefix}{name}.")
        elif getattr(kind, "__origin__", None) is list:
            names.append(prefix + name)
    return names


def load_job(job: type[_J], arguments: list[str], *, program: str) -> _J:
    """Fill a job's settings from command-line arguments, environment and YAML.

    Args:
        job: the settings class.
        arguments: flags, without the program's name.
        program: name shown in `--help`.

    Raises:
        ConfigError: a flag, key or value is wrong; the message names it and its source.
        SystemExit: after `--help`, and for unknown flags (exit code 2).
    """
    path, flags = _take_config_flag(arguments)
    if path is not None and not os.path.isfile(path):
        raise ConfigError(f"--config: no such file: {path}")
    token = _yaml_file.set(path)
    try:
        lists, words = _take_list_flags(job, flags)
        source: CliSettingsSource[_J] = CliSettingsSource(
            job, root_parser=_make_parser(job, program), cli_parse_args=words
        )
        return job(_cli_settings_source=source, **lists)
    except ValidationError as error:
        raise ConfigError(_explain(error, path)) from error
    except (ValueError, TypeError, SettingsError, yaml.YAMLError) as error:
        reason = " ".join(str(error).split())
        raise ConfigError(f"cannot read the settings{f' from {path}' if path else ''}: {reason}") from error
    finally:
        _yaml_file.reset(token)


def _make_parser(job: type[Job], program: str) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        program,
        description=job.__doc__,
        epilog="Flags win over environment variables (CELR_RAY_JUDGE__CONCURRENCY=4), which win over the YAML file of "
        "--config. Times are seconds, money is US$, sizes are bytes unless said otherwise.",
        allow_abbrev=False,
    )
    parser.add_argument("--config", metavar="FILE", help="YAML file of settings; its keys are the names of the flags")
    return parser


def _explain(error: ValidationError, path: str | None) -> str:
    lines = []
    for item in error.errors():
        name = ".".join(str(part) for part in item["loc"]) or "settings"
        flag = "--" + name.replace("_", "-")
        value = "" if item["type"] == "missing" else f" (got {item['input']!r})"
        lines.append(f"{flag}: {item['msg']}{value}"[:400])
    where = f" [{path} and flags]" if path else ""
    return "; ".join(lines) + where + ". Run with --help for all settings."
