"""The settings of every job: one model per job, filled from flags, environment and YAML by `settings.load_job`.

Each field documents itself; `--help` prints these texts. This module does no work and starts nothing.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self, get_args

from pydantic import BeforeValidator, ConfigDict, Field, model_validator
from pydantic_settings import CliPositionalArg

from celr_ray.core.episodes import Limits
from celr_ray.core.escalation import EscalationConfig
from celr_ray.cortex.gate.settings import GateConfig
from celr_ray.settings import Job, Section, Uri, load_job, read_json_text

__all__ = [
    "BankBuildJob",
    "BankConfig",
    "ConvertJob",
    "DatasetConfig",
    "ExecuteConfig",
    "ExecuteJob",
    "ExportConfig",
    "ExportJob",
    "GateConfig",
    "GateJob",
    "IngestConfig",
    "JudgeConfig",
    "JudgeJob",
    "PairConfig",
    "PairJob",
    "PipelineJob",
    "PolicyListJob",
    "PolicyPromoteJob",
    "PolicyRollbackJob",
    "PolicyShowJob",
    "ReportJob",
    "RuntimeConfig",
    "ScoreConfig",
    "ScoreJob",
    "TrainDifficultyJob",
    "load_job",
]


class IngestConfig(Section):
    """How logs are found, split and read."""

    format: Literal[
        "auto",
        "celr_plan",
        "celr_step",
        "celr_benchmark",
        "tau_bench",
        "tau2_bench",
        "atif",
        "swe_agent",
        "mini_swe_agent",
        "intercode",
        "reflexion",
        "chat",
    ] = Field("auto", description="format of the logs; auto recognises it record by record")
    split_bytes: int = Field(
        256 * 2**20,
        ge=1,
        description="plain JSONL is read in ranges of at most about this many bytes, one unit each: a 64th of the "
        "input, but no less than 64 MiB (or this, if smaller)",
    )
    files_per_unit: int = Field(2000, ge=1, description="at most this many small files in one unit")
    max_record_bytes: int = Field(
        256 * 2**20, ge=1, description="a longer record (or decompressed document) goes to quarantine, bytes"
    )
    n_buckets: int | None = Field(
        None, ge=1, le=65536, description="task buckets, the units of judging and pairing; null = from the input size"
    )
    redact: bool = Field(
        False, description="replace secrets in trajectories and quarantine too, as export.redact does in exports"
    )


class ScoreConfig(Section):
    """The rule scores and their weights in the composite; the four weights must sum to 1."""

    weight_success: float = Field(0.6, ge=0, le=1, description="weight of the outcome")
    weight_efficiency: float = Field(0.15, ge=0, le=1, description="weight of 1 / (1 + retries)")
    weight_cost: float = Field(0.15, ge=0, le=1, description="weight of the budget share left")
    weight_completion: float = Field(0.1, ge=0, le=1, description="weight of the share of plan steps completed")
    default_budget_usd: float | None = Field(
        None, gt=0, description="budget of runs whose log has none, US$; null = their cost score stays null"
    )

    @model_validator(mode="after")
    def _check_sum(self) -> Self:
        total = self.weight_success + self.weight_efficiency + self.weight_cost + self.weight_completion
        if abs(total - 1) > 1e-9:
            raise ValueError(f"the four score weights must sum to 1, they sum to {total:g}")
        return self


class JudgeConfig(Section):
    """The judge: which model, how it is run, what it may see."""

    model_config = ConfigDict(extra="forbid", validate_default=True, protected_namespaces=())

    model_source: str = Field(
        "none", description="model name or folder that vLLM can load; smollm2 = the bundled demo model; none = no judge"
    )
    concurrency: int = Field(1, ge=1, description="vLLM engines at the same time")
    num_gpus: float = Field(0, ge=0, description="GPUs of each engine; 0 = CPU")
    num_cpus: float = Field(
        1, ge=0, description="CPUs that Ray reserves for each engine; a CPU engine computes on its share of all CPUs"
    )
    engine_kwargs: Annotated[dict[str, Any], BeforeValidator(read_json_text)] = Field(
        default_factory=dict, description="arguments of vllm.LLM, as JSON; they win over the defaults"
    )
    max_model_len: int = Field(
        4096, ge=512, description="context window that the judge may use, tokens; rubric and question take about 360"
    )
    max_unit_rows: int = Field(1000, ge=1, description="most rows of one unit of judging")
    checkpoint_rows: int = Field(
        256, ge=1, description="rows judged between two saves; a killed job loses at most so many for each engine"
    )
    cache: Uri | None = Field(
        None, description="folder of judgments already paid for, to share between runs; null = inside the run"
    )
    retry_errors: bool = Field(False, description="judge the rows of an earlier call again that ended in engine_error")
    rubric: Literal["additive"] = Field("additive", description="the rubric in the judge's system text")

    @model_validator(mode="after")
    def _check_gpus(self) -> Self:
        if self.num_gpus > 1 and not self.num_gpus.is_integer():
            raise ValueError(f"num_gpus must be a whole number above 1, or a part of one GPU; it is {self.num_gpus:g}")
        return self

    @property
    def is_enabled(self) -> bool:
        """Tell whether a judge is configured."""
        return self.model_source != "none"


class PairConfig(Section):
    """Which runs of a task become preference pairs."""

    strategy: Literal["best_worst", "all"] = Field(
        "best_worst", description="one pair a task (best against worst), or all pairs above the margin"
    )
    margin: float = Field(
        0.05, ge=0, le=1, description="least difference of composite scores where the outcomes are equal"
    )
    judge_margin: float = Field(0.05, ge=0, le=1, description="least difference of judge scores")
    max_pairs_per_task: int = Field(16, ge=1, description="cap for each pair type")
    max_kto_per_task: int = Field(16, ge=0, description="cap of the single labelled rows of a task")
    sft: list[Uri] = Field(
        default_factory=list,
        description='SFT data for SPIN, joined to runs by prompt: JSONL of {"prompt", "response"} or {"messages"}',
    )


ExportFormat = Literal["trl", "axolotl", "spin", "sft", "kto"]


class ExportConfig(Section):
    """What is written for trainers."""

    formats: list[ExportFormat] = Field(
        default_factory=lambda: list(get_args(ExportFormat)), description="formats to write"
    )
    test_fraction: float = Field(
        0.05, ge=0, lt=1, description="share of tasks (never of single rows) that go to the test split"
    )
    sft_per_task: int = Field(1, ge=1, description="successful runs of each task that go to SFT, best first")
    redact: bool = Field(
        True, description="replace secrets (API keys, tokens, passwords in URLs, private keys) by [REDACTED …]"
    )


class ExecuteConfig(Section):
    """How tasks are run on the model tiers."""

    limit: int | None = Field(None, ge=1, description="run only the first so many tasks; null = all")
    rows_per_unit: int = Field(
        256, ge=1, description="tasks that advance together; a killed job loses at most so many for each worker"
    )
    epsilon: float = Field(
        0.0,
        ge=0,
        le=1,
        description="share of decisions that take any allowed and safe action; 0.2 makes logs that other policies can "
        "be evaluated on, 0 follows the policy alone",
    )
    default_budget_usd: float | None = Field(
        None,
        gt=0,
        description="budget of tasks that have none, US$; null = four times the worst case of one attempt on the "
        "strongest tier",
    )
    default_time_limit_s: float = Field(
        3600, gt=0, description="time limit of tasks that have none, seconds; calls of a batch share its time"
    )
    system_prompt: str | None = Field(None, description="system message in front of every task")
    difficulty: Uri | None = Field(
        None, description="difficulty model made by `celr-ray train-difficulty`; null = a constant, flagged as unknown"
    )
    monitor_rules: Uri | None = Field(None, description="YAML rules of what is unsafe; null = the packaged ones")
    probe: bool = Field(
        False, description="sample the cheapest tier twice before the first decision and show the policy how they agree"
    )
    concurrency: int = Field(1, ge=1, description="workers at the same time, each with its own engines")
    num_cpus: float = Field(1, ge=0, description="CPUs that Ray reserves for each worker; its GPUs are the tiers'")
    allow_weak_sandbox: bool = Field(
        False, description="run tests of model code where this machine cannot cut it off from network and files"
    )
    limits: Limits = Field(default_factory=Limits, description="caps that no policy can pass")
    escalation: EscalationConfig = Field(default_factory=EscalationConfig, description="thresholds of the heuristic")


FAILURE_PENALTY: Any = Field(
    100.0,
    gt=0,
    allow_inf_nan=False,
    description="what the reward charges for a failure, in task budgets. At 100 nothing that a task can spend is worth "
    "one more failure in 100 tasks, and costs are lost in noise; from 0.5 to 10 policies learn to save. The gate "
    "decides the same way whatever was used here",
)


class DatasetConfig(Section):
    """How logs become the transitions that a policy of the Cortex is trained on."""

    validation_fraction: float = Field(
        0.2, ge=0, lt=1, description="share of tasks (never of single rows) that go to the validation split"
    )
    seed: int = Field(0, ge=0, description="of the split of tasks and of the order of episodes")
    failure_penalty: float = FAILURE_PENALTY
    foreign: Literal["map", "refuse"] = Field(
        "map", description="logs without decisions: map what they show onto the six actions, or leave them out"
    )
    tiers: list[str] = Field(
        default_factory=list,
        description="logs without decisions: the models of the ladder as the logs name them, weak to strong; none = "
        "each run's model is a ladder of its own",
    )
    default_budget_usd: float | None = Field(
        None, gt=0, description="logs without decisions: budget of runs whose log has none, US$; null = cost counts 0"
    )
    default_time_limit_s: float | None = Field(
        None, gt=0, description="logs without decisions: time limit of the runs, seconds; null = time counts 0"
    )
    monitor_rules: Uri | None = Field(
        None, description="logs without decisions: YAML rules of what is unsafe; null = the packaged ones"
    )
    limits: Limits = Field(default_factory=Limits, description="logs without decisions: the caps of their episodes")
    n_buckets: int | None = Field(
        None, ge=1, le=65536, description="parts that the transitions are written in; null = from the input size"
    )


REGISTRY: Any = Field(
    None,
    description="registry of policies: sqlite:///FILE, http://HOST:PORT of an MLflow server, a file *.db or a folder; "
    "null = MLFLOW_TRACKING_URI if set, else ./mlflow.db",
)


class TrainConfig(Section):
    """How a policy of the Cortex is trained and chosen."""

    min_trajectories: int = Field(
        50, ge=2, description="with fewer logged episodes only the heuristic is cloned, and RL is refused"
    )
    hidden: list[int] = Field(default_factory=lambda: [128, 128], min_length=1, description="hidden layers' sizes")
    updates: int = Field(1500, ge=1, description="gradient steps of CQL and IQL, rounded up to a multiple of 20")
    bc_updates: int = Field(600, ge=1, description="gradient steps of BC, which the others start from; likewise")
    batch_size: int = Field(1024, ge=1, description="transitions of a minibatch, over all Learners")
    lr: float = Field(1e-3, gt=0, lt=1, description="learning rate of Adam")
    alphas: list[float] = Field(
        default_factory=lambda: [0.03, 0.1, 0.3, 1.0], description="CQL: weights of the conservative term to try"
    )
    expectiles: list[float] = Field(default_factory=lambda: [0.7, 0.9], description="IQL: τ to try")
    betas: list[float] = Field(default_factory=lambda: [3.0, 10.0], description="IQL: inverse temperatures to try")
    seeds: list[int] = Field(default_factory=lambda: [0], min_length=1, description="each setting is trained with each")
    min_ess: float = Field(
        30, ge=1, description="a trial whose effective sample size on the validation episodes is less is not chosen"
    )
    num_learners: int = Field(0, ge=0, description="RLlib Learners in processes of their own; 0 = in the trial's")
    stream_bytes: int = Field(
        2**30, ge=0, description="transitions of more bytes are streamed from Parquet, less are held in memory"
    )


class RuntimeConfig(Section):
    """Where the work runs."""

    executor: Literal["auto", "ray", "loop"] = Field(
        "auto",
        description="ray = Ray Data; loop = this process; auto = ray on a cluster, on large input or for a judge "
        "with several engines or GPUs, else loop",
    )
    address: str | None = Field(
        None, description="Ray cluster to join; null = RAY_ADDRESS if set, else an embedded local Ray"
    )
    num_cpus: int | None = Field(None, ge=1, description="CPUs of an embedded Ray; null = all of the machine")
    seed: int = Field(
        0,
        ge=0,
        description="of the draws of `execute` and of replays, and of the folds of off-policy estimates; trainings "
        "have --train.seeds, and nothing else is random",
    )


class _Job(Job):
    """What all jobs have."""

    runtime: RuntimeConfig = Field(default_factory=RuntimeConfig)
    overwrite: bool = Field(False, description="delete what another run or configuration left at the target first")


class PipelineJob(_Job):
    """Logs in, judged and paired training data out: ingest, score, judge, pair, export, report."""

    logs: list[Uri] = Field(min_length=1, description="log files, folders or globs; local, file:// or s3://")
    out: Uri = Field(description="run folder to create or to resume; local or s3://")
    ingest: IngestConfig = Field(default_factory=IngestConfig)
    score: ScoreConfig = Field(default_factory=ScoreConfig)
    judge: JudgeConfig = Field(default_factory=JudgeConfig)
    pair: PairConfig = Field(default_factory=PairConfig)
    export: ExportConfig = Field(default_factory=ExportConfig)


class ScoreJob(_Job):
    """Ingest logs into a run and score them; without --logs, score an existing run again with new weights."""

    run: Uri = Field(description="run folder")
    logs: list[Uri] = Field(
        default_factory=list, description="log files, folders or globs; none = score the trajectories already there"
    )
    ingest: IngestConfig = Field(default_factory=IngestConfig)
    score: ScoreConfig = Field(default_factory=ScoreConfig)


class ConvertJob(_Job):
    """Write logs, or the trajectories of a run, as ATIF 1.8: one JSON file each, in RUN/atif."""

    run: Uri = Field(description="run folder to create, to resume or to convert")
    logs: list[Uri] = Field(
        default_factory=list, description="log files, folders or globs; none = convert the trajectories already there"
    )
    ingest: IngestConfig = Field(default_factory=IngestConfig)


class JudgeJob(_Job):
    """Judge every trajectory of a run with a vLLM model."""

    run: Uri = Field(description="run folder that holds trajectories")
    judge: JudgeConfig = Field(default_factory=JudgeConfig)


class PairJob(_Job):
    """Build preference pairs from the scored (and judged) trajectories of a run."""

    run: Uri = Field(description="run folder that holds trajectories")
    pair: PairConfig = Field(default_factory=PairConfig)


class ExportJob(_Job):
    """Write the pairs of a run as training files for TRL, Axolotl, SPIN, SFT and KTO."""

    run: Uri = Field(description="run folder that holds pairs")
    export: ExportConfig = Field(default_factory=ExportConfig)


class ExecuteJob(_Job):
    """Run tasks on model tiers, cheap first, a policy deciding before every call; writes logs."""

    tasks: Uri = Field(description="tasks, JSONL: task_id, prompt, checker, and verifier, budget_usd, … if known")
    tiers: Uri = Field(description="YAML file of the model tiers, weak to strong, with their prices")
    policy: str = Field(
        "heuristic",
        description="heuristic, always-cheap, always-strong or random; NAME@ALIAS or NAME@VERSION of the registry; "
        "or the folder of a stored policy",
    )
    registry: str | None = REGISTRY
    out: Uri = Field(description="folder to create or to resume; its logs/ is what `celr-ray pipeline --logs` reads")
    execute: ExecuteConfig = Field(default_factory=ExecuteConfig)


class TrainDifficultyJob(_Job):
    """Train the estimate of how hard a task is for the cheapest tier, from its first attempts in a run."""

    run: Uri = Field(description="run folder that holds trajectories with known outcomes")
    model: str = Field(description="the cheapest tier's model, as the logs name it")
    out: Uri = Field(description="file to write, for --execute.difficulty; its figures go beside it")


class BankConfig(Section):
    """How an outcome bank is made of what was recorded."""

    split_seed: int = Field(0, ge=0, description="of the split of tasks into train, validation and gate")
    validation_fraction: float = Field(0.2, ge=0, lt=1, description="share of tasks to choose settings on")
    gate_fraction: float = Field(0.3, ge=0, lt=1, description="share of tasks that only the gate may use")
    difficulty: str = Field(
        "as-recorded",
        description="as-recorded = the logs' estimate, 0.5 where there is none; train = from the texts and outcomes of "
        "the training tasks, theirs out of fold; else a file of `celr-ray train-difficulty`",
    )
    confidence: Literal["as-recorded", "train"] = Field(
        "as-recorded",
        description="of answers. train = P(right) from question and answer, learned on the training tasks, theirs out "
        "of fold; needs --source routellm with responses. A policy sees it only after it has paid for the answer",
    )
    default_budget_usd: float | None = Field(
        None, gt=0, description="budget of tasks without one, US$; null = four worst cases of the strongest tier"
    )
    default_time_limit_s: float = Field(3600, gt=0, description="time limit of tasks without one, seconds")
    models: list[str] = Field(
        default_factory=list, description="--source runs: the models that are the tiers, weak to strong; none = by cost"
    )
    trial_usd: float | None = Field(
        None, gt=0, description="what a run without a cost of its own counts, US$; with 1, costs count trials"
    )
    prices: Annotated[dict[str, tuple[float, float]], BeforeValidator(read_json_text)] = Field(
        default_factory=dict,
        description='--source routellm: JSON {"MODEL": [INPUT, OUTPUT]}, US$ per million tokens; wins over the '
        "published prices",
    )

    @model_validator(mode="after")
    def _check_split(self) -> Self:
        if self.validation_fraction + self.gate_fraction >= 1:
            raise ValueError("validation_fraction and gate_fraction leave no task to train on: they must sum below 1")
        return self


class BankBuildJob(_Job):
    """Make a bank of recorded outcomes, to replay policies on: from logs of `celr-ray execute`, or public results."""

    logs: list[Uri] = Field(default_factory=list, description="logs of celr-ray execute: files, folders or globs")
    source: Literal["routellm", "runs", "reflexion"] | None = Field(
        None,
        description="what --files are: routellm = RouteLLM's Parquet files of responses; runs = independent runs in "
        "any log format, such as tau2-bench and tau-bench; reflexion = trials of Reflexion",
    )
    files: list[Uri] = Field(default_factory=list, description="files of --source")
    tiers: Uri | None = Field(
        None, description="with --logs: the YAML file of the tiers they ran on, for prices and exact worst cases"
    )
    out: Uri = Field(description="folder of the bank")
    bank: BankConfig = Field(default_factory=BankConfig)


class BankReplayJob(_Job):
    """Replay a policy with exploration on a bank's tasks that are not the gate's: transitions to train from."""

    bank: Uri = Field(description="folder of the bank")
    policy: str = Field("heuristic", description="a built-in policy, NAME@ALIAS of the registry, or a folder")
    registry: str | None = Field(None, description="tracking URI of the registry; null = MLFLOW_TRACKING_URI")
    epsilon: float = Field(0.2, ge=0, le=1, description="share of decisions that take any allowed action")
    replays: int = Field(4, ge=1, description="episodes of each task")
    failure_penalty: float = FAILURE_PENALTY
    out: Uri = Field(description="folder for the transitions, which `celr-ray train-cortex --transitions` reads")


class EvaluatePolicyJob(_Job):
    """Estimate from logged decisions what a policy would have earned; a screen that can only say no."""

    transitions: Uri = Field(description="folder of transitions: of a dataset, or of Parquet parts")
    policy: str = Field(description="a built-in policy, NAME@ALIAS or NAME@VERSION of the registry, or a folder")
    champion: str | None = Field(None, description="the policy deployed now: is --policy proven worse than it?")
    registry: str | None = Field(None, description="tracking URI of the registry; null = MLFLOW_TRACKING_URI")
    split: Literal["train", "validation"] = Field(
        "validation", description="which tasks; what a policy learned from makes it look better than it is"
    )
    alpha: float = Field(0.05, gt=0, lt=0.5, description="1 − confidence of each bound")
    out: Uri | None = Field(None, description="JSON file for the figures; null = only the table")


class TrainCortexJob(_Job):
    """Train a policy of the Cortex from logs (BC, CQL, IQL), chosen by held-out off-policy evaluation."""

    logs: list[Uri] = Field(
        default_factory=list, description="logs of `celr-ray execute --execute.epsilon 0.2`, or of other agents"
    )
    transitions: Uri | None = Field(
        None, description="folder of a finished dataset instead of logs, such as `celr-ray bank replay` makes"
    )
    algorithm: Literal["auto", "bc", "cql", "iql"] = Field(
        "auto", description="auto = all three; the best on the validation tasks is taken"
    )
    out: Uri = Field(description="folder to create or to resume; OUT/policy is the artefact")
    name: str = Field("cortex", description="of the policy, in the registry too")
    registry: str | None = Field(
        None,
        description="MLflow registry to log to: tracking URI, file or folder; null = MLFLOW_TRACKING_URI, else "
        "mlflow.db in the current folder if MLflow is installed; none = register nothing",
    )
    parent: str | None = Field(None, description="policy that deployed agents follow now, noted in the manifest")
    dataset: DatasetConfig = Field(default_factory=DatasetConfig)
    ingest: IngestConfig = Field(default_factory=IngestConfig)
    train: TrainConfig = Field(default_factory=TrainConfig)
    escalation: EscalationConfig = Field(
        default_factory=EscalationConfig, description="thresholds of the heuristic, the fallback of every policy"
    )


class GateJob(_Job):
    """Decide whether a policy may take the champion's place: PASS (exit code 0), FAIL (3) or INCONCLUSIVE (4)."""

    candidate: str = Field(
        description="the policy that wants to be champion: NAME@ALIAS, NAME@VERSION, folder, built-in"
    )
    champion: str | None = Field(
        None, description="the policy deployed now; null = the registry's champion of that NAME, else the heuristic"
    )
    anchor: str | None = Field(
        None, description="frozen base of the margins; null = the registry's anchor of that NAME, else the heuristic"
    )
    suite: Uri = Field(description="folder of an outcome bank, to replay; or a task file, to run on --tiers")
    tiers: Uri | None = Field(None, description="YAML file of the model tiers, for a suite of tasks")
    out: Uri = Field(description="folder to create or to resume")
    registry: str | None = REGISTRY
    transitions: Uri | None = Field(
        None, description="logged transitions: a candidate that they prove worse is rejected before anything is run"
    )
    promote: bool = Field(False, description="make a registered candidate the champion if it passes")
    concurrency: int = Field(1, ge=1, description="workers at the same time; a live suite's have engines of their own")
    num_cpus: float = Field(1, ge=0, description="CPUs that Ray reserves for each worker")
    gate: GateConfig = Field(default_factory=GateConfig)
    execute: ExecuteConfig = Field(
        default_factory=ExecuteConfig, description="live suites: how tasks are run; banks: only escalation"
    )


class ReportJob(_Job):
    """Write the HTML report of a run."""

    run: Uri = Field(description="run folder")


class _PolicyJob(Job):
    """What the commands on the registry have."""

    registry: str | None = REGISTRY


class PolicyListJob(_PolicyJob):
    """List the policies of the registry, and what champion, challenger, previous and anchor point to."""


class PolicyShowJob(_PolicyJob):
    """Show the versions and the history of a policy, or the manifest of one version."""

    policy: CliPositionalArg[str] = Field(description="NAME, NAME@ALIAS or NAME@VERSION, such as router@champion")


class PolicyPromoteJob(_PolicyJob):
    """Make a version the champion: with the PASS of a gate against the present champion, or with --force REASON."""

    policy: CliPositionalArg[str] = Field(description="NAME@VERSION or NAME@ALIAS, such as router@challenger")
    evidence: Uri | None = Field(None, description="gate_report.json of `celr-ray gate` for this candidate")
    force: str | None = Field(None, description="promote without evidence, for this reason; it goes to the audit log")


class PolicyRollbackJob(_PolicyJob):
    """Make the previous champion the champion again; called twice, it goes back two steps."""

    policy: CliPositionalArg[str] = Field(description="NAME of the policy")
    reason: str = Field("", description="why, for the audit log")
