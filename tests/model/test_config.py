"""Configurations: validation, released models, translation of released files."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from evo_toolkit.errors import ConfigError
from evo_toolkit.model.config import StripedHyena2Config, config_from_vortex, read_config
from evo_toolkit.model.registry import FP8_COST, MODELS

FIXTURE = Path(__file__).parents[1] / "fixtures" / "evo2" / "tiny_noscale.config.json"

# From the released configurations and printed logs.
PUBLISHED_PARAMETERS = {
    "evo2_1b_base": 1_107_989_760,
    "evo2_7b_base": 6_481_059_584,
    "evo2_7b_262k": 6_481_059_584,
    "evo2_7b": 6_581_722_880,
    "evo2_7b_microviridae": 6_481_059_584,
    "evo2_20b": 19_738_780_160,
    "evo2_40b_base": 40_331_142_144,
    "evo2_40b": 41_117_574_144,
}
LAYERS = {
    "evo2_1b_base": (25, [3, 10, 17, 24], [2, 6, 9, 13, 16, 20, 23]),
    "evo2_7b": (32, [3, 10, 17, 24, 31], [2, 6, 9, 13, 16, 20, 23, 27, 30]),
    "evo2_20b": (24, [3, 10, 17], [2, 6, 9, 13, 16, 20, 23]),
    "evo2_40b": (
        50,
        [3, 10, 17, 24, 31, 35, 42, 49],
        [2, 6, 9, 13, 16, 20, 23, 27, 30, 34, 38, 41, 45, 48],
    ),
}


def tiny(**changes: object) -> StripedHyena2Config:
    values: dict[str, object] = {
        "name": "tiny", "pattern": "SDH*", "width": 32, "num_heads": 2, "mlp_width": 48,
        "filter_groups": 4, "context_length": 512,
    }  # fmt: skip
    return StripedHyena2Config(**{**values, **changes})  # type: ignore[arg-type]


def test_released_models_have_the_published_parameter_counts() -> None:
    assert {
        name: entry.config.parameter_count() for name, entry in MODELS.items()
    } == PUBLISHED_PARAMETERS


@pytest.mark.parametrize("name", sorted(LAYERS))
def test_released_layer_patterns(name: str) -> None:
    config = MODELS[name].config
    count, attention, long_implicit = LAYERS[name]
    assert config.num_layers == count
    assert [i for i, s in enumerate(config.pattern) if s == "*"] == attention
    assert [i for i, s in enumerate(config.pattern) if s == "H"] == long_implicit
    assert config.head_width == 128


def test_every_model_that_depends_on_fp8_says_what_bf16_costs() -> None:
    assert {n for n, e in MODELS.items() if e.config.fp8 == "hopper"} == set(FP8_COST)
    assert MODELS["evo2_7b"].config.fp8 == "insensitive"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"pattern": "SDX"}, r"unknown layers \['X'\]"),
        ({"pattern": ""}, r"pattern is empty; .*S \(Hyena-SE\)"),
        ({"pattern": None}, "pattern is None; it must be text$"),
        ({"pattern": 34}, "pattern is 34; it must be text: put it in quotes, '34'"),
        ({"filter_groups": 5}, "filter_groups 5 does not divide width 32"),
        ({"num_heads": 3}, "num_heads 3 must divide"),
        ({"num_heads": 32}, "heads of even width"),
        ({"width": 0}, "width is 0"),
        ({"width": True}, "width is True"),
        ({"vocab_size": 100}, "tokens are bytes"),
        ({"gelu_layers": (4,)}, r"gelu_layers \[4\] lie outside the 4 layers"),
        ({"rotary_base": -1.0}, "rotary_base is -1.0"),
        ({"fp8": "maybe"}, "fp8 is 'maybe'"),
        ({"pattern": "3", "h3_head_width": 5}, "h3_head_width 5 does not divide width 32"),
        ({"pattern": "3", "h3_shift_length": 1}, "at least 2 taps"),
        ({"pattern": "4", "ssm_order": 0}, "ssm_order is 0"),
        ({"pattern": "4", "ssm_discretisation": "euler"}, "'euler'; use bilinear or zoh"),
        ({"pattern": "4", "ssm_min_step": 0.2}, "ssm_min_step 0.2 is above ssm_max_step 0.1"),
        ({"pattern": "4", "ssm_min_step": 0.0}, "ssm_min_step is 0.0"),
        ({"pattern": "4", "ssm_min_step": True}, "ssm_min_step is True; it must be a positive"),
        ({"pattern": "4", "ssm_max_step": "1"}, "ssm_max_step is '1'"),
    ],
)
def test_inconsistent_configurations_are_refused(changes: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        tiny(**changes)


def test_dictionary_round_trip_through_json() -> None:
    config = tiny(domains=("bacteria",), not_for=("human",))
    assert StripedHyena2Config.from_dict(json.loads(json.dumps(config.to_dict()))) == config
    with pytest.raises(ConfigError, match=r"unknown configuration keys \['colour'\]"):
        StripedHyena2Config.from_dict({**config.to_dict(), "colour": 1})
    with pytest.raises(ConfigError, match="missing"):
        StripedHyena2Config.from_dict({"name": "x"})


def test_a_file_names_the_fields_of_the_layers_that_the_pattern_has() -> None:
    mine = {"h3_shift_length", "h3_head_width", "ssm_order", "ssm_discretisation", "ssm_min_step", "ssm_max_step"}  # fmt: skip
    assert not mine & set(tiny().to_dict())
    assert mine <= set(tiny(pattern="S3").to_dict())
    assert mine & set(tiny(pattern="4").to_dict()) == {name for name in mine if "ssm" in name}
    # A value that somebody chose is kept, whatever the pattern.
    chosen = tiny(h3_head_width=4)
    assert mine & set(chosen.to_dict()) == {"h3_head_width"}
    for config in (tiny(), chosen, tiny(pattern="34", ssm_discretisation="zoh")):
        assert StripedHyena2Config.from_dict(json.loads(json.dumps(config.to_dict()))) == config


@pytest.mark.parametrize(
    "values", [{"evidence": [{"metric": 1}]}, {"gelu_layers": 5}, {"evidence": 3}, {"domains": "x"}]
)
def test_values_of_the_wrong_kind_are_configuration_errors(values: dict[str, object]) -> None:
    with pytest.raises(ConfigError):
        StripedHyena2Config.from_dict({**tiny().to_dict(), **values})


def test_released_configuration_file_is_translated() -> None:
    config = read_config(FIXTURE)
    assert config.pattern == "SDH*SDH*"
    assert (config.width, config.mlp_width, config.filter_groups, config.num_heads) == (
        64,
        176,
        4,
        4,
    )
    assert config.gelu_layers == (0,)
    assert config.rotary_base == 10_000 and config.rotary_interpolation == 1
    released = json.loads(FIXTURE.read_text())
    interpolated = config_from_vortex(
        {**released, "use_interpolated_rotary_pos_emb": True, "rotary_emb_scaling_factor": 128}
    )
    assert interpolated.rotary_interpolation == 128
    # A factor without the switch has no effect in the released code.
    assert (
        config_from_vortex({**released, "rotary_emb_scaling_factor": 128}).rotary_interpolation == 1
    )
    del released["inner_mlp_size"]
    assert config_from_vortex(released).mlp_width == 176


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("proj_groups", 4, "proj_groups is 4"),
        ("hyena_flip_x1x2", True, "hyena_flip_x1x2"),
        ("interleave", False, "interleave is False"),
        ("num_layers", 9, "do not fit num_layers"),
        ("hidden_size", None, "lacks 'hidden_size'"),
        ("hcs_layer_idxs", 3, "of the wrong kind"),
        ("num_layers", "x", "of the wrong kind"),
    ],
)
def test_other_model_families_are_refused(key: str, value: object, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        config_from_vortex({**json.loads(FIXTURE.read_text()), key: value})


def test_unreadable_configuration_files(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot read"):
        read_config(tmp_path / "absent.json")
    broken = tmp_path / "broken.json"
    broken.write_text("{")
    with pytest.raises(ConfigError, match="not valid"):
        read_config(broken)
    broken.write_text("[1]")
    with pytest.raises(ConfigError, match="holds a list"):
        read_config(broken)


def test_config_and_registry_import_without_torch() -> None:
    code = "import sys, evo_toolkit.model.registry; sys.exit('torch' in sys.modules or 'numpy' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
