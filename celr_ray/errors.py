"""The exception tree. Every error that a user can cause or mend is one of these.

CelrRayError                 anything this package raises on purpose; exit code 1
├── UsageError               the call cannot be carried out as given; exit code 2
│   ├── ConfigError          a flag, a YAML key or a value is wrong
│   ├── InputError           a path is missing, unreadable or holds no logs
│   ├── OutputError          a folder cannot be written or holds something else
│   ├── PolicyError          a policy, or a state given to one, cannot be used
│   └── RunMismatchError     the folder holds a run made with other inputs or settings
├── RecordError              one log record is unusable; goes to quarantine, never ends a job
├── ModelError               a model cannot be found, converted or loaded
├── SandboxError             code of a model cannot be run in isolation on this machine
└── ConservationError        rows in ≠ rows out + rejected: a defect of this package
"""

from __future__ import annotations

__all__ = [
    "CelrRayError",
    "ConfigError",
    "ConservationError",
    "InputError",
    "ModelError",
    "OutputError",
    "PolicyError",
    "RecordError",
    "RunMismatchError",
    "SandboxError",
    "UsageError",
]


class CelrRayError(Exception):
    """Base of all errors that this package raises on purpose."""

    exit_code = 1


class UsageError(CelrRayError):
    """The call cannot be carried out as given; the message says what to change."""

    exit_code = 2


class ConfigError(UsageError):
    """A flag, a YAML key or a value is wrong."""


class InputError(UsageError):
    """An input path is missing, unreadable or holds no logs."""


class OutputError(UsageError):
    """An output folder cannot be written or holds something else."""


class RunMismatchError(UsageError):
    """The folder holds a run made with other inputs or settings."""


class RecordError(CelrRayError):
    """One log record is unusable. Caught per record and written to quarantine."""


class PolicyError(UsageError):
    """A policy, or a state given to one, cannot be used."""


class ModelError(CelrRayError):
    """A model cannot be found, converted or loaded."""


class SandboxError(CelrRayError):
    """Code that a model wrote cannot be run in isolation on this machine, or its sandbox could not be closed."""


class ConservationError(CelrRayError):
    """Rows in ≠ rows out + rejected: a defect of this package, never of the input."""
