"""Recipes say what is meant, and refuse what they do not know by its name."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from onnxq.errors import RecipeError
from onnxq.recipe import Activation, Contract, Override, Recipe, make_recipe, read_recipe


def write(folder: Path, text: str) -> Path:
    path = folder / "recipe.toml"
    path.write_text(text, encoding="utf-8")
    return path


def test_an_empty_recipe_is_the_default(tmp_path: Path) -> None:
    assert make_recipe({}) == Recipe()
    assert read_recipe(write(tmp_path, "")) == Recipe()


def test_a_file_is_read(tmp_path: Path) -> None:
    found = read_recipe(
        write(
            tmp_path,
            """
            mode = "static-int8"
            format = "qdq"
            [activation]
            range = "percentile"
            percent = 99.9
            [weight]
            per_channel = false
            [contract]
            metric = "kl"
            max_drop = "2%"
            min_speedup = 2
            max_size = "30%"
            [nodes."/head/*"]
            quantize = false
            [nodes.Gemm]
            range = "minmax"
            """,
        )
    )
    assert found == Recipe(
        mode="static-int8",
        format="qdq",
        activation=Activation(range="percentile", percent=99.9),
        weight=Recipe().weight.model_copy(update={"per_channel": False}),
        contract=Contract(metric="kl", max_drop=0.02, min_speedup=2.0, max_size="30%"),
        nodes={"/head/*": Override(quantize=False), "Gemm": Override(range="minmax")},
    )


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"moed": "auto"}, "Unknown key 'moed' in the recipe"),
        ({"weight": {"formt": "int8"}}, r"Unknown key 'weight\.formt' in the recipe"),
        ({"activation": {"width": 4}}, r"Unknown key 'activation\.width' in the recipe"),
        ({"activation": {"bits": 4}}, r"^Activations of 4 bits need the mode static-int8, not auto"),
        ({"mode": "static-int8", "activation": {"bits": 1}}, r"'activation\.bits' in the recipe is 1"),
        ({"mode": "static-int8", "weight": {"bits": 4.5}}, r"^Static weights take a whole number of bits, not 4\.5"),
        ({"mode": "weight-int4", "weight": {"bits": 3}}, r"^Weights in blocks take 4 to 8 bits, not 3"),
        ({"mode": "mixed-int8", "weight": {"bits": 4}}, r"^Weights of 4 bits need the mode static-int8 or weight-int4"),
        ({"nodes": {"conv1": {"quantise": False}}}, r"Unknown key 'nodes\.conv1\.quantise' in the recipe"),
        ({"mode": "int4"}, "'mode' in the recipe is 'int4': Input should be 'auto', 'mixed-int8', 'static-int8'"),
        ({"target": "abacus"}, "'target' in the recipe is 'abacus'"),
        ({"activation": {"percent": 50}}, r"'activation\.percent' in the recipe is 50: .*greater than 50"),
        ({"activation": {"percent": 101}}, r"'activation\.percent' in the recipe is 101"),
        ({"activation": {"percent": float("nan")}}, r"'activation\.percent' in the recipe is nan"),
        ({"weight": {"block_size": 48}}, r"'weight\.block_size' in the recipe is 48"),
        ({"weight": 8}, "'weight' in the recipe is 8"),
        ({"nodes": {"conv1": False}}, r"'nodes\.conv1' in the recipe is False"),
        ([], r"'recipe' in the recipe is \[\]"),
    ],
)
def test_what_makes_no_sense_is_named(values: Any, words: str) -> None:
    with pytest.raises(RecipeError, match=words) as caught:
        make_recipe(values)
    assert "\n" not in str(caught.value)


def test_long_values_are_cut() -> None:
    with pytest.raises(RecipeError) as caught:
        make_recipe({"mode": "x" * 10_000})
    assert len(str(caught.value)) < 300


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"mode = static", r"recipe\.toml' is no TOML: .*line 1"),
        (b"mode = 'auto'\nmode = 'auto'", "is no TOML: Cannot overwrite a value"),
        (b"\xff\xfe", "is no TOML"),
        (b"colour = 'red'", "Unknown key 'colour'"),
    ],
)
def test_files_that_make_no_sense_are_named(tmp_path: Path, content: bytes, words: str) -> None:
    path = tmp_path / "recipe.toml"
    path.write_bytes(content)
    with pytest.raises(RecipeError, match=words):
        read_recipe(path)


def test_a_file_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=r"gone\.toml' cannot be read \(No such file or directory\)"):
        read_recipe(tmp_path / "gone.toml")
    with pytest.raises(RecipeError, match="cannot be read"):
        read_recipe(tmp_path)


RECIPE = Recipe(
    nodes={
        "/encoder/layer.0/MatMul": Override(quantize=False),
        "/encoder/*": Override(per_channel=False),
        "Conv": Override(range="minmax"),
        "/block[0]/Gemm": Override(range="entropy"),
        "/block[ab]/*": Override(range="mse"),
    }
)


@pytest.mark.parametrize(
    ("name", "op", "expected"),
    [
        ("/encoder/layer.0/MatMul", "MatMul", Override(quantize=False)),  # by name, before the pattern below it
        ("/encoder/layer.1/MatMul", "MatMul", Override(per_channel=False)),  # by pattern
        ("/encoder/stem", "Conv", Override(per_channel=False)),  # the first that matches decides
        ("/stem", "Conv", Override(range="minmax")),  # by operator
        ("/block[0]/Gemm", "Gemm", Override(range="entropy")),  # brackets in a name are no pattern
        ("/blocka/Gemm", "Gemm", Override(range="mse")),  # in a pattern they are
        ("Conv_7", "MatMul", Override()),
        ("/ENCODER/x", "MatMul", Override()),  # upper case matters
    ],
)
def test_overrides_by_name_operator_and_pattern(name: str, op: str, expected: Override) -> None:
    assert RECIPE.override(name, op) == expected


def test_a_recipe_does_not_change() -> None:
    with pytest.raises(ValidationError, match="frozen"):
        Recipe().mode = "auto"
