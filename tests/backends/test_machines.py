"""What runs on 30 invented machines, as whole Selection values against tests/backends/machines.json.

After a change of a backend, of the order table or of the bug list, look at what the change does to all of them:

    python -m tests.backends.test_machines --write && git diff tests/backends/machines.json
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from packaging.version import Version

from benchmarks.pages import machines as report_machines
from sgl_kernels.core.control import explain
from sgl_kernels.core.registry import registry
from tests.backends.machines import MACHINES, QUESTIONS, decide

PATH = Path(__file__).with_name("machines.json")


def decided() -> dict[str, Any]:
    """Every selection of every machine, as plain data."""
    return {
        name: {op: decide(machine, op).to_dict() for op in QUESTIONS} for name, machine in MACHINES.items()
    }


def text_of(everything: dict[str, Any]) -> str:
    """JSON with one line for each candidate, so that a diff of it reads as a list of changed decisions."""
    machines = []
    for name, selections in everything.items():
        ops = []
        for op, selection in selections.items():
            head = [f"{json.dumps(k)}: {json.dumps(v)}" for k, v in selection.items() if k != "candidates"]
            rows = ",\n".join("    " + json.dumps(row) for row in selection["candidates"])
            ops.append(
                f'  "{op}": {{\n   {(", " + chr(10) + "   ").join(head)},\n   "candidates": [\n{rows}\n   ]\n  }}'
            )
        machines.append(f' "{name}": {{\n' + ",\n".join(ops) + "\n }")
    return "{\n" + ",\n".join(machines) + "\n}\n"


@pytest.fixture(scope="module")
def committed() -> dict[str, Any]:
    return json.loads(PATH.read_text())


@pytest.mark.parametrize("machine", MACHINES)
@pytest.mark.parametrize("op", QUESTIONS)
def test_selection(machine, op, committed, monkeypatch):
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    assert decide(MACHINES[machine], op).to_dict() == committed[machine][op]


def test_the_file_names_exactly_these_machines(committed):
    assert list(committed) == list(MACHINES) and len(MACHINES) >= 25


@pytest.mark.parametrize("machine", MACHINES)
def test_every_machine_is_served(machine):
    for op in QUESTIONS:
        selection = decide(MACHINES[machine], op)
        assert selection.chosen, selection
        assert selection.rejected("torch") is None, "the torch floor serves every device"


def test_every_backend_of_the_registry_is_considered_on_every_machine():
    for name, machine in MACHINES.items():
        for op in QUESTIONS:
            considered = {c.backend for c in decide(machine, op).candidates}
            assert considered == {i.backend for i in registry.implementations(op)}, name


@pytest.mark.parametrize("machine", report_machines.machines(), ids=lambda m: m["device"])
def test_the_reviewed_machines_have_evidence_and_are_served(machine):
    assert (
        machine["evidence"]
        and machine["links"]
        and all(link.startswith("https://") for link in machine["links"])
    )
    for question in report_machines.QUESTIONS:
        selection = report_machines.decide(machine, question)
        assert selection.chosen and selection.device.platform == machine["device"].partition(":")[0]


@pytest.mark.parametrize(
    "backend, device, package, change, words",
    [
        ("fa2", "rocm:gfx942", ("flash-attn", "2.8.4"), {"softcap": 30.0}, "ignores it"),
        ("fa2", "cuda:sm90", ("flash-attn", "2.8.4"), {"softcap": 30.0}, ""),
        ("sage_attn3", "cuda:sm103", ("sageattn3", "1.0"), {}, "needs sm100, sm120, sm121"),
        ("fa4", "cuda:sm100", ("flash-attn-4", "4.0.0b36"), {"dim": 256}, ""),
        ("fa4", "cuda:sm100", ("flash-attn-4", "4.0.0b36"), {"dim": 256, "softcap": 30.0}, "softcap"),
        ("fa4", "cuda:sm100", ("flash-attn-4", "4.0.0b36"), {"dim": 192}, "at most 128, or 256"),
        ("fa4", "cuda:sm90", ("flash-attn-4", "4.0.0b36"), {"dim": 192}, ""),
        ("fa4", "cuda:sm120", ("flash-attn-4", "4.0.0b36"), {"dim": 256}, "at most 128"),
        ("fa4", "cuda:sm90", ("flash-attn-4", "4.0.0b20"), {}, "needs >=4.0.0b36"),
        ("xformers", "cuda:sm100", ("xformers", "0.0.35"), {"mask": True}, "ends at capability 9.0"),
        ("xformers", "cuda:sm90", ("xformers", "0.0.35"), {"mask": True}, ""),
        (
            "xformers",
            "cuda:sm120",
            ("xformers", "0.0.35"),
            {"dtype": torch.float32},
            "ends at capability 9.0",
        ),
        ("xformers", "cuda:sm120", ("xformers", "0.0.35"), {}, ""),
        ("flashinfer", "cuda:sm75", ("flashinfer-python", "0.7.2"), {}, "bfloat16 needs capability 8.0"),
        ("flashinfer", "cuda:sm75", ("flashinfer-python", "0.7.2"), {"dtype": torch.float16}, ""),
    ],
)
def test_what_the_vendors_say_themselves(backend, device, package, change, words):
    """Limits found in their sources: a call beyond one would raise, stop the kernel, or be answered wrongly."""
    dtype, dim = change.get("dtype", torch.bfloat16), change.get("dim", 128)
    q = torch.empty(1, 256, 8, dim, dtype=dtype, device="meta")
    mask = torch.empty(1, 1, 256, 256, dtype=torch.bool, device="meta") if change.get("mask") else None
    found = explain(
        "attention", q, q, q, mask, softcap=change.get("softcap", 0.0), device=device, backend=backend,
        version_of={package[0]: Version(package[1])}.get,
    )  # fmt: skip
    rejected = found.rejected(backend)
    allowed = rejected is None or rejected.reason.value == "fidelity"
    assert allowed if not words else words in rejected.detail, rejected


if __name__ == "__main__":
    if sys.argv[1:] != ["--write"]:
        sys.exit(__doc__)
    PATH.write_text(text_of(decided()))
    print(f"wrote {PATH.relative_to(Path.cwd())}: review `git diff` of it")
