"""The Snakemake and Nextflow examples: their commands are ours, and what reads their languages takes them."""

from __future__ import annotations

import re
import shlex
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.test_documentation import parser_of

EXAMPLES = Path(__file__).resolve().parents[1] / "documentation/examples"
WORKFLOWS = [EXAMPLES / "lesions.smk", EXAMPLES / "lesions.nf"]
STEPS = ["usd_plan_and_preprocess", "usd_train", "usd_find_best", "usd_predict"]
CLOSED_BY = {"(": ")", "[": "]", "{": "}"}


def commands(workflow: str) -> list[list[str]]:
    """Words of each command, with 1 in place of what the workflow fills in."""
    lines = re.findall(r'^ *"?(usd_\w+ [^"\n]*)"?$', workflow, re.M)
    return [shlex.split(re.sub(r"\$?\{[^{}]*\}", "1", line)) for line in lines]


def left_open(workflow: str) -> str:
    """Brackets outside of strings and comments that nothing closes, or that close nothing."""
    code = re.sub(r'""".*?"""|"[^"\n]*"|\'[^\'\n]*\'|(#|//)[^\n]*', "", workflow, flags=re.S)
    stack = []
    for bracket in re.findall(r"[][(){}]", code):
        if bracket in CLOSED_BY:
            stack.append(CLOSED_BY[bracket])
        elif not stack or stack.pop() != bracket:
            return bracket
    return "".join(stack)


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.name)
def test_workflows_run_our_commands(path: Path) -> None:
    workflow = path.read_text("utf-8")
    found = commands(workflow)
    assert [words[0] for words in found] == STEPS
    for command, *words in found:
        parser_of(command).parse_args(words)
    assert left_open(workflow) == ""


@pytest.mark.parametrize(("text", "left"), [("f(a[0)", ")"), ("x {", "}"), ('"(" # (\n// {', ""), ("a)", ")")])
def test_brackets_that_do_not_match_are_found(text: str, left: str) -> None:
    assert left_open(text) == left


@pytest.mark.skipif(shutil.which("snakemake") is None, reason="snakemake is not installed")
def test_snakemake_takes_its_workflow(tmp_path: Path) -> None:
    words = ["snakemake", "-s", str(WORKFLOWS[0]), "--cores", "1", "--dry-run", "--resources", "gpu=1"]
    words += ["--config", f"masks={tmp_path / 'masks'}"]
    done = subprocess.run(words, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def compiled(folder: Path, script: str) -> subprocess.CompletedProcess[str]:
    """What Groovy's compiler says of a script; skips where there is none that runs."""
    if shutil.which("groovyc") is None or subprocess.run(["groovyc", "--version"], check=False).returncode != 0:
        pytest.skip("groovyc is not installed, or finds no Java")
    (folder / "script.groovy").write_text(script, "utf-8")
    command = ["groovyc", "-d", str(folder), str(folder / "script.groovy")]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_groovy_compiles_the_nextflow_workflow(tmp_path: Path) -> None:
    # Nextflow's language is Groovy, whose compiler does not ask what `process` and `val` are.
    done = compiled(tmp_path, WORKFLOWS[1].read_text("utf-8"))
    assert done.returncode == 0, done.stdout + done.stderr
    assert compiled(tmp_path, "process PLAN {\n    input: )\n}\n").returncode != 0
