"""Other libraries in the benchmark, with a made-up peer: none of the real ones is needed here."""

from __future__ import annotations

import argparse
import json

import pytest
import torch

from benchmarks.pages import peers as bench_peers
from benchmarks.pages import performance, plots
from benchmarks.peers import __main__ as command
from benchmarks.peers import measure, peer, worker
from sgl_kernels.core.registry import registry
from sgl_kernels.ops.attention import reference
from sgl_kernels.tools.bench.ceilings import Ceilings
from sgl_kernels.tools.page.html import markdown_table

CEILINGS = Ceilings(1, {"float32": 100.0}, {"float32": "made up"}, {1 << 20: 10.0})
QUICK = measure.Options(rounds=3, seconds=0.1)
MACHINE = {"cpu": "a processor", "device": "cpu", "platform": "cpu", "arch": "avx2", "cores": 2}


def selection(**change) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    worker.add_selection(parser)
    return argparse.Namespace(**{**vars(parser.parse_args([])), "threads": [1], **change})


class Fake:
    """Answers gelu right twice and wrong once, turns one way down, and has nothing else."""

    def versions(self):
        return {"fake": "1.0"}

    def note(self):
        return "made up"

    def variants(self, op, args):
        if op != "gelu_tanh":
            raise peer.NotOffered(f"fake has no op of its own for {op}")
        out = torch.empty_like(args[0])

        def right():
            out.copy_(torch.nn.functional.gelu(args[0], approximate="tanh"))

        def slow():
            for _ in range(50):
                right()

        def raises():
            raise RuntimeError("no kernel\nfor this")

        return [
            peer.Variant("slow", slow, lambda: out),
            peer.Variant("right", right, lambda: out),
            peer.Variant("wrong", lambda: None, lambda: args[0] * 2),
            peer.Variant("raises", raises, lambda: out),
            peer.attempt("unbuilt", raises),
        ]


def row_of(fake, op="gelu_tanh"):
    declared = registry.op(op)
    case = next(c for c in declared.cases() if "smoke" in c.tags)
    return measure.measure(declared, case, torch.float32, fake, "fake", ceilings=CEILINGS, options=QUICK)


def test_the_fastest_right_way_speaks_for_a_peer():
    row = row_of(Fake())
    assert row["call"] == "right" and set(row["others_ms"]) == {"slow"}
    assert row["vs_peer"] > 0 and row["percent"] > 0 and row["errors"]["peer"] < 1e-6
    assert row["dropped"]["wrong"].startswith("its answer is wrong: relative L2")
    assert row["dropped"]["raises"] == "RuntimeError: no kernel"
    assert row["dropped"]["unbuilt"] == "RuntimeError: no kernel"


def test_what_a_peer_has_not_is_a_reason():
    assert row_of(Fake(), "rms_norm")["reason"] == "fake has no op of its own for rms_norm"


def test_a_peer_that_raises_becomes_a_reason():
    class Raising(Fake):
        def variants(self, op, args):
            raise RuntimeError("illegal instruction\nat 0x0")

    class Wrong(Fake):
        def variants(self, op, args):
            return [v for v in super().variants(op, args) if v.label == "wrong"]

    assert row_of(Raising())["reason"] == "FAILED: RuntimeError: illegal instruction"
    row = row_of(Wrong())
    assert row["reason"].startswith("wrong: its answer is wrong") and "vs_peer" not in row


def test_a_peer_is_not_measured_against_itself():
    declared = registry.op("gelu_tanh")
    args = declared.canonical(torch.ones(2, 64))
    chosen = measure.ours(declared, args, "another")[0]
    assert measure.ours(declared, args, "torch" if chosen == "cpu" else "another")[0] == chosen


def test_cases_come_from_our_registry():
    every = worker.cases(selection())
    assert {op.name for op, _, _ in every} == set(peer.OPS)
    assert all("bench" in case.tags for _, case, _ in every)
    attention = {case.name for op, case, _ in every if op.name == "attention"}
    bench = [c for c in registry.op("attention").cases() if "bench" in c.tags]
    assert attention == {c.name for c in bench if "cold" not in c.tags} != {c.name for c in bench}
    some = worker.cases(selection(op=["attention"], case=["decode*"], dtype=["bfloat16"]))
    assert {(c.name, d) for _, c, d in some} <= {(n, torch.bfloat16) for n in attention} and some


def test_attention_is_spelled_as_peers_take_it():
    op = registry.op("attention")
    for name in ("plain", "gqa_mask", "causal_square", "mask_bool"):
        case = next(c for c in op.cases() if c.name == name)
        args = op.canonical(*case.make(torch.device("cpu"), torch.float32))
        call = peer.attention_of(args)
        k, v = call.repeated()
        assert call.q.is_contiguous() and k.shape[1] == call.q.shape[1]
        out = torch.nn.functional.scaled_dot_product_attention(
            call.q, k, v, call.additive(), is_causal=call.causal, scale=call.scale
        )
        expected = reference.attention(*args)
        torch.testing.assert_close(out.transpose(1, 2), expected, rtol=1e-4, atol=1e-4, msg=name)
    window = next(c for c in op.cases() if c.name == "window")
    with pytest.raises(peer.NotOffered, match="windows"):
        peer.attention_of(op.canonical(*window.make(torch.device("cpu"), torch.float32)))


def test_a_process_that_dies_costs_one_row():
    chosen = selection(op=["layer_norm"], dtype=["float32"])
    total, starts = len(worker.cases(chosen)), []

    def lines(arguments):
        first = int(arguments[arguments.index("--first") + 1])
        starts.append(first)
        yield "a library that prints\n"
        yield json.dumps({"versions": {"fake": "1"}, "note": "", "ceilings": {}})
        if first == 0:  # one row, then a crash on the second
            yield json.dumps({**line("fake"), "case": "first"})
            yield json.dumps({"ended": -4})
        else:
            for _ in range(total - first):
                yield json.dumps(line("fake"))

    about, rows = command.run_peer("zentorch", 1, chosen, lines)
    assert starts == [0, 2] and len(rows) == total and about["versions"] == {"fake": "1"}
    assert rows[1]["reason"] == "FAILED: its process ended with code -4" and rows[1]["dtype"] == "float32"


@pytest.mark.parametrize(
    "said, reason",
    [
        ([{"unavailable": "ImportError: no module"}], "not available: ImportError: no module"),
        ([{"ended": -4}], "FAILED: its process ended with code -4"),
        ([], "FAILED: its process said nothing"),
    ],
)
def test_a_peer_that_does_not_start_has_a_reason_in_every_row(said, reason):
    chosen = selection(op=["layer_norm"])
    _, rows = command.run_peer("openvino", 2, chosen, lambda arguments: iter(map(json.dumps, said)))
    assert len(rows) == len(worker.cases(chosen))
    assert {row["reason"] for row in rows} == {reason} and {row["threads"] for row in rows} == {2}


def test_a_missing_package_is_said_by_the_worker(monkeypatch, capfd):
    monkeypatch.setattr(worker, "start", lambda name, threads: __import__("no_such_package_at_all"))
    worker.main(["--peer", "zentorch", "--threads", "1"])
    assert json.loads(capfd.readouterr().out)["unavailable"].startswith("ModuleNotFoundError")


def line(name, ratio=2.0, case="dit1k.s1024h24d64", dtype="float32", percent=50.0, op="attention") -> dict:
    return {
        "op": op, "case": case, "dtype": dtype, "threads": 1, "peer": name, "call": "call", "ours": "cpu",
        "ours_ms": 1.0, "torch_ms": 3.0, "peer_ms": ratio, "vs_peer": ratio, "vs_peer_spread": [ratio, ratio],
        "vs_torch": 3.0, "vs_torch_spread": [2.9, 3.1], "peer_vs_torch": 3.0 / ratio,
        "peer_vs_torch_spread": [2.9 / ratio, 3.1 / ratio], "samples": 3, "bound": "flops", "percent": percent,
        "errors": {"ours": 1e-7, "torch": 1e-7, "peer": 2e-7}, "others_ms": {}, "dropped": {},
    }  # fmt: skip


def test_the_file_keeps_what_was_not_measured_again(tmp_path):
    path = tmp_path / "peers.json"
    about = {"versions": {"fake": "1"}, "note": "", "ceilings": {"1": {}}}
    bench_peers.save(path, bench_peers.document([line("a"), line("b")], {"a": about}, MACHINE, {}))
    again = {"a": {**about, "ceilings": {"2": {}}}}
    bench_peers.save(path, bench_peers.document([line("b", 9.0)], again, MACHINE, {}))
    found = bench_peers.load(path)
    assert [(r["peer"], r["vs_peer"]) for r in found["rows"]] == [("a", 2.0), ("b", 9.0)]
    assert set(found["peers"]["a"]["ceilings"]) == {"1", "2"}
    path.write_text("{}")
    with pytest.raises(ValueError, match=r"peers\.json is not a file of peers"):
        bench_peers.load(path)


def test_the_page_tells_peers_and_their_gaps(tmp_path):
    rows = [
        line("onnxruntime", 0.8),
        {**measure.head("gelu_tanh", "256x3072", torch.float32, 1, "zentorch"), "reason": "it has none"},
    ]
    peers = {
        "onnxruntime": {"versions": {"onnxruntime": "1"}, "note": "a note", "ceilings": {}},
        "openvino": {"unavailable": "ImportError: none"},
    }
    settings = {"clock": "wall", "load_average": 0.1}
    bench_peers.save(tmp_path / "m" / "peers.json", bench_peers.document(rows, peers, MACHINE, settings))
    page = performance.render(tmp_path)
    for text in (
        "Against other libraries",
        "0.80x",
        "it has none",
        "- onnxruntime 1: a note",
        "ImportError: none",
    ):
        assert text in page


@pytest.mark.parametrize(
    "ratio, percent, verdict",
    [
        (1.5, 50.0, "yes"),
        (1.1, 50.0, "no"),
        (1.1, 95.0, "no: above this machine's ceiling (1.16x)"),
        (0.9, 95.0, "no"),  # the peer is beyond that ceiling
        (1.1, 200.0, "no"),  # and so are we
    ],
)
def test_goals_are_judged_by_the_nearest_peer(ratio, percent, verdict):
    rows = [line("onnxruntime", ratio, percent=percent), line("openvino", 5.0), line("zentorch", 9.0)]
    (found,) = bench_peers.compare([{**row, "dtype": "bfloat16"} for row in rows]).rows
    assert str(found[-1]) == verdict and found[-2] == "onnxruntime"
    only = [line("openvino", 1.0), line("zentorch", 0.1)]  # the float32 goal does not speak of zentorch
    assert [str(row[-1]) for row in bench_peers.compare(only).rows] == ["yes"]


def test_means_name_the_cases_where_a_peer_is_ahead():
    rows = [line("a", 2.0), line("a", 0.5, case="tiny")]
    text = markdown_table(bench_peers.summary(rows))
    assert "1.00x" in text and "0.50x" in text and text.rstrip().endswith("tiny |")


def test_a_picture_is_drawn_of_peers(tmp_path):
    rows = [
        line("a"),
        line("b", 1.5),
        {**measure.head("gelu_tanh", "x", torch.float32, 1, "a"), "reason": "no"},
    ]
    document = bench_peers.document(rows, {}, MACHINE, {})
    (result,) = bench_peers.as_results(document)["results"]
    assert [c["name"] for c in result["candidates"]] == ["ours", "a", "b"]
    assert result["candidates"][2]["vs_torch"] == 2.0
    pytest.importorskip("matplotlib")
    bench_peers.save(tmp_path / "peers.json", document)
    assert plots.draw_all(tmp_path) == [tmp_path / "peers.png"]
