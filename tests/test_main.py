"""The one console command: what it lists, how it helps and completes, and with what status it ends."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from conftest import REPOSITORY

from crystalvae.commands.config_files import config_dir, describe_config, group_options
from crystalvae.commands.help import command_help
from crystalvae.commands.main import COMMANDS, main

RUNS = ("vae_dng", "vae_dng_small")
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(REPOSITORY / "src"), "OMP_NUM_THREADS": "1", "COLUMNS": "100"}


def crystalvae(*arguments: str, cwd: Path, **variables: str) -> subprocess.CompletedProcess:
    code = "import sys; sys.argv[0] = 'crystalvae'; from crystalvae.commands.main import main; main()"
    return subprocess.run(
        [sys.executable, "-c", code, *arguments], cwd=cwd, env={**ENVIRONMENT, **variables}, capture_output=True,
        text=True, check=False, timeout=120,
    )  # fmt: skip


# ---- help ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("arguments", [[], ["--help"], ["-h"], ["help"]])
def test_alone_it_lists_the_commands(arguments: list[str], capsys: pytest.CaptureFixture[str]):
    main(arguments)
    lines = capsys.readouterr().out.splitlines()
    for name, command in COMMANDS.items():
        assert any(line.split()[:1] == [name] and line.endswith(command.summary) for line in lines)


@pytest.mark.parametrize("name", COMMANDS)
def test_help_tells_every_key_and_group(name: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("COLUMNS", "100")
    text = command_help(name, COMMANDS[name].config)
    config = yaml.safe_load((config_dir() / f"{COMMANDS[name].config}.yaml").read_text(encoding="utf-8"))
    groups = {key for entry in config.pop("defaults") if isinstance(entry, dict) for key in entry}
    words = [line.split()[0] for line in text.splitlines() if line.startswith("  ")]
    for group in groups:
        if not group.startswith("override"):
            assert group in words
    for key in set(config) - groups - {"hydra"}:
        assert any(word.startswith((f"{key}=", f"{key}.")) for word in words), key
    assert all(len(line) <= 120 for line in text.splitlines())
    assert f"  crystalvae {name} " in text
    assert f"crystalvae {name} --cfg job" in text


@pytest.mark.parametrize("command", COMMANDS.values(), ids=COMMANDS)
def test_every_key_has_a_word_of_explanation(command):
    found = describe_config(command.config)
    assert len(found.introduction) > 40
    assert found.introduction.endswith(".")
    assert [key.name for key in found.keys if not key.comment] == []
    for group in found.groups:
        assert group.default in {"null", *group.options}, group


def test_experiments_are_listed_with_the_command_that_runs_them():
    options = {
        command.config: group.options
        for command in COMMANDS.values()
        for group in describe_config(command.config).groups
        if group.name == "experiment"
    }
    assert "mp_20/vae_dng" in options["train_vae"]
    assert "mp_20/prior_dng" in options["train_prior"]
    assert sorted({run for runs in options.values() for run in runs}) == group_options("experiment")


def test_help_of_a_command_needs_no_torch(tmp_path: Path):
    code = (
        "import sys; from crystalvae.commands.main import main; main(['sample', '--help']); "
        "sys.exit(bool({'torch', 'hydra'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, env=ENVIRONMENT, capture_output=True, check=False)
    assert done.returncode == 0, done.stderr


# ---- exit statuses ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "status", "message"),
    [
        (["smaple"], 2, "crystalvae has no command 'smaple'; did you mean sample?"),
        (["zzz"], 2, "crystalvae has no command 'zzz'; expected one of train-vae, train-prior"),
        (["num_samples=3"], 2, "the command comes first, such as crystalvae sample num_samples=3"),
        (["sample", "--flag"], 2, "unrecognized arguments: --flag"),
        (["sample", "num_sample=3"], 1, "num_sample: the command has no such key; did you mean num_samples?"),
        (["sample", "sampler.stps=3"], 1, "sampler.stps: the command has no such key; did you mean sampler.steps?"),
        (["sample", "overwrite=no"], 1, "overwrite: got 'no'; expected true or false"),
        (["sample", "potential=chgnt"], 1, "potential=chgnt: there is no such option; did you mean chgnet?"),
        (["sample", "potential=null"], 1, "on the command line: Config group override must be a string"),
        (["sample", "num_samples"], 1, "on the command line: Error parsing override 'num_samples'"),
        (["train-vae", "experiment=mp_20/vae_dgn"], 1, "no such option; did you mean mp_20/vae_dng?"),
        (["train_vae", "vae_module/encoder=transfomer"], 1, "no such option; did you mean transformer?"),
        (["latent"], 1, "missing on the command line: operation=…"),
    ],
)
def test_what_cannot_be_done_is_one_paragraph(tmp_path: Path, arguments: list[str], status: int, message: str):
    done = crystalvae(*arguments, cwd=tmp_path)
    assert done.returncode == status
    assert message in done.stderr
    assert "Traceback" not in done.stderr
    assert done.stdout == ""
    if "--flag" not in arguments:  # Hydra's own list of flags
        assert len(done.stderr.strip().splitlines()) == 1
    assert list(tmp_path.iterdir()) == []


BROKEN = """
import sys
from crystalvae.commands import main
main.Command.load = lambda command: {}["no such thing"]
sys.argv[0] = "crystalvae"
main.main()
"""


def test_a_mistake_of_ours_is_told_as_one(tmp_path: Path):
    """One paragraph that says where the traceback is; with Hydra's variable the traceback itself."""
    variables = {**ENVIRONMENT, "TMPDIR": str(tmp_path)}
    for more, shown in (({}, False), ({"HYDRA_FULL_ERROR": "1"}, True)):
        done = subprocess.run(
            [sys.executable, "-c", BROKEN, "sample", "num_samples=3"], cwd=tmp_path, env={**variables, **more},
            capture_output=True, text=True, check=False,
        )  # fmt: skip
        assert done.returncode == 1
        assert "a mistake of crystalvae, please report it: KeyError: 'no such thing'" in done.stderr
        assert ("Traceback" in done.stderr) == shown
    kept = [path.read_text() for path in tmp_path.glob("crystalvae-*.txt")]
    assert len(kept) == 2
    assert "sample num_samples=3" in kept[0]
    assert "KeyError: 'no such thing'" in kept[0]


STOPPED = """
import os, signal, sys
from crystalvae.commands import main
signal.signal(signal.SIGINT, signal.default_int_handler)  # also where this runs in the background
def load(command):
    os.kill(os.getpid(), signal.SIGINT)
    while True:
        pass
main.Command.load = load
sys.argv[0] = "crystalvae"
main.main(["sample"])
"""


def test_control_c_ends_with_130_and_a_word(tmp_path: Path):
    done = subprocess.run(
        [sys.executable, "-c", STOPPED], cwd=tmp_path, env=ENVIRONMENT, capture_output=True, text=True, check=False,
        timeout=60,
    )  # fmt: skip
    assert (done.returncode, done.stderr.strip()) == (130, "stopped")


def test_log_lines_are_not_broken(tmp_path: Path):
    """They hold commands and paths to copy."""
    code = (
        "import logging; from crystalvae.commands.cli import set_up_logging; set_up_logging(); "
        "logging.getLogger('any').warning('[red] word ' * 30)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, env=ENVIRONMENT, capture_output=True, text=True, check=True
    )
    assert done.stderr == f"WARNING  {'[red] word ' * 30}\n"


# ---- completion ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("crystalvae ", [*COMMANDS]),
        ("crystalvae train", ["train-vae", "train-prior", "train-predictor", "train-sequence"]),
        ("crystalvae sa", ["sample"]),
        ("crystalvae sample num_s", ["num_samples="]),
        ("crystalvae sample num_samples=3 sampler.st", ["sampler.steps=", "sampler.stochasticity="]),
        (
            "crystalvae sample potential=",
            [f"potential={name}" for name in ("chgnet", "emt", "mace", "mattersim", "orb", "sevennet")],
        ),
        ("crystalvae train-vae vae_module/dec", ["vae_module/decoder="]),
        ("crystalvae train_vae trainer=d", ["trainer=ddp", "trainer=default"]),
        ("crystalvae train-vae seed=3 experiment=mp_20/vae_d", [f"experiment=mp_20/{run}" for run in RUNS]),
        ("crystalvae train-prior experiment=proto", ["experiment=prototypes/prior"]),
        ("crystalvae nonsense num_s", []),
    ],
)
@pytest.mark.parametrize("shell", ["bash", "fish"])
def test_shells_are_told_how_to_go_on(tmp_path: Path, line: str, expected: list[str], shell: str):
    done = crystalvae("-sc", f"query={shell}", cwd=tmp_path, COMP_LINE=line)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.split() == expected
    if shell == "fish":
        assert done.stdout.splitlines() == expected or expected == []


def test_what_stands_after_the_cursor_is_left_alone(tmp_path: Path):
    line = "crystalvae sample num_s seed=3"
    done = crystalvae("-sc", "query=bash", cwd=tmp_path, COMP_LINE=line, COMP_POINT=str(line.index(" seed")))
    assert done.stdout.split() == ["num_samples="]


def test_zsh_and_scripts_complete_as_bash_does(tmp_path: Path):
    assert crystalvae("-sc", "query=zsh", cwd=tmp_path, COMP_LINE="crystalvae sample num_s").stdout == "num_samples=\n"
    for script, typed, expected in (
        ("sample.py", "num_s", "num_samples="),
        ("train_prior.py", "experiment=proto", "experiment=prototypes/prior"),
    ):
        done = subprocess.run(
            [sys.executable, f"src/{script}", "-sc", "query=bash"], cwd=REPOSITORY, capture_output=True, text=True,
            check=False, env={**ENVIRONMENT, "COMP_LINE": f"python src/{script} {typed}"},
        )  # fmt: skip
        assert done.stdout == f"{expected}\n"


@pytest.mark.skipif(shutil.which("bash") is None, reason="no bash here")
def test_bash_completes_what_is_typed(tmp_path: Path):
    """The script that `install=bash` prints, in a shell whose variables are those of a user at the tab key."""
    program = tmp_path / "bin" / "crystalvae"
    program.parent.mkdir()
    program.write_text(f"#!{sys.executable}\nfrom crystalvae.commands.main import main\nmain()\n")
    program.chmod(0o755)
    script = """
eval "$(crystalvae -sc install=bash)"
complete -p crystalvae >&2
typed() {
  COMP_LINE="$1" COMP_POINT=${#1} COMP_WORDS=($1) COMP_CWORD=$2
  hydra_bash_completion
  echo "${COMPREPLY[@]}"
}
typed "crystalvae sam" 1
typed "crystalvae sample num_s" 2
typed "crystalvae train-vae experiment=mp_20/vae_d" 2
"""
    done = subprocess.run(
        ["bash", "-c", script], cwd=tmp_path, capture_output=True, text=True, check=False, timeout=120,
        env={**ENVIRONMENT, "PATH": f"{program.parent}{os.pathsep}{os.environ['PATH']}"},
    )  # fmt: skip
    assert "hydra_bash_completion crystalvae" in done.stderr
    assert done.stdout.splitlines() == [
        "sample", "num_samples=", "experiment=mp_20/vae_dng experiment=mp_20/vae_dng_small",
    ]  # fmt: skip
