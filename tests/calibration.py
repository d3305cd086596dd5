"""The benchmark of the gate's calibration as a module: its simulators and exact levels, for tests."""

import importlib.util
import sys
from types import ModuleType

from conftest import ROOT

__all__ = ["load_calibration"]


def load_calibration() -> ModuleType:
    """Import benchmarks/gate_calibration_tests.py, once."""
    name = "gate_calibration_tests"
    if name not in sys.modules:
        folder = ROOT / "benchmarks"
        sys.path.append(str(folder))  # for its own imports
        try:
            spec = importlib.util.spec_from_file_location(name, folder / f"{name}.py")
            module = importlib.util.module_from_spec(spec)
            spec.loader.exec_module(module)
        finally:
            sys.path.remove(str(folder))
        sys.modules[name] = module
    return sys.modules[name]
