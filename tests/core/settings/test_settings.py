"""Settings: precedence, specificity, rules, overrides, fallbacks, and being a value."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from sgl_kernels.core import log
from sgl_kernels.core.errors import ConfigError
from sgl_kernels.core.settings import (
    OP_GROUPS,
    OPS,
    SOURCES,
    CacheDit,
    CacheKnobs,
    Located,
    OpPolicy,
    Rule,
    Scope,
    Settings,
    load_settings,
    settle,
)

ATTENTION = OP_GROUPS["attention"]


def prefer(settings: Settings, op: str, scope: Scope = Scope(), shape: str = "") -> tuple[str, ...]:  # noqa: B008
    return settings.policy(op, scope, shape).prefer


def test_nothing_said_is_the_default() -> None:
    assert settle() == Settings() == settle(("a", {}), ("b", {"check": None}))
    assert Settings().policy("attention") == OpPolicy()
    assert Settings().policy("an op nobody knows") == OpPolicy()


def test_settings_are_values() -> None:
    layers = {"attention.backends": "fa3", "options.fa3": {"tiles": [1, 2], "map": {"a": 1}}, "rules": []}
    one, two = settle(("x", layers)), settle(("y", dict(layers)))
    assert one == two and hash(one) == hash(two) and len({one, two}) == 1
    assert one != settle(("x", {"attention.backends": "fa2"}))
    assert one.options_for("fa3") == {"tiles": (1, 2), "map": (("a", 1),)}
    assert one.options_for("fa2") == {}
    with pytest.raises(AttributeError):
        one.check = True  # type: ignore[misc]
    assert one.replace(check=True).check and not one.check


def test_origins_do_not_count_for_equality() -> None:
    a = settle(("command-line flags", {"check": True}))
    b = settle(("environment", Located({"check": "1"}, {"check": "environment SGL_KERNELS_CHECK"})))
    assert a == b and hash(a) == hash(b)
    assert (a.origin("check"), b.origin("check")) == ("command-line flags", "environment SGL_KERNELS_CHECK")
    assert a.origin("cache_root") == "built-in"


def test_a_stronger_source_wins(tmp_path: Path) -> None:
    file = tmp_path / "cfg.yaml"
    file.write_text(
        "attention: [fa2]\nlogging_level: ERROR\ncheck: true\ncache_root: /file\nrocm: {vae: true}\n"
    )
    environ = {
        "SGLANG_DIFFUSION_ATTENTION_CONFIG": str(file),
        "SGLANG_DIFFUSION_ATTENTION_BACKEND": "fa3",
        "SGLANG_DIFFUSION_LOGGING_LEVEL": "DEBUG",
        "SGL_KERNELS_CHECK": "0",
    }
    flags = {"attention.backends": "sage", "logging_level": "critical"}
    settings = load_settings(environ, flags)
    assert prefer(settings, "attention") == ("sage_attn",)
    assert settings.policy("attention").origin == SOURCES[3]
    assert (settings.logging_level, settings.origin("logging_level")) == ("CRITICAL", SOURCES[3])
    assert (settings.check, settings.origin("check")) == (False, "environment SGL_KERNELS_CHECK")
    assert (settings.cache_root, settings.origin("cache_root")) == ("/file", f"file {file}:4")
    assert (settings.rocm.vae, settings.origin("rocm.vae")) == (True, f"file {file}:5")
    assert settings.attention_config == str(file)
    assert prefer(load_settings(environ), "attention") == ("fa3",)
    del environ["SGLANG_DIFFUSION_ATTENTION_BACKEND"]
    assert prefer(load_settings(environ), "attention") == ("fa2",)


def test_groups_name_the_ops_of_the_registry() -> None:
    from sgl_kernels.core.registry import registry

    assert set(registry.ops()) <= set(OPS)
    assert set(OPS) - set(registry.ops()) <= set(OP_GROUPS["nvfp4"])
    assert len(OPS) == len(set(OPS)) == 19


def test_the_attention_variable_speaks_for_attention_only() -> None:
    settings = load_settings({"SGLANG_DIFFUSION_ATTENTION_BACKEND": "sage,fa"})
    for op in OPS:
        wanted = ("sage_attn", "fa4", "fa3", "fa2") if op in ATTENTION else ()
        assert prefer(settings, op) == wanted
    assert settings.policy("attention").origin == "environment SGLANG_DIFFUSION_ATTENTION_BACKEND"


def test_inside_a_source_the_more_specific_wins_whatever_the_order() -> None:
    layer = {
        "ops.rms_norm.backends": ["cpu"],
        "norm.backends": ["triton"],
        "default.backends": ["torch"],
        "default.strict": True,
        "norm.strict": "off",
    }
    for keys in (list(layer), list(reversed(layer))):
        settings = settle(("file", {key: layer[key] for key in keys}))
        assert prefer(settings, "rms_norm") == ("cpu",)
        assert prefer(settings, "layer_norm") == ("triton",)
        assert prefer(settings, "apply_rope") == prefer(settings, "unknown") == ("torch",)
        assert not settings.policy("rms_norm").strict and settings.policy("attention").strict


def test_a_stronger_general_word_beats_a_weaker_special_one() -> None:
    file = {"ops.rms_norm.backends": ["cpu"], "norm.strict": False, "norm.deny": ["triton"]}
    settings = settle(
        ("file", file), ("environment", {"default.strict": "1"}), ("flags", {"norm.backends": "mlx"})
    )
    policy = settings.policy("rms_norm")
    assert (policy.prefer, policy.strict, policy.deny) == (("mlx",), True, frozenset({"triton"}))


def test_strict_and_lossy_variables_reach_every_op() -> None:
    settings = load_settings({"SGL_KERNELS_STRICT": "yes", "SGL_KERNELS_ALLOW_LOSSY": "on"})
    assert all(settings.policy(op).strict and settings.policy(op).allow_lossy for op in (*OPS, "other"))
    assert settings.ops == ()


def test_deny_takes_aliases_and_groups() -> None:
    settings = settle(("file", {"attention.deny": "fa,sage"}))
    assert settings.policy("attention_lse").deny == {"fa4", "fa3", "fa2", "sage_attn"}


RULES = [
    {"op": "attention", "role": "cross", "shape": "short", "backends": "torch"},
    {"layer": "blocks.*.attn1", "backends": ["sage", "fa3"]},
    {"shape": "long", "backends": ["fa3"]},
]


def test_the_first_rule_that_matches_wins() -> None:
    settings = settle(("file", {"attention.backends": "flex", "attention.strict": True, "rules": RULES}))
    assert prefer(settings, "attention", Scope("cross"), "short") == ("torch",)
    assert prefer(settings, "attention", Scope("cross", "blocks.3.attn1"), "short") == ("torch",)
    assert prefer(settings, "attention", Scope("self", "blocks.3.attn1"), "long") == ("sage_attn", "fa3")
    assert prefer(settings, "attention_varlen", Scope("self", "blocks.3.attn2"), "long") == ("fa3",)
    assert prefer(settings, "attention", Scope("self", "blocks.3.attn2"), "medium") == ("flex",)
    assert prefer(settings, "attention") == ("flex",)
    assert settings.policy("attention", Scope(), "long").strict, (
        "a rule changes the preference and nothing else"
    )
    assert prefer(settings, "rms_norm", Scope("cross"), "short") == ()


def test_a_rule_about_a_group_speaks_for_each_of_its_ops() -> None:
    settings = settle(("file", {"rules": [{"op": "norm", "layer": "vae.*", "backends": "triton"}]}))
    assert [rule.op for rule in settings.rules] == list(OP_GROUPS["norm"])
    assert prefer(settings, "group_norm", Scope(layer="vae.up")) == ("triton",)
    assert prefer(settings, "group_norm", Scope(layer="unet.up")) == ()


def test_a_stronger_preference_silences_weaker_rules() -> None:
    rules = [{"op": op, "backends": "flex"} for op in ("attention", "norm")]
    settings = settle(("file", {"rules": rules}), ("environment", {"attention.backends": "fa3"}))
    assert prefer(settings, "attention") == ("fa3",)
    assert prefer(settings, "rms_norm") == ("flex",)
    same = settle(("file", {"rules": rules, "attention.backends": "fa3"}))
    assert prefer(same, "attention") == ("flex",), "inside one source the rule is the more specific"
    stronger = settle(("file", {"rules": rules}), ("flags", {"rules": [Rule("attention", ("aiter",))]}))
    assert prefer(stronger, "attention") == ("aiter",) and prefer(stronger, "attention_lse") == ("flex",)


@pytest.mark.parametrize(
    "rules, message",
    [
        ("x", "expected a list"),
        ([1], r"rules\[0\] is 1; expected a mapping"),
        ([{"backends": "fa3"}, {"role": "self"}], r"rules\[1\] has no 'backends'"),
        ([{"backends": "fa3", "rol": "self"}], "unknown key 'rol'; did you mean 'role'"),
        ([{"backends": "fa3", "role": "crss"}], "did you mean 'cross'"),
        ([{"backends": "fa3", "shape": "tall"}], "expected one of decode, short, medium, long"),
        ([{"backends": "fa3", "op": "attn"}], "unknown op 'attn'; did you mean 'attention'"),
        ([{"backends": "fa3", "op": "norm", "shape": "long"}], "shape classes exist for attention only"),
        ([{"backends": "fa3", "layer": 3}], r"rules\[0\].layer is 3; expected text"),
        ([{"backends": "fax"}], r"rules\[0\].backends is 'fax'"),
    ],
)
def test_broken_rules(rules: object, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        settle(("flags", {"rules": rules}), known_backends=())


def test_override_is_stronger_than_every_source() -> None:
    base = settle(("file", {"rules": RULES, "norm.backends": "triton", "trace.level": 3}))
    both = base.override(backend="fa,torch", strict=True, allow_lossy=True, trace_level=5, check=True)
    for op in (*OPS, "other"):
        policy = both.policy(op, Scope("cross", "blocks.1.attn1"), "short")
        assert policy.prefer == ("fa4", "fa3", "fa2", "torch")
        assert policy.strict and policy.allow_lossy and policy.origin == "use(...)"
    assert both.trace.level == 5 and both.check and not base.check
    assert base.override() == base


def test_override_per_op_wins_over_backend_and_knows_groups() -> None:
    settings = Settings().override(
        backend="torch",
        per_op={"norm": "triton", "rms_norm": ["cpu", "mlx"], "attention": OpPolicy(("acme",), strict=True)},
    )
    assert prefer(settings, "layer_norm") == ("triton",)
    assert prefer(settings, "rms_norm") == ("cpu", "mlx")
    assert prefer(settings, "apply_rope") == ("torch",)
    assert all(settings.policy(op) == OpPolicy(("acme",), strict=True) for op in ATTENTION)
    assert settings.override(backend="auto").policy("layer_norm").prefer == ()


def test_overrides_nest() -> None:
    outer = Settings().override(backend="fa3", strict=True)
    inner = outer.override(per_op={"attention": "fa2"})
    assert prefer(inner, "attention") == ("fa2",) and inner.policy("attention").strict
    assert prefer(inner, "rms_norm") == ("fa3",)
    assert inner.override(per_op={"attention": "fa3"}) == outer


def test_override_knows_the_names_others_add() -> None:
    settings = Settings().override(
        backend="acme", per_op={"acme_op": "fa3"}, known_backends=["acme"], known_ops=["acme_op"]
    )
    assert prefer(settings, "acme_op") == ("fa3",) and prefer(settings, "other") == ("acme",)
    assert prefer(settings.override(strict=True), "acme_op") == ("fa3",)


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"backend": "tritn"}, "did you mean 'triton'"),
        ({"backend": ""}, "a backend name is empty"),
        ({"backend": 3}, "expected a backend name"),
        ({"per_op": {"rmsnorm": "cpu"}}, "unknown op 'rmsnorm'; did you mean 'rms_norm'"),
        ({"per_op": {"rms_norm": 3}}, "expected a backend name"),
        ({"strict": "perhaps"}, "default.strict is 'perhaps'"),
        ({"trace_level": 99}, "trace.level is 99; expected a whole number from 0 to 10"),
    ],
)
def test_broken_overrides(arguments: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Settings().override(**arguments)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "key, value, message",
    [
        (
            "attenton.backends",
            "fa3",
            "unknown setting 'attenton.backends'; did you mean 'attention.backends'",
        ),
        ("cache_dit.fnn", 1, "did you mean 'cache_dit.fn'"),
        ("ops.rmsnorm.backends", "cpu", "did you mean 'rms_norm'"),
        ("options.fa3", [1], "expected a mapping"),
        ("options.nobody", {}, "unknown backend 'nobody'"),
        ("check", "ja", "command-line flags: check is 'ja'; expected one of 1"),
    ],
)
def test_broken_layers(key: str, value: object, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        settle(("command-line flags", {key: value}))


def test_options_of_several_sources_are_merged() -> None:
    settings = settle(("file", {"options.fa3": {"a": 1, "b": 2}}), ("flags", {"options.flash3": {"b": 3}}))
    assert settings.options_for("fa3") == {"a": 1, "b": 3}


def test_secondary_knobs_follow_the_primary_ones() -> None:
    environ = {"SGLANG_CACHE_DIT_FN": "2", "SGLANG_CACHE_DIT_RDT": "0.5", "SGLANG_CACHE_DIT_TAYLORSEER": "1"}
    cache = load_settings(environ).cache_dit
    assert cache.secondary == CacheKnobs(fn=2, rdt=0.5, taylorseer=True)
    environ |= {"SGLANG_CACHE_DIT_SECONDARY_FN": "4", "SGLANG_CACHE_DIT_SECONDARY_TAYLORSEER": "0"}
    cache = load_settings(environ).cache_dit
    assert (cache.fn, cache.secondary) == (2, CacheKnobs(fn=4, rdt=0.5, taylorseer=False))
    assert load_settings({"SGLANG_CACHE_DIT_SECONDARY_MC": "7"}).cache_dit == CacheDit(
        secondary=CacheKnobs(mc=7)
    )


def test_a_secondary_knob_of_a_weaker_source_stays() -> None:
    settings = settle(("file", {"cache_dit.secondary.fn": 5}), ("environment", {"cache_dit.fn": "3"}))
    assert (settings.cache_dit.fn, settings.cache_dit.secondary.fn) == (3, 5)


@pytest.mark.parametrize("name", ["COMPUTE", "CACHE"])
def test_bins_come_in_pairs(name: str) -> None:
    environ = {f"SGLANG_CACHE_DIT_SCM_{name}_BINS": "8,3"}
    with pytest.raises(ConfigError, match="set both"):
        load_settings(environ)
    environ = {"SGLANG_CACHE_DIT_SCM_COMPUTE_BINS": "8,3", "SGLANG_CACHE_DIT_SCM_CACHE_BINS": "1, 2"}
    cache = load_settings(environ).cache_dit
    assert (cache.scm_compute_bins, cache.scm_cache_bins) == ((8, 3), (1, 2))


def test_directories_follow_xdg_and_home() -> None:
    plain = load_settings({"HOME": "/home/me"})
    assert (plain.cache_root, plain.config_root) == (
        "/home/me/.cache/sgl_diffusion",
        "/home/me/.config/sgl_diffusion",
    )
    xdg = load_settings({"HOME": "/home/me", "XDG_CACHE_HOME": "/c", "XDG_CONFIG_HOME": "relative"})
    assert (xdg.cache_root, xdg.config_root) == ("/c/sgl_diffusion", "/home/me/.config/sgl_diffusion")
    assert xdg.origin("cache_root") == "built-in (XDG_CACHE_HOME)"
    named = load_settings(
        {
            "HOME": "/home/me",
            "XDG_CACHE_HOME": "/c",
            "SGLANG_DIFFUSION_CACHE_ROOT": "~/x",
            "SGL_KERNELS_TUNING": os.pathsep.join(("~/a", "b", "~")),
            "SGLANG_KERNEL_API_DUMP_DIR": "~/dumps/%i",
        },
        {"config_root": "~/y"},
    )
    assert (named.cache_root, named.config_root) == ("/home/me/x", "/home/me/y")
    assert named.tuning_paths == ("/home/me/a", "b", "/home/me")
    assert named.trace.dump_dir == "/home/me/dumps/%i"


def test_unknown_variables_are_reported_once(caplog: pytest.LogCaptureFixture) -> None:
    log.forget_warnings()
    environ = {"SGL_KERNELS_STRCT": "1"}
    for _ in range(3):
        load_settings(environ)
    assert [r.getMessage() for r in caplog.records] == [
        "SGL_KERNELS_STRCT is not a variable of sgl_kernels; did you mean 'SGL_KERNELS_STRICT'?"
    ]


def test_the_own_environment_is_read_and_sets_the_log_level(monkeypatch: pytest.MonkeyPatch) -> None:
    level = log.logger.level
    try:
        monkeypatch.setenv("SGLANG_DIFFUSION_LOGGING_LEVEL", "error")
        assert load_settings({}).logging_level == "INFO" and log.logger.level == level
        assert load_settings().logging_level == "ERROR"
        assert log.logger.level == 40
    finally:
        log.logger.setLevel(level)


def test_reading_settings_imports_neither_yaml_nor_pydantic() -> None:
    code = (
        "import sys, sgl_kernels.core.settings as s; s.load_settings({}); "
        "print([m for m in ('yaml', 'pydantic') if m in sys.modules])"
    )
    root = str(Path(__file__).parents[3])
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=root, check=True)
    assert done.stdout.strip() == "[]"
