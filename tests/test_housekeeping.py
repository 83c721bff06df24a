"""What stands beside the code names commands, versions and files that there are."""

from __future__ import annotations

import re
import tomllib

import pytest
import yaml

from tests.conftest import REPOSITORY

PROJECT = tomllib.loads((REPOSITORY / "pyproject.toml").read_text(encoding="utf-8"))["project"]
WORKFLOW = REPOSITORY / ".github" / "workflows" / "ci.yml"
TEMPLATES = sorted((REPOSITORY / ".github" / "ISSUE_TEMPLATE").glob("*.yml"))


def test_the_citation_is_of_this_version():
    citation = yaml.safe_load((REPOSITORY / "CITATION.cff").read_text(encoding="utf-8"))
    assert {"cff-version", "message", "title", "authors"} <= set(citation)
    assert citation["version"] == PROJECT["version"]
    assert citation["license"] == PROJECT["license"]
    assert citation["authors"] == [{"name": author["name"]} for author in PROJECT["authors"]]


def test_the_workflow_covers_systems_and_versions_and_installs_extras_that_there_are():
    jobs = yaml.safe_load(WORKFLOW.read_text(encoding="utf-8"))["jobs"]
    matrix = jobs["tests"]["strategy"]["matrix"]
    assert {name.partition("-")[0] for name in matrix["os"]} == {"ubuntu", "macos", "windows"}
    assert matrix["python"] == ["3.11", "3.12", "3.13", "3.14"]
    commands = [step["run"] for job in jobs.values() for step in job["steps"] if "run" in step]
    extras = {
        name for command in commands for found in re.findall(r"\.\[([\w,]+)\]", command) for name in found.split(",")
    }
    assert extras
    assert extras <= set(PROJECT["optional-dependencies"])


def test_the_image_copies_what_the_wheel_is_made_of_and_what_there_is():
    text = (REPOSITORY / "Dockerfile").read_text(encoding="utf-8")
    copied = [name for line in re.findall(r"^COPY (.+) \S+$", text, re.MULTILINE) for name in line.split()]
    assert {"src", "configs", "checkpoints", "pyproject.toml", "README.md", "LICENSE"} <= set(copied)
    assert [name for name in copied if not (REPOSITORY / name).exists()] == []
    assert "make test" in text


def test_hooks_run_what_make_lint_checks():
    hooks = yaml.safe_load((REPOSITORY / ".pre-commit-config.yaml").read_text(encoding="utf-8"))["repos"][0]["hooks"]
    lint = (REPOSITORY / "Makefile").read_text(encoding="utf-8").partition("\nlint:")[2].partition("\n\n")[0]
    for hook in hooks:
        program = hook["entry"].removeprefix(".venv/bin/").removesuffix(" --fix")
        assert f"$(BIN)/{program}" in lint


@pytest.mark.parametrize("path", TEMPLATES, ids=lambda path: path.stem)
def test_issue_templates_are_complete(path):
    template = yaml.safe_load(path.read_text(encoding="utf-8"))
    if path.stem == "config":
        assert set(template) == {"blank_issues_enabled", "contact_links"}
    else:
        assert all(entry["attributes"]["label"] for entry in template["body"])
        assert template["name"]
        assert template["description"]
