"""Exported files through their real readers: datasets, TRL's trainers, real chat templates.

Axolotl and SPIN cannot be installed here; their row rules are restated in export_rows.py, Axolotl's YAML below.
"""

import json
import math
from pathlib import Path

import datasets
import pytest
import torch
import trl
import yaml
from export_rows import make_run, reward_pair, tool_pair

from celr_ray.config import ExportConfig, RuntimeConfig
from celr_ray.training import convert, export, render
from celr_ray.training.export import run_export

SMOLLM2_TEMPLATE = (
    "{% for message in messages %}{{'<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>\n'}}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
TEMPLATES = Path(trl.__file__).parent / "chat_templates"
QWEN_TEMPLATE = (TEMPLATES / "qwen2_5.jinja").read_text()
LLAMA_TEMPLATE = (TEMPLATES / "llama3_1.jinja").read_text()


@pytest.fixture(scope="module", autouse=True)
def _private_cache(tmp_path_factory):
    """Keep `datasets` from answering from the cache of an earlier test session."""
    old = datasets.config.HF_DATASETS_CACHE
    datasets.config.HF_DATASETS_CACHE = tmp_path_factory.mktemp("hf")
    yield
    datasets.config.HF_DATASETS_CACHE = old


@pytest.fixture(scope="module")
def exports(tmp_path_factory):
    """The exports folder of a run with all kinds of rows in 24 tasks, a quarter of them in the test split."""
    run = make_run(tmp_path_factory.mktemp("export") / "run")
    config = ExportConfig(test_fraction=0.25)
    report = run_export(run, config, RuntimeConfig(executor="loop"), on_ray=False)
    return Path(run) / "exports", report.counts


def make_tokenizer(template=QWEN_TEMPLATE):
    """A byte-level tokenizer of 260 tokens that no file is needed for."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    core = Tokenizer(models.BPE(vocab={c: i for i, c in enumerate(alphabet)}, merges=[]))
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    core.add_special_tokens([AddedToken(t, special=True) for t in ("<|im_start|>", "<|im_end|>", "<|pad|>")])
    return PreTrainedTokenizerFast(
        tokenizer_object=core, eos_token="<|im_end|>", pad_token="<|pad|>", chat_template=template
    )


def make_model():
    """A random Llama that takes milliseconds a step."""
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=300,
            hidden_size=32,
            intermediate_size=64,
            num_hidden_layers=1,
            num_attention_heads=2,
            num_key_value_heads=2,
            max_position_embeddings=4096,
        )
    )


def trainer_arguments(kind, tmp_path, **settings):
    return kind(
        output_dir=str(tmp_path),
        max_steps=1,
        per_device_train_batch_size=2,
        report_to=[],
        use_cpu=True,
        bf16=False,
        logging_steps=1,
        save_strategy="no",
        max_length=4096,
        **settings,
    )


def find_loss(trainer):
    return next(entry["loss"] for entry in trainer.state.log_history if "loss" in entry)


# ---------------------------------------------------------------- datasets


def test_load_dataset_opens_every_folder(exports):
    base, counts = exports
    for target in export.TARGETS.values():
        data = datasets.load_dataset(str(base / target.folder))
        n_test = counts[f"test_rows.{target.name}"]
        assert set(data) == {"train", "test"}
        assert data["test"].num_rows == n_test > 0
        assert data["train"].num_rows == counts[f"rows.{target.name}"] - n_test > 0


def test_load_dataset_opens_every_file(exports):
    base, _ = exports
    for file in base.rglob("*.parquet"):
        assert datasets.load_dataset("parquet", data_files=str(file))["train"].num_rows > 0


def test_messages_come_back_with_just_their_own_keys(exports):
    base, _ = exports
    data = datasets.load_dataset(str(base / "trl/dpo"))["train"]
    kinds = {frozenset(m) for row in data for side in ("prompt", "chosen", "rejected") for m in row[side]}
    assert kinds == {
        frozenset({"role", "content"}),
        frozenset({"role", "content", "tool_calls"}),
        frozenset({"role", "content", "name", "tool_call_id"}),
    }
    wanted = {json.dumps(convert.to_trl(tool_pair(i).model_dump()).row, sort_keys=True) for i in range(24)}
    assert sum(json.dumps(row, sort_keys=True) in wanted for row in data) > 10


def test_a_split_without_rows_is_left_out(tmp_path):
    run = make_run(tmp_path / "run", 3)
    run_export(run, ExportConfig(test_fraction=0), RuntimeConfig(executor="loop"), on_ray=False)
    data = datasets.load_dataset(f"{run}/exports/trl/dpo")
    assert set(data) == {"train"}
    assert data.get("test") is None


def test_a_format_without_rows_is_a_clear_error(tmp_path):
    from test_export import make_run_of_one

    run = make_run_of_one(tmp_path / "run", reward_pair(1))
    run_export(run, ExportConfig(), RuntimeConfig(executor="loop"), on_ray=False)
    with pytest.raises(FileNotFoundError, match="any data files"):
        datasets.load_dataset(f"{run}/exports/kto")


@pytest.mark.parametrize("name", ["rows.jsonl", "rows.parquet"])
def test_front_door_files_open(tmp_path, name):
    path = str(tmp_path / name)
    assert export.write_trl([tool_pair(1), reward_pair(2)], path) == 2
    kind = "json" if name.endswith("jsonl") else "parquet"
    data = datasets.load_dataset(kind, data_files=path)["train"]
    assert data.num_rows == 2
    for row, pair in zip(data, (tool_pair(1), reward_pair(2)), strict=True):
        assert row == convert.to_trl(pair.model_dump()).row


# ---------------------------------------------------------------- chat templates


def test_a_template_that_knows_tools_renders_native_calls_as_our_text():
    tokenizer = make_tokenizer()
    row = convert.to_sft({"messages": whole_run(), "prompt": None}).row
    native = tokenizer.apply_chat_template(row["messages"], tokenize=False)
    as_text = tokenizer.apply_chat_template(render.write_tools_as_text(row)["messages"], tokenize=False)
    assert native == as_text
    arguments = '{"id": "EHGLP7", "with": ["price", "bags"], "limit": 2.5}'
    assert f'<tool_call>\n{{"name": "get_reservation", "arguments": {arguments}}}\n</tool_call>' in native


def whole_run():
    pair = tool_pair(7)
    return [message.model_dump() for message in [*pair.prompt, *pair.chosen]]


def test_a_template_that_asks_whether_the_key_exists_renders_every_message():
    text = make_tokenizer(LLAMA_TEMPLATE).apply_chat_template(
        [render.to_native_message(message) for message in whole_run()], tokenize=False
    )
    assert '{"name": "get_reservation", "parameters": {"id": "EHGLP7"' in text
    assert "cannot cancel it." in text


def test_a_template_without_tools_loses_calls_unless_they_are_text():
    tokenizer = make_tokenizer(SMOLLM2_TEMPLATE)
    row = convert.to_sft({"messages": whole_run(), "prompt": None}).row
    assert "get_reservation" not in tokenizer.apply_chat_template(row["messages"], tokenize=False)
    assert not trl.chat_template_utils.supports_tool_calling(tokenizer)
    text = tokenizer.apply_chat_template(render.write_tools_as_text(row)["messages"], tokenize=False)
    assert '{"name": "get_reservation"' in text
    assert "<|im_start|>user\n<tool_response>" in text


def test_write_tools_as_text_maps_over_the_files(exports):
    base, _ = exports
    data = datasets.load_dataset(str(base / "sft"))["train"].map(render.write_tools_as_text)
    assert all(set(message) == {"role", "content"} for row in data for message in row["messages"])
    assert all("<tool_call>" in json.dumps(row["messages"]) for row in data)


# ---------------------------------------------------------------- trainers


@pytest.mark.parametrize("template", [QWEN_TEMPLATE, SMOLLM2_TEMPLATE])
def test_dpo_trainer_takes_a_step(exports, tmp_path, template):
    base, _ = exports
    data = datasets.load_dataset(str(base / "trl/dpo"))
    if template == SMOLLM2_TEMPLATE:
        data = data.map(render.write_tools_as_text)
    tokenizer = make_tokenizer(template)
    trainer = trl.DPOTrainer(
        make_model(),
        make_model(),
        args=trainer_arguments(trl.DPOConfig, tmp_path),
        train_dataset=data["train"],
        eval_dataset=data["test"],
        processing_class=tokenizer,
    )
    trainer.train()
    assert math.isfinite(find_loss(trainer))
    assert len(trainer.train_dataset) == len(data["train"])
    texts = []
    for row in trainer.train_dataset:
        assert all(row[f"{side}_ids"] for side in ("prompt", "chosen", "rejected"))
        texts.append(tokenizer.decode(row["prompt_ids"]) + tokenizer.decode(row["chosen_ids"]))
    assert sum("get_reservation" in text for text in texts) > 10
    assert all("Airline Agent Policy" in text for text in texts)


def test_dpo_loss_is_on_every_message_after_the_prompt(exports, tmp_path):
    """What docs/training_formats.md says of roles: tool and user turns of a completion count too."""
    from trl.trainer.dpo_trainer import DataCollatorForPreference

    base, _ = exports
    data = datasets.load_dataset(str(base / "trl/dpo"))["train"].select(range(4))
    tokenizer = make_tokenizer()
    arguments = trainer_arguments(trl.DPOConfig, tmp_path)
    trainer = trl.DPOTrainer(make_model(), make_model(), args=arguments, train_dataset=data, processing_class=tokenizer)
    batch = DataCollatorForPreference(tokenizer.pad_token_id)(list(trainer.train_dataset))
    counted = tokenizer.decode(batch["input_ids"][batch["completion_mask"].bool()])
    assert "<tool_response>" in counted
    assert "Airline Agent Policy" not in counted


def test_kto_trainer_takes_a_step(exports, tmp_path):
    base, _ = exports
    data = datasets.load_dataset(str(base / "kto"))["train"]
    arguments = trainer_arguments(trl.KTOConfig, tmp_path)
    trainer = trl.KTOTrainer(
        make_model(), make_model(), args=arguments, train_dataset=data, processing_class=make_tokenizer()
    )
    trainer.train()
    assert math.isfinite(find_loss(trainer))
    assert set(data["label"]) == {True, False}


@pytest.mark.parametrize("is_assistant_only", [False, True])
def test_sft_trainer_takes_a_step(exports, tmp_path, is_assistant_only):
    base, _ = exports
    data = datasets.load_dataset(str(base / "sft"))["train"]
    tokenizer = make_tokenizer()
    arguments = trainer_arguments(trl.SFTConfig, tmp_path, assistant_only_loss=is_assistant_only)
    trainer = trl.SFTTrainer(make_model(), args=arguments, train_dataset=data, processing_class=tokenizer)
    trainer.train()
    assert math.isfinite(find_loss(trainer))
    trained = [t for t in trainer.train_dataset[0]["labels"] if t != -100]
    text = tokenizer.decode(trained)
    assert "get_reservation" in text
    assert ("Airline Agent Policy" in text) is not is_assistant_only
    assert ("<tool_response>" in text) is not is_assistant_only


def test_sharegpt_rows_hold_all_four_roles_as_text(exports):
    base, _ = exports
    data = datasets.load_dataset(str(base / "axolotl/sharegpt"))["train"]
    assert {message["from"] for row in data for message in row["conversations"]} == {"system", "human", "gpt", "tool"}
    assert all(isinstance(message["value"], str) for row in data for message in row["conversations"])


# ---------------------------------------------------------------- Axolotl's YAML


@pytest.mark.parametrize("name", ["dpo", "self_reward", "sharegpt"])
def test_axolotl_yaml_names_what_the_files_hold(exports, name):
    base, _ = exports
    config = yaml.safe_load((base / "axolotl" / f"{name}.yaml").read_text())
    is_sft = name == "sharegpt"
    assert config.get("rl") == (None if is_sft else "dpo")
    for key, split in (("datasets", "train"), ("test_datasets", "test")):
        (entry,) = config[key]
        assert entry["type"] == ("chat_template" if is_sft else "chat_template.default")
        assert entry["split"] == split
        rows = datasets.load_dataset(str(base / "axolotl" / entry["path"]), split=entry["split"])
        role, content = (entry["message_property_mappings"][part] for part in ("role", "content"))
        known = {source: target for target, sources in entry["roles"].items() for source in sources}
        for row in rows:
            sides = [] if is_sft else [row[entry["field_chosen"]], row[entry["field_rejected"]]]
            assert all(known[side[role]] == "assistant" and side[content] for side in sides)
            for message in row[entry["field_messages"]]:
                assert known[message[role]] in {"system", "user", "assistant", "tool"}
                assert isinstance(message[content], str)
    if is_sft:
        assert entry["field_messages"] == "conversations"
        assert entry["message_property_mappings"] == {"role": "from", "content": "value"}
        assert entry["roles"] == {"user": ["human"], "assistant": ["gpt"], "system": ["system"], "tool": ["tool"]}
