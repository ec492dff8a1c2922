"""Imports go down only; the layers are those of the README's tree."""

import ast
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "bmmae"
LAYERS = (
    ("_version", "notice", "errors", "arrays", "page"),
    ("modalities",),
    ("patches", "masking", "losses", "metrics", "schema", "keys"),
    ("provenance", "model_folder", "targets"),
    ("card", "hub", "clinical"),
    ("sources",),
    ("model", "data"),
    ("conversion", "growth", "model_info"),
    ("checkpoint", "tasks", "baselines"),
    ("training", "inference", "evaluation", "linear_heads", "patient_prediction", "averaging"),
    ("segmentation_scores",),
    (
        "report",
        "segmenting",
        "check_page",
        "patient_report",
        "reconstruction_page",
        "explain",
        "starter",
        "patient_tables",
        "embedding_plot",
    ),
    ("config", "demo", "patient_evaluation", "patient_explain"),
    ("patient_config",),
    ("patient_run",),
    ("cli",),
    ("__main__",),
)
RANK = {name: rank for rank, layer in enumerate(LAYERS) for name in layer}
ONLY_IN = {"accelerate": ("training",), "wandb": ("training",), "nibabel": ("data", "inference")}
FILES = sorted(PACKAGE.rglob("*.py"))


def component(path: Path) -> str:
    return path.relative_to(PACKAGE).with_suffix("").parts[0]


def imported(path: Path) -> set[str]:
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            names |= {f"{node.module}.{alias.name}" for alias in node.names} | {str(node.module)}
    return names


def own(names: set[str]) -> set[str]:
    return {name.split(".")[1] for name in names if name.startswith("bmmae.")} & set(RANK)


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_imports_go_down_only(path: Path) -> None:
    here = component(path)
    if here == "__init__":
        return
    assert here in RANK, f"{here} has no layer: add it to LAYERS"
    for there in own(imported(path)) - {here}:
        assert RANK[there] < RANK[here], f"{path.name} ({here}) imports {there}: not a lower layer"


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_libraries_stay_in_their_layer(path: Path) -> None:
    roots = {name.split(".")[0] for name in imported(path)}
    for library, homes in ONLY_IN.items():
        assert library not in roots or component(path) in homes, f"{path.name} imports {library}"


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_names_say_what_is_inside(path: Path) -> None:
    assert path.stem not in {"utils", "helpers", "misc", "common"}


def test_a_task_never_imports_a_sibling() -> None:
    tasks = PACKAGE / "tasks"
    siblings = {f"bmmae.tasks.{path.stem}" for path in tasks.glob("*.py") if path.stem not in {"__init__", "task"}}
    for path in tasks.glob("*.py"):
        assert not {name for name in imported(path) if name in siblings - {f"bmmae.tasks.{path.stem}"}}


def test_scripts_are_not_in_the_wheel() -> None:
    import tomllib

    packages = tomllib.loads((PACKAGE.parent / "pyproject.toml").read_text())["tool"]["setuptools"]["packages"]
    folders = {p.parent.relative_to(PACKAGE.parent).as_posix().replace("/", ".") for p in FILES}
    assert set(packages) == folders
