#!/usr/bin/env bash
# The Cortex from recorded outcomes to a promoted policy, and back: make cortex-demo
#
# Real outcomes, no model needed: examples/banks/gsm8k holds what Mixtral-8x7B (cheap) and GPT-4 (strong) answered to
# 1,319 questions. The training sees the bank's training questions, the choice of settings its validation questions, the
# gate its other questions. Everything lands in the folder given (default: runs/cortex-demo).
set -euo pipefail

out=${1:-runs/cortex-demo}
bank=examples/banks/gsm8k
registry=$out/mlflow.db
celr=${CELR_RAY:-celr-ray}

say() { printf '\n== %s\n' "$*"; }
expect() { # expect EXIT_CODE COMMAND…: the gate says PASS by 0, FAIL by 3, INCONCLUSIVE by 4
    local wanted=$1 code=0
    shift
    "$@" || code=$?
    [ "$code" -eq "$wanted" ] || { echo "cortex-demo: exit code $code, expected $wanted: $*" >&2; exit 1; }
}

mkdir -p "$out"
say "1. Logged decisions: random ones, replayed on the questions that are not the gate's"
# A failure costs half a task's budget beside the two points that a success earns: so saving counts, as the gate asks.
"$celr" bank replay --bank $bank --epsilon 1 --replays 16 --failure-penalty 0.5 --out "$out/replay"

say "2. Training: BC, CQL and IQL, chosen on the validation questions"
"$celr" train-cortex --transitions "$out/replay" --name router --registry "$registry" --out "$out/training" \
    --train.updates 3000 --train.alphas 0.01 0.1 --train.expectiles 0.9 --train.betas 10

say "3. The gate: the trained policy against the heuristic, on questions that nobody has seen; promoted if it passes"
expect 0 "$celr" gate --candidate router@challenger --suite $bank --registry "$registry" --promote --out "$out/gate"

say "4. A worse policy: a clone of always-cheap must be refused"
"$celr" bank replay --bank $bank --policy always-cheap --epsilon 0.05 --out "$out/worse-replay"
"$celr" train-cortex --transitions "$out/worse-replay" --algorithm bc --name router --registry "$registry" --out "$out/worse"
expect 3 "$celr" gate --candidate router@challenger --champion router@champion --suite $bank --registry "$registry" --out "$out/worse-gate"

say "5. One step back: the heuristic decides again"
"$celr" policy rollback router --registry "$registry" --reason "the demo's last step"
"$celr" policy list --registry "$registry"

say "Reports: $out/training/training/index.html, $out/gate/gate_report.html, $out/worse-gate/gate_report.html"
