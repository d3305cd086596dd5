"""What stands beside the exported files: the Axolotl YAML and one README.md a format.

The name README.md matters: `datasets.load_dataset(folder)` ignores it, while a README.txt in a folder
without rows would be loaded as a data set of text lines.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass
from typing import Any

import yaml

from celr_ray import storage

_SHAREGPT_ROLES = {"user": ["human"], "assistant": ["gpt"], "system": ["system"], "tool": ["tool"]}
_CHAT_ROLES = {"user": ["user"], "assistant": ["assistant"], "system": ["system"], "tool": ["tool"]}
_LOSSES_OF = {
    "trl": ("trl_",),
    "axolotl": ("axolotl_", "sharegpt_"),
    "spin": ("spin_",),
    "sft": ("sft_",),
    "kto": ("kto_",),
}
_TOOLS_HINT = """Messages hold native tool calls. A chat template without tools drops them in silence; check yours:

    from trl.chat_template_utils import supports_tool_calling
    from celr_ray.training.render import write_tools_as_text
    if not supports_tool_calling(tokenizer):
        data = data.map(write_tools_as_text)

The columns are JSON (`datasets` 4.7 or newer reads them as dictionaries; in pandas use json.loads).
"""
_TEXTS = {
    "trl": """Preference rows for `trl.DPOTrainer`: prompt, chosen, rejected (lists of messages).

    from datasets import load_dataset
    data = load_dataset("dpo")          # here; dpo, self_reward or spin
    DPOTrainer(model, args=DPOConfig(max_length=8192), train_dataset=data["train"], eval_dataset=data.get("test"))

TRL cuts sequences at `max_length` tokens (default 1,024): set it, or long pairs lose what tells them apart.

"""
    + _TOOLS_HINT,
    "axolotl": """Rows for Axolotl, tool calls written into the text. Run from this folder, after setting `base_model`:

    axolotl train dpo.yaml              # or self_reward.yaml, sharegpt.yaml

dpo, self_reward: one assistant message a side, the move on which the two runs part, because Axolotl's
DPO reader takes no more; whole runs are in the trl folder. sharegpt: the SFT runs.
If your chat template refuses the role tool, move `tool` to the list of `user` in the YAML's roles.
""",
    "spin": """Rows for SPIN (uclaml/SPIN): real and generated, each [user, assistant].

    load_dataset(".")                   # here: splits train and test
    dataset_mixer: {PATH/TO/THIS/FOLDER: 1.0}      # in SPIN's YAML

SPIN's script asks for a test split. If there is none, export again with a larger test fraction.
""",
    "sft": """Conversations for `trl.SFTTrainer`: messages. The best successful runs of each task.

    data = load_dataset(".")            # here
    SFTTrainer(model, args=SFTConfig(assistant_only_loss=True), train_dataset=data["train"])

Without `assistant_only_loss` the loss is on every message, the user's and the tools' too.

"""
    + _TOOLS_HINT,
    "kto": """Unpaired rows for `trl.KTOTrainer`: prompt, completion, label. Runs of tasks whose outcomes are all alike.

    data = load_dataset(".")["train"].shuffle(seed=0)      # here
    KTOTrainer(model, args=KTOConfig(per_device_train_batch_size=4), train_dataset=data)

KTO pairs each prompt with its neighbour's completion to estimate the KL term, so neighbours must be of different
tasks: shuffle, and use a batch size above 1.

"""
    + _TOOLS_HINT,
}


@dataclass(frozen=True)
class FolderSummary:
    """What one folder of training files holds.

    Attributes:
        folder: below `RUN/exports`.
        n_rows: rows of both splits.
        n_test: rows of the test split.
        is_moved: all tasks had fallen into the test split, so its rows were made the train split.
    """

    folder: str
    n_rows: int
    n_test: int
    is_moved: bool = False


def _describe(summary: FolderSummary) -> str:
    if not summary.n_rows:
        return f"- {summary.folder}: NO ROWS, no files: the run has no such rows, or all were left out (below)."
    note = " All tasks fell into the test split; they were made the train split." if summary.is_moved else ""
    if not summary.n_test and not summary.is_moved:
        note = " No task fell into the test split."
    return f"- {summary.folder}: {summary.n_rows - summary.n_test:,} train rows, {summary.n_test:,} test rows.{note}"


def make_axolotl_config(summary: FolderSummary) -> dict[str, Any]:
    """Return the Axolotl configuration that trains on one folder, paths relative to `exports/axolotl`."""
    name = summary.folder.rsplit("/", 1)[-1]
    is_sft = name == "sharegpt"
    dataset: dict[str, Any] = {"path": f"./{name}", "split": "train"}
    if is_sft:
        dataset |= {
            "type": "chat_template",
            "field_messages": "conversations",
            "message_property_mappings": {"role": "from", "content": "value"},
            "roles": _SHAREGPT_ROLES,
            "roles_to_train": ["assistant"],
            "train_on_eos": "turn",
        }
    else:
        dataset |= {
            "type": "chat_template.default",
            "field_messages": "messages",
            "field_chosen": "chosen",
            "field_rejected": "rejected",
            "message_property_mappings": {"role": "role", "content": "content"},
            "roles": _CHAT_ROLES,
        }
    config: dict[str, Any] = {"base_model": "SET-YOUR-MODEL", "chat_template": "tokenizer_default"}
    config |= {} if is_sft else {"rl": "dpo"}
    config["datasets"] = [dataset]
    if summary.n_test:
        config["test_datasets"] = [deepcopy(dataset) | {"split": "test"}]
    return config | {
        "sequence_len": 4096,
        "micro_batch_size": 1,
        "gradient_accumulation_steps": 8,
        "num_epochs": 1,
        "learning_rate": 1e-5 if is_sft else 5e-7,
        "optimizer": "adamw_torch",
        "lr_scheduler": "cosine",
        "output_dir": f"./out/{name}",
    }


def write_notes(
    run: str, formats: Sequence[str], summaries: Sequence[FolderSummary], counts: Mapping[str, int]
) -> None:
    """Write README.md for each requested format, and the YAML of each Axolotl folder that holds rows."""
    for name in formats:
        own = [summary for summary in summaries if summary.folder.split("/")[0] == name]
        losses = [
            f"- {key.removeprefix('losses.')}: {count:,}"
            for key, count in counts.items()
            if key.startswith(tuple(f"losses.{prefix}" for prefix in _LOSSES_OF[name]))
        ]
        lines = [f"# {name}", "", _TEXTS[name], *map(_describe, own), ""]
        if losses:
            lines += ["Changed or lost, in rows (docs/training_formats.md explains each name):", "", *losses, ""]
        storage.write_bytes(storage.join(run, "exports", name, "README.md"), "\n".join(lines).encode())
        for summary in own:
            if name == "axolotl" and summary.n_rows:
                text = yaml.safe_dump(make_axolotl_config(summary), sort_keys=False, width=120)
                uri = storage.join(run, "exports", f"{summary.folder}.yaml")
                storage.write_bytes(uri, b"# Run from this folder; set base_model first.\n" + text.encode())
