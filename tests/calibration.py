"""Benchmarks as modules for tests: the gate's calibration with its simulators and exact levels, the sleeping engine."""

import importlib.util
import sys
from types import ModuleType

from conftest import ROOT

__all__ = ["load_benchmark", "load_calibration"]


def load_calibration() -> ModuleType:
    """Import benchmarks/gate_calibration_tests.py, once."""
    return load_benchmark("gate_calibration_tests")


def load_benchmark(name: str) -> ModuleType:
    """Import benchmarks/NAME.py, once."""
    if name not in sys.modules:
        folder = ROOT / "benchmarks"
        sys.path.append(str(folder))  # for its own imports
        try:
            spec = importlib.util.spec_from_file_location(name, folder / f"{name}.py")
            module = importlib.util.module_from_spec(spec)
            sys.modules[name] = module
            spec.loader.exec_module(module)
        finally:
            sys.path.remove(str(folder))
    return sys.modules[name]
