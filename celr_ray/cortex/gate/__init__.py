"""The gate: whether a candidate policy may take the champion's place, by evidence that can be trusted.

settings     margins, levels and sizes
results      what the policies did on the tasks: rows, their checks, one value a task
criteria     the tests and conditions that must all hold
monitor      units in any order → complete prefix → criteria → decision
suites       where results come from: a bank that is replayed, …
live         … or tasks that are run
compare      baselines, curve and metrics beside candidate and champion
holes        loophole policies and damaged results go through the same judge; none may pass
report       gate_report.json (its HTML page: `celr_ray.report.gate_page`)
stage        units of tasks on Ray, resumable
command      `celr-ray gate`: registry, audit log, promotion

`celr_ray.cortex.gatekeeper.PromotionGate` is the front door.
"""
