"""What README and documentation say is true of the program: commands, flags, fields, links and examples."""

from __future__ import annotations

import argparse
import ast
import dataclasses
import importlib
import importlib.util
import json
import keyword
import re
import shlex
import subprocess
from pathlib import Path

import pytest

from unisegdiff_pipeline.commands import nnunet
from unisegdiff_pipeline.core.labels import LabelScheme
from unisegdiff_pipeline.evaluation import aggregate, tables
from unisegdiff_pipeline.evaluation.diversity import DiversityScore
from unisegdiff_pipeline.evaluation.lesions import LesionScore
from unisegdiff_pipeline.evaluation.metrics import ClassScore
from unisegdiff_pipeline.io.dataset_json import parse_description
from unisegdiff_pipeline.planning import plans

ROOT = Path(__file__).resolve().parents[1]
PAGES = [ROOT / "README.md", ROOT / "CHANGELOG.md", *sorted((ROOT / "documentation").rglob("*.md"))]
COMMANDS_PAGE = ROOT / "documentation/reference/commands.md"


def blocks(page: Path, language: str) -> list[str]:
    """Fenced code blocks of a language."""
    return re.findall(rf"^```{language}\n(.*?)^```", page.read_text("utf-8"), re.M | re.S)


def command_lines() -> list[tuple[str, list[str]]]:
    """(page, words) of every usd_* command in a bash block."""
    result = []
    for page in PAGES:
        for line in (
            "".join(blocks(page, "bash")).replace("$SLURM_ARRAY_TASK_ID", "0").replace("\\\n", " ").splitlines()
        ):
            for part in line.split("&&"):
                words = shlex.split(part, comments=True)
                started = [i for i, word in enumerate(words) if word.startswith("$(which usd_")]  # by torchrun
                if started:
                    words = [words[started[0]][len("$(which ") : -1], *words[started[0] + 1 :]]
                if words and Path(words[0]).name.startswith("usd_"):
                    result.append((page.name, [Path(words[0]).name, *words[1:]]))
    return result


def parser_of(command: str) -> argparse.ArgumentParser:
    name = command.removeprefix("usd_")
    module = f"{name}_" if keyword.iskeyword(name) else name
    return importlib.import_module(f"unisegdiff_pipeline.commands.{module}").build_parser()


@pytest.mark.parametrize(("page", "words"), command_lines(), ids=lambda v: v if isinstance(v, str) else " ".join(v))
def test_commands_can_be_parsed(page: str, words: list[str]) -> None:
    parser_of(words[0]).parse_args(words[1:])


def test_pages_hold_commands() -> None:
    assert {words[0] for _, words in command_lines()} >= {"usd_demo", "usd_train", "usd_predict", "usd_evaluate"}


def sections() -> dict[str, str]:
    """Command => its section of the commands page."""
    parts = re.split(r"^## (usd_\w+)$", COMMANDS_PAGE.read_text("utf-8"), flags=re.M)
    return dict(zip(parts[1::2], parts[2::2], strict=True))


def documented_flags(section: str) -> set[str]:
    cells = [line.split("|")[1] for line in section.splitlines() if line.startswith("| `-")]
    return {flag for cell in cells for flag in re.findall(r"(?<![\w-])--?[a-z][a-z0-9-]*", cell)}


def test_every_command_has_a_section() -> None:
    setup = (ROOT / "setup.py").read_text("utf-8")
    names = re.findall(r'^    "(\w+)",$', setup[setup.index("COMMANDS = (") : setup.index("setup(\n")], re.M)
    assert set(sections()) == {f"usd_{name.rstrip('_')}" for name in names}


@pytest.mark.parametrize("command", sections())
def test_flags_in_the_documentation_are_those_of_the_parser(command: str) -> None:
    flags = set(parser_of(command)._option_string_actions) - {"-h", "--help", "--version"}
    assert documented_flags(sections()[command]) == flags


PLAN_CLASSES = (
    plans.Plans,
    LabelScheme,
    plans.Budget,
    plans.ConfigurationPlan,
    plans.PreprocessingPlan,
    plans.IntensityStatistics,
    plans.NetworkPlan,
    plans.LevelPlan,
    plans.DenoiserPlan,
    plans.TrainingPlan,
    plans.StagePlan,
    plans.ReadabilityCurve,
)


def code_words(page: str) -> set[str]:
    return set(re.findall(r"`(\w+)`", (ROOT / "documentation" / page).read_text("utf-8")))


@pytest.mark.parametrize("plan", PLAN_CLASSES, ids=lambda plan: plan.__name__)
def test_every_field_of_the_plan_is_documented(plan: type) -> None:
    missing = {field.name for field in dataclasses.fields(plan)} - code_words("reference/plans.md")
    assert not missing


EVALUATION_CLASSES = (
    ClassScore,
    LesionScore,
    DiversityScore,
    aggregate.ClassReport,
    aggregate.MetricSummary,
    aggregate.Outcomes,
)


@pytest.mark.parametrize("scores", EVALUATION_CLASSES, ids=lambda scores: scores.__name__)
def test_every_score_of_the_evaluation_is_documented(scores: type) -> None:
    assert not {field.name for field in dataclasses.fields(scores)} - code_words("reference/metrics.md")


def test_every_column_of_the_evaluation_is_documented() -> None:
    columns = {*tables.LESION_COLUMNS, *tables.CALIBRATION_METRICS, "hd_mm", "hd95_mm", "assd_mm", "case_confidence"}
    assert not columns - code_words("reference/metrics.md")


def test_json_examples_are_valid_descriptions() -> None:
    examples = blocks(ROOT / "documentation/reference/data-format.md", "json")
    codings = [parse_description(json.loads(example)).labels.coding for example in examples]
    assert codings == ["softmax", "regions", "binary", "binary", "binary"]


def test_python_examples_import_what_exists() -> None:
    examples = [example for page in PAGES for example in blocks(page, "python")]
    assert examples
    for example in examples:
        for node in ast.walk(ast.parse(example)):
            if isinstance(node, ast.ImportFrom):
                assert node.module is not None
                module = importlib.import_module(node.module)
                assert all(hasattr(module, alias.name) for alias in node.names)


def anchors(page: Path) -> set[str]:
    """Names under which links reach the headings of a page, as GitHub makes them."""
    headings = re.findall(r"^#+ (.+)$", re.sub(r"^```.*?^```", "", page.read_text("utf-8"), flags=re.M | re.S), re.M)
    return {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)]+)\)", page.read_text("utf-8")):
        if "://" in target:
            continue
        name, _, anchor = target.partition("#")
        other = page.parent / name if name else page
        assert other.exists(), f"{target} is no page"
        assert not anchor or anchor in anchors(other), f"{target} names no heading"


def test_the_architecture_page_names_every_folder() -> None:
    package = ROOT / "unisegdiff_pipeline"
    folders = {f"{path.parent.relative_to(package)}/" for path in package.rglob("__init__.py")} - {"./"}
    named = re.findall(
        r"^\| `([\w/]+/)` \|", (ROOT / "documentation/explanation/architecture.md").read_text("utf-8"), re.M
    )
    assert set(named) == folders


def test_the_architecture_page_names_every_module_beside_the_folders() -> None:
    modules = {path.name for path in (ROOT / "unisegdiff_pipeline").glob("*.py")} - {"__init__.py"}
    assert modules <= set(
        re.findall(r"`(\w+\.py)`", (ROOT / "documentation/explanation/architecture.md").read_text("utf-8"))
    )


def test_the_nnunet_page_names_every_flag_that_is_understood() -> None:
    page = (ROOT / "documentation/how-to/coming-from-nnunet.md").read_text("utf-8")
    tables = re.split(r"^\| `nnUNetv2_", page[page.index("## Flags") : page.index("## Folders")], flags=re.M)[1:]
    understood = [nnunet.TRAIN, nnunet.PREDICT, nnunet.PLAN_AND_PREPROCESS, nnunet.EVALUATE]
    understood += [nnunet.ENSEMBLE, nnunet.FIND_BEST, nnunet.EXPORT]
    for table, flags in zip(tables, understood, strict=True):
        left = {flag for line in re.findall(r"^\|([^|]+)", table, re.M) for flag in re.findall(r"`(--?\w+)", line)}
        assert set(flags) <= left


# Of nnU-Net 2.8.1, all that its commands take.
NNUNET_COMMANDS = {
    "accumulate_crossval_results": "-c -o -f -p -tr",
    "apply_postprocessing": "-i -o -pp_pkl_file -np -plans_json -dataset_json",
    "convert_MSD_dataset": "-i -overwrite_id -np",
    "convert_old_nnUNet_dataset": "",
    "determine_postprocessing": "-i -ref -plans_json -dataset_json -np --remove_postprocessed",
    "download_pretrained_model_by_url": "",
    "ensemble": "-i -o -np --save_npz",
    "evaluate_folder": "-djfile -pfile -o -np --chill",
    "evaluate_simple": "-l -il -o -np --chill",
    "export_model_to_zip": "-d -o -c -tr -p -f -chk --not_strict --exp_cv_preds",
    "extract_fingerprint": "-d -fpe -np --verify_dataset_integrity --clean",
    "find_best_configuration": "-p -c -tr -np -f --disable_ensembling --no_overwrite",
    "install_pretrained_model_from_zip": "",
    "move_plans_between_datasets": "-s -t -sp -tp",
    "plan_and_preprocess": "-d -fpe -npfp --verify_dataset_integrity --no_pp --clean -pl -gpu_memory_target -c -np "
    "-preprocessor_name -overwrite_target_spacing -overwrite_plans_name",
    "plan_experiment": "-d -pl -gpu_memory_target -preprocessor_name -overwrite_target_spacing -overwrite_plans_name",
    "plot_overlay_pngs": "-d -o -np -channel_idx --use_raw -p -c -overlay_intensity",
    "predict": "-i -o -d -p -tr -c -f -step_size --disable_tta --verbose --save_probabilities --continue_prediction "
    "-chk -npp -nps -prev_stage_predictions -num_parts -part_id -device --disable_progress_bar --not_on_device",
    "predict_from_modelfolder": "-i -o -m -f -step_size --disable_tta --verbose --save_probabilities --c -chk -npp "
    "-nps -prev_stage_predictions -device --disable_progress_bar --not_on_device",
    "preprocess": "-d -plans_name -c -np",
    "train": "-tr -p -pretrained_weights -num_gpus --npz --c --val --val_best --disable_checkpointing -device",
}


def test_the_nnunet_page_names_every_command_and_flag_of_nnunet() -> None:
    page = (ROOT / "documentation/how-to/coming-from-nnunet.md").read_text("utf-8")
    words = set(re.findall(r"[\w-]+", " ".join(re.findall(r"`([^`]+)`", page))))
    for command, flags in NNUNET_COMMANDS.items():
        assert {f"nnUNetv2_{command}", *flags.split()} <= words, command


def test_the_index_names_every_page() -> None:
    index = ROOT / "documentation/README.md"
    named = {(index.parent / target).resolve() for target in re.findall(r"\]\(([^)#]+)\)", index.read_text("utf-8"))}
    assert {page for page in PAGES if page.is_relative_to(index.parent)} - {index} <= named


FORMER_WORDS = r"\b(reckon\w*|mend(s|ed|ing)?|sittings?|honest\w*|the usual|for want of|cut at|draws? masks)\b"


def test_code_uses_the_words_of_the_field() -> None:
    sources = [*(ROOT / "unisegdiff_pipeline").rglob("*.py"), *(ROOT / "dataset_conversion").glob("*.py")]
    assert [p.name for p in sources if re.search(FORMER_WORDS, p.read_text("utf-8"), re.I)] == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_pages_use_the_words_of_the_field(page: Path) -> None:
    assert not re.findall(FORMER_WORDS, page.read_text("utf-8"), re.I)


EXPLANATIONS = ("staged_diffusion", "stages")


@pytest.mark.parametrize("name", EXPLANATIONS)
def test_scores_in_explanations_are_those_of_the_benchmark(name: str) -> None:
    page = (ROOT / f"documentation/explanation/{name}.md").read_text("utf-8")
    rows = "".join(line for line in page.splitlines() if re.match(r"\| \w+.*(min of|H100)", line))
    scores = set(re.findall(r"[-+]?\d\.\d+", rows))
    benchmark = (ROOT / "documentation/benchmarks/staged_diffusion.md").read_text("utf-8")
    assert len(scores) >= 8
    assert scores <= set(re.findall(r"[-+]?\d\.\d+", benchmark))


def readme_command(name: str) -> str:
    match = re.search(rf"^<!-- command: {name} -->\n```bash\n(.+)\n```$", (ROOT / "README.md").read_text("utf-8"), re.M)
    assert match is not None, f"README.md has no command {name}"
    return match.group(1)


def test_readme_installs_with_constraints_and_ends_in_what_is_promised() -> None:
    demo, test = readme_command("demo"), readme_command("test")
    assert "pip install -c constraints.txt" in demo
    assert demo.endswith("&& .venv/bin/usd_demo")
    assert "pip install -c constraints.txt" in test
    assert "[test]" in test
    assert test.endswith("&& .venv/bin/python -m pytest")


def test_ci_script_is_valid_and_reads_the_readme() -> None:
    script = ROOT / ".ci/run"
    subprocess.run(["bash", "-n", str(script)], check=True)
    text = script.read_text("utf-8")
    assert "readme_command test" in text
    assert "readme_command demo" in text
    assert "pip install" not in text  # the command is the README's


def test_constraints_pin_every_requirement() -> None:
    def names(text: str, pattern: str) -> set[str]:
        return {re.sub(r"[-_.]+", "-", name).lower() for name in re.findall(pattern, text, re.M)}

    pinned = names((ROOT / "constraints.txt").read_text("utf-8"), r"^([\w.-]+)==")
    required = names((ROOT / "setup.py").read_text("utf-8"), r'"([\w-]+)>=\d')
    assert required - pinned == {"distributed"}  # an extra for clusters, whose versions follow the cluster's
