"""`cluster.yaml` is what Ray's launcher takes, and every job of the tree exists."""

import yaml
from conftest import ROOT
from ray.autoscaler._private.util import prepare_config, validate_config

from celr_ray.allocator import SETTINGS
from celr_ray.cli import COMMANDS


def test_cluster_yaml_is_valid_by_rays_own_schema():
    config = prepare_config(yaml.safe_load((ROOT / "cluster.yaml").read_text()))
    validate_config(config)
    pools = config["available_node_types"]
    assert config["head_node_type"] in pools
    assert pools["head"]["resources"]["CPU"] == 0
    assert pools["gpu_judge_pool"]["resources"]["GPU"] == 1
    assert pools["cpu_pool"]["max_workers"] > 0


def test_its_nodes_get_the_allocator_of_the_command_line():
    commands = yaml.safe_load((ROOT / "cluster.yaml").read_text())
    exported = " ".join(f"{name}={value}" for name, value in SETTINGS.items())
    for role in ("head", "worker"):
        assert sum(f"export {exported} && ray start" in line for line in commands[f"{role}_start_ray_commands"]) == 1


def test_every_command_has_its_job_script():
    scripts = {"gatekeeper" if name == "gate" else name.split()[0] for name in COMMANDS}
    assert {path.stem.replace("_", "-") for path in (ROOT / "jobs").glob("*.py")} == scripts
