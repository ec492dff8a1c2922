"""The public surface, the README's promises, the scripts and their configs."""

import ast
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

import bmmae
from bmmae.config import PretrainConfig, SegmentConfig, parse
from bmmae.errors import ConfigError
from bmmae.model.config import RECIPES

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
PRETRAIN = sorted((ROOT / "configs" / "pretrain").glob("*.yaml"))
CONFIGS = sorted((ROOT / "configs").rglob("*.yaml"))


def test_every_public_name_can_be_used() -> None:
    assert all(getattr(bmmae, name) is not None for name in bmmae.__all__)
    assert set(bmmae.__all__) <= set(dir(bmmae))


def test_unknown_names_are_attribute_errors() -> None:
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = bmmae.nothing


def test_import_is_silent_and_loads_no_heavy_library() -> None:
    heavy = "{'torch', 'monai', 'accelerate', 'wandb', 'timm', 'matplotlib', 'pandas'}"
    code = f"import sys, bmmae; print(sorted({heavy} & set(sys.modules)))"
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert (ended.stdout.strip(), ended.stderr) == ("[]", "")


def test_a_model_of_our_recipes_is_made_without_torchvision() -> None:
    code = (
        "import sys; from bmmae.model.config import recipe; from bmmae.model.mae import MAE; MAE(recipe('tiny'));"
        "print('torchvision' in sys.modules)"
    )
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ended.stdout.strip() == "False"


def test_the_readme_lists_paths_that_exist() -> None:
    tree = README.split("```\nbmmae/ ")[1].split("```")[0]
    parent = ROOT / "bmmae"
    for line in ("bmmae/ " + tree).splitlines():
        names = [word for word in line[:24].split() if re.fullmatch(r"[\w./]+", word) and ("/" in word or "." in word)]
        for name in names:
            path = (parent if line.startswith("  ") else ROOT) / name
            assert path.exists(), f"README lists {name}"


def test_the_readme_links_to_files_that_exist() -> None:
    for target in re.findall(r"\]\(([^)#]+)\)", README):
        assert target.startswith("http") or (ROOT / target).exists(), target


@pytest.mark.filterwarnings("ignore::bmmae.checkpoint.SyntheticWeightsWarning")
def test_the_readme_code_runs(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.chdir(ROOT)
    code = README.split("```python\n")[1].split("```")[0]
    exec(compile(ast.parse(code), "README.md", "exec"), {})
    assert capsys.readouterr().out.strip() == "torch.Size([1, 1025, 192]) ['t1ce', 't2']"


@pytest.mark.parametrize("path", PRETRAIN, ids=lambda p: p.stem)
def test_pretraining_configs_are_the_recipes(path: Path) -> None:
    built = parse(PretrainConfig, ["--config", str(path), "--data.cohort", "cohort.csv"])
    assert built.model == RECIPES[path.stem]


def test_the_segmentation_config_is_read() -> None:
    path = ROOT / "configs" / "finetune" / "segmentation.yaml"
    built = parse(SegmentConfig, ["--config", str(path), "--model", "m", "--data.cohort", "cohort.csv"])
    assert built.augment.modality_dropout > 0


@pytest.mark.parametrize("path", CONFIGS, ids=lambda p: f"{p.parent.name}/{p.stem}")
def test_the_first_line_of_a_config_is_the_command_that_runs_it(path: Path) -> None:
    first = path.read_text().splitlines()[0]
    words = shlex.split(first.removeprefix("#"))
    assert first.startswith("# ")
    assert path.relative_to(ROOT).as_posix() in words
    assert all((ROOT / word).exists() for word in words if word.startswith(("configs/", "pretrain/", "finetune/")))


def test_configs_hold_values_only() -> None:
    assert all(isinstance(yaml.safe_load(path.read_text()), dict) for path in CONFIGS)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--model.encoder.dpeth", "3"], r"unknown configuration key 'model.encoder.dpeth'.*'model.encoder.depth'"),
        (["--model.encoder.depth", "three"], "model.encoder.depth"),
        (["--model.encoder.heads", "5"], "not a multiple"),
        (["--masking.visible_share", "2"], r"must lie in \(0, 1\]"),
        (["--model.patch", "[7, 7, 7]"], "do not divide into patches"),
        (["--train.steps", "3", "--train.epochs", "3"], "exactly one of"),
        (["--data.fold", "2"], "data.fold is 2, but no folds are given"),
        (["--data.validation_share", "7"], "validation_share must lie between 0 and 1, got 7"),
        (["--data.labels", "binary"], r"data.labels \('binary'\) is about segmentation"),
        (["--augment.each_lesion", "1"], "each_lesion says which lesion .*lesion_share 0 aims at none"),
        (["--train.step", "3"], "unknown configuration key 'train.step'. Did you mean 'train.steps'"),
        (["--preprocess.spacing", "2"], '"preprocess.spacing": Expected a list. Got value: 2'),
        (
            ["--model", "checkpoints/tiny"],
            "'model' holds keys of its own, and 'checkpoints/tiny' is no YAML file of them; weights .* by --start",
        ),
        (
            ["--model.modalities", "[t1, t1ce, t2, flair, dwi, adc, swi]"],
            r"at most 6 modalities, and model\.modalities has 7: set model\.synthesis\.units to 0",
        ),
    ],
)
def test_a_wrong_key_or_value_is_one_sentence(arguments: list[str], message: str) -> None:
    base = ["--config", str(ROOT / "configs" / "pretrain" / "tiny.yaml"), "--data.cohort", "c.csv"]
    with pytest.raises(ConfigError, match=message):
        parse(PretrainConfig, [*base, *arguments])


def test_an_unknown_key_in_a_file_proposes_the_nearest(tmp_path: Path) -> None:
    path = tmp_path / "wrong.yaml"
    path.write_text("train: {steps: 2}\nmodel: {encoder: {dmi: 5}}\n")
    with pytest.raises(
        ConfigError, match=r"unknown configuration key 'model.encoder.dmi'. Did you mean 'model.encoder.dim'"
    ):
        parse(PretrainConfig, ["--config", str(path), "--data.cohort", "c.csv"])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("train: [1, 2]", r"key 'train' holds keys of its own, got \[1, 2\]: write them below it or leave it out"),
        ("out: runs\ntrain:\n", "key 'train' holds keys of its own, got null"),
        ("train: {steps: 2}\nmodel: {encoder: 5}", "key 'model.encoder' holds keys of its own, got 5"),
        ("", "the file of --config holds no value of any key"),
        ("- train", "the file of --config holds no value of any key"),
    ],
)
def test_a_file_without_keys_where_they_belong_is_one_sentence(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "wrong.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError, match=message):
        parse(PretrainConfig, ["--config", str(path), "--data.cohort", "c.csv"])


def test_a_decoder_without_channels_is_refused() -> None:
    with pytest.raises(ConfigError, match="width must be at least 1, got 0"):
        parse(SegmentConfig, ["--model", "m", "--data.cohort", "c.csv", "--train.steps", "1", "--width", "0"])


def test_a_key_that_is_given_twice_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "twice.yaml"
    path.write_text("optim: {lr: 1.0e-3}\ntrain: {steps: 2}\noptim: {weight_decay: 0.1}\n")
    with pytest.raises(ConfigError, match="'optim' is given twice, in lines 1 and 3"):
        parse(PretrainConfig, ["--config", str(path), "--data.cohort", "c.csv"])


def test_tabs_between_values_are_as_good_as_blanks(tmp_path: Path) -> None:
    path = tmp_path / "tabs.yaml"
    path.write_text("train:\n  steps: 10\t# as some editors leave them\n")
    assert parse(PretrainConfig, ["--config", str(path), "--data.cohort", "c.csv"]).train.steps == 10


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--distill.weight", "1"], "do not go together"),
        (["--distill.weight", "1", "--distill.dropout", "0", "--augment.modality_dropout", "0"], "draws none"),
        (["--distill.dropout", "0.9"], "need distill.weight above 0"),
    ],
)
def test_distillation_that_teaches_nothing_is_refused(arguments: list[str], message: str) -> None:
    base = ["--model", "m", "--data.cohort", "c.csv", "--train.steps", "1"]
    with pytest.raises(ConfigError, match=message):
        parse(SegmentConfig, [*base, *arguments])


def test_a_missing_config_file_is_named() -> None:
    with pytest.raises(ConfigError, match=r"nowhere\.yaml"):
        parse(PretrainConfig, ["--config", "nowhere.yaml"])


def test_a_file_that_is_not_utf8_is_named(tmp_path: Path) -> None:
    path = tmp_path / "latin.yaml"
    path.write_bytes("train: {steps: 2}\nout: runs/Köln\n".encode("latin-1"))
    with pytest.raises(ConfigError, match=r"not UTF-8 text .* save it as UTF-8"):
        parse(PretrainConfig, ["--config", str(path), "--data.cohort", "c.csv"])


def test_a_tilde_in_a_file_is_the_home_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/me")
    path = tmp_path / "home.yaml"
    path.write_text("train: {steps: 2}\nout: ~/runs\nmodel: ~/runs/a\ndata: {cohort: ~/c.csv, splits: folds.json}\n")
    config = parse(SegmentConfig, ["--config", str(path)])
    assert (config.out, config.data.cohort, config.model) == (
        Path("/home/me/runs"),
        Path("/home/me/c.csv"),
        "/home/me/runs/a",
    )
    assert (config.data.splits, config.data.cache) == (Path("folds.json"), None)


def test_a_needed_path_that_is_left_blank_is_named(tmp_path: Path) -> None:
    path = tmp_path / "blank.yaml"
    path.write_text("train: {steps: 2}\nout:\ndata: {cohort: c.csv}\n")
    with pytest.raises(ConfigError, match=r"'out' needs a path, got null"):
        parse(PretrainConfig, ["--config", str(path)])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("train: {steps: 2, precision: no}", "reads a bare no: write 'no', in quotes"),
        ("train: {steps: 1.5}", r'"train\.steps": Expected int, null\. Got value: 1\.5$'),
        ("train: {steps: 2, resume: maybe}", r"Expected bool, one of \['auto'\]\. Got value: maybe$"),
        ("optimiser: {lr: 1.0e-3}", r"unknown configuration key 'optimiser\.lr'\. Did you mean 'optim\.lr'"),
        ("train: {steps: 2, lr: 1.0e-3}", r"unknown configuration key 'train\.lr'\. Did you mean 'optim\.lr'"),
        ("train: {steps: 2}\nspacing: [2, 2, 2]", r"Did you mean 'preprocess\.spacing'"),
        ("train: {steps: 2}\nmodel: {modalities: t1 flair}", r"Got value: t1 flair: write '\[t1, flair\]'$"),
        ("train: {steps: 2}\npreprocess: {spacing: '1,1,2'}", r"Got value: 1,1,2: write '\[1, 1, 2\]'$"),
    ],
)
def test_what_does_not_fit_is_told_in_plain_words(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "wrong.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError, match=message):
        parse(PretrainConfig, ["--config", str(path), "--data.cohort", "c.csv"])
