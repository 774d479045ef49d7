"""The plan for a machine with an accelerator: `make gpu`, or `python -m benchmarks.gpu`.

Every step runs in a process of its own under a time limit and writes benchmarks/results/DEVICE/gpu_STEP.json: first
as it goes along, then with how it ended. A crash, a hang or a machine that is taken away loses one step at most.
"""
