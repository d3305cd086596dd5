"""Shared by all tests: where the sample data are, one embedded Ray, offline hubs."""

import os
import sys
from pathlib import Path

import absl.logging
import pytest
from hypothesis import settings

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["HF_DATASETS_OFFLINE"] = "1"
os.environ["TRANSFORMERS_OFFLINE"] = "1"
os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "1")  # GiB; several tiny engines live in one test process
os.environ["RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"] = "0"  # Ray on 127.0.0.1 only; read while ray is imported

# RLlib imports absl, whose handler would hold pytest's captured stream and close it when vLLM configures logging.
absl.logging.get_absl_handler().python_handler.stream = sys.__stderr__

settings.register_profile("untimed", deadline=None)  # a busy machine is no defect
settings.load_profile("untimed")

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="session")
def demo_logs() -> Path:
    """The demo's real logs."""
    return ROOT / "examples" / "demo" / "logs"


@pytest.fixture(scope="session")
def data() -> Path:
    """Small inputs that are only for tests."""
    return ROOT / "tests" / "data"


@pytest.fixture(scope="session")
def local_ray():
    """One embedded Ray for the whole session: starting it takes tens of seconds on a busy machine."""
    import ray

    from celr_ray.config import RuntimeConfig
    from celr_ray.runtime import connect

    connect(RuntimeConfig(executor="ray", num_cpus=2))
    yield ray
    ray.shutdown()
