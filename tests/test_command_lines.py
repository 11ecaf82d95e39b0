"""Command lines as newcomers type them: each works, or is told in a line with what mends it; none ends in a traceback.

One table, one process. What a line that is right would start is stopped where a run begins to work.
"""

from __future__ import annotations

import logging
import shlex
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from consensus_cli.cli import sweep
from consensus_cli.cli.main import main
from consensus_cli.errors import RunFailedError
from consensus_cli.experiment import looking, pipeline

#: what a line that is right ends with here
STARTED = "a run begins"

WORKS = [
    ("--help", "commands"),
    ("-h", "commands"),
    ("help", "commands"),
    ("", "commands"),
    ("--version", "consensus "),
    ("run --version", "consensus "),
    ("help run", "usage: consensus run"),
    ("--debug list", "models"),
    ("list", "attacks"),
    ("list models", "resnet56"),
    ("list attacks", "square"),
    ("list attacks", "a suite: "),
    ("list experiments", "smoke"),
    ("run --cfg job", "ratio: 0.5"),
    ("run ratio=0.25 -c job", "ratio: 0.25"),
    ("run --cfg job ratio=0.25", "ratio: 0.25"),
    ("run -- ratio=0.25 --cfg=job", "ratio: 0.25"),
    ("run --cfg job --package model", "name: resnet56"),
    ("run --cfg job --resolve", "seed: 0"),
    ("run --cfg hydra", "launcher"),
    ("run --config-dir conf experiment=mine --cfg job", "ratio: 0.75"),
    ("run --config-dir 'conf (1)' experiment=mine --cfg job", "ratio: 0.75"),
    ("run --info searchpath", "| main "),
    ("report empty.csv --markdown", "Pruning report"),
    ("report empty.csv --latex", "longtable"),
    *((f"{command} --help", f"usage: consensus {command}") for command in ("run", "resume", "score", "list")),
    *((f"{command} -h", f"usage: consensus {command}") for command in ("report", "compare", "export", "collect")),
    ("run model=resnet56 --help", "usage: consensus run"),
    ("report --out --help", "usage: consensus report"),
]

STARTS = [
    "run",
    "run ratio=+.5 seed=1_000",
    "run ratio=0.5 -m seed=1",
    "run ratio=[0.25,0.5]",
    "run -m 'ratio=choice(0.5)'",
    "run -m 'model=glob(resnet2*)'",
    "run ++ratio=0.5",
    "run 'ratio=\"0.5\"'",
    "run ratio=${oc.env:A_RATIO}",
    "run ratio=${oc.env:SOME_RATIOS} seed=${oc.env:A_SEED}",
    "run evaluate.batch_sizes=${oc.env:SIZES} compile=${oc.env:SWITCH}",
    "run ratio=${oc.env:NOT_SET,0.5}",
    "run experiment=null",
    "run ~experiment",
    "run 'output_dir=out put'",
    "run 'output_dir=\"out (é) = 1, a\"'",
    "run hydra/launcher=basic -m ratio=0.5",
    "score ratio=0.5",
    "score --quiet metrics=cka",
]

MISTAKES = [
    # commands
    ("rum", "unknown command 'rum'", "did you mean 'run'?"),
    ("RUN", "unknown command 'RUN'", "did you mean 'run'?"),
    ("train", "unknown command 'train'", "valid: collect, compare"),
    ("''", "unknown command ''", "valid:"),
    ("-v", "unknown option '-v'", "behind the command"),
    ("--quiet run", "unknown option '--quiet'", "behind the command"),
    ("ratio=0.5", "'ratio=0.5' is a setting", "consensus run ratio=0.5"),
    ("help nonsense", "unknown command 'nonsense'", "valid:"),
    # flags
    ("run --foo", "consensus run: unknown option '--foo'", "consensus run --help"),
    ("run ratio=0.5 --multi-run", "unknown option '--multi-run'", "did you mean '--multirun'?"),
    ("run --ratio=0.5", "unknown option '--ratio=0.5'", "ratio=0.5"),
    ("run --ratio 0.5", "unknown option '--ratio'", "without dashes: ratio=…"),
    ("run -ratio=0.5", "unknown option '-ratio=0.5'", "ratio=0.5"),
    ("run --cfg", "expected one argument", "consensus run --help"),
    ("run --cfg nonsense", "invalid choice", "consensus run --help"),
    ("run --info nonsense", "invalid choice", "consensus run --help"),
    ("run --cfg job --package nonsense", "package 'nonsense' not found", "model"),
    ("run --resolve", "go with --cfg", "--cfg job"),
    ("run -m --cfg job", "not allowed with", "consensus run --help"),
    ("run -r -m", "unknown option '-r'", "consensus run --help"),
    ("run --quiet --json", "not allowed with", "consensus run --help"),
    ("run --experimental-rerun x", "unknown option", "consensus run --help"),
    ("run --shell-completion install=bash", "unknown option", "consensus run --help"),
    ("run --config-dir nowhere", "no config folder 'nowhere'", "spelled"),
    ("run --config-dir text.txt --cfg job", "no config folder 'text.txt'", "spelled"),
    ("run -cn nonsense", "no 'nonsense.yaml'", "spelled"),
    ("run -cp conf", "no 'config.yaml' in conf", "spelled"),
    ("run --config-dir conf experiment=broken", "not YAML", "mend the file"),
    ("run --config-dir conf experiment=tabs --cfg job", "not YAML", "mend the file"),
    ("run --config-dir conf experiment=latin", "not UTF-8", "UTF-8"),
    ("run --config-dir conf experiment=typo", "'ration'", "--cfg job"),
    ("run --config-dir conf experiment=nowhere", "nowhere", "Available options in 'experiment': broken"),
    ("run --config-dir conf -m experiment=mine,broken", "not YAML", "mend the file"),
    ("score -m seed=0,1", "unknown option '-m'", "consensus score --help"),
    ("score --cfg job", "unknown option '--cfg'", "consensus score --help"),
    ("score --fast", "unknown option '--fast'", "consensus score --help"),
    ("list blocks --json=1", "unknown option '--json=1'", "without dashes"),
    # settings that cannot be read
    ("run resnet56", "cannot read 'resnet56'", "did you mean model=resnet56?"),
    ("run model = resnet56", "cannot read 'model = resnet56'", "key=value without blanks"),
    ("run model =resnet56", "cannot read 'model =resnet56'", "key=value without blanks"),
    ("run model= resnet56 ratio=0.5", "cannot read 'resnet56'", "did you mean model=resnet56?"),
    ("run ratio 0.5", "cannot read 'ratio 0.5'", "without blanks, such as ratio=0.5"),
    ("run 'ratio = 0.5'", "cannot read 'ratio = 0.5'", "write ratio=0.5"),
    ("run model:resnet56", "cannot read 'model:resnet56'", "settings are written key=value"),
    ("run ratio==0.5", "cannot read 'ratio==0.5'", "write ratio=0.5"),
    ("run ratio＝０.５", "cannot read", "such as ratio=0.5"),
    ("run ratio=٠.٥", "cannot read", "write ratio=0.5"),
    ("run 'ratio=“0.5”'", "cannot read", "write ratio=0.5"),
    ("run ratio=0.5\u200b", "cannot read", "write ratio=0.5"),
    ("run 'ratio=0.5 seed=1'", "cannot read", "without blanks"),
    ("run 'ratio=0.5;seed=1'", "cannot read", "write ratio=0.5"),
    ("run ratio=[0.25,0.5", "cannot read", "[0.25,0.5] in brackets"),
    ("run 'ratio=(0.25,0.5)'", "cannot read", "[0.25,0.5] in brackets"),
    ("run ratio=0.5,", "cannot read", "write ratio=0.5"),
    ("run =0.5", "cannot read", "key=value"),
    ("run -", "cannot read '-'", "key=value"),
    ("run a..b=1", "cannot read", "key=value"),
    ("run seed=1#first", "cannot read", "seed takes a whole number"),
    ("run 'ratio=${oc.env'", "cannot read", "ratio takes"),
    ("run 'seed=${oc.decode:${oc.env:A_SEED}}'", "cannot read", "'seed=\"${oc.decode:${oc.env:A_SEED}}\"'"),
    ("run 'dataset.root=~/a (1)'", "cannot read", "hint: quote it for Hydra as well: 'dataset.root=\"~/a (1)\"'"),
    ("run dataset.root=~/photos", "cannot read", "'dataset.root=\"~/photos\"'"),
    ("run dataset.root=été", "cannot read", "'dataset.root=\"été\"'"),
    ("run output_dir=a=b", "cannot read", "'output_dir=\"a=b\"'"),
    ("run 'model.weights=[x]{y}.pt'", "cannot read", "'model.weights=\"[x]{y}.pt\"'"),
    ("run evaluate.shift.new=~/new", "cannot read", "'evaluate.shift.new=\"~/new\"'"),
    ('run "dataset.root=it\'s"', "cannot read", "'dataset.root=\"it'"),
    ("run output_dir=a,b", "several values", "'output_dir=\"a,b\"'"),
    ("run dataset.root=[photos]", "is not text", "'dataset.root=\"[photos]\"'"),
    ("run dataset.root=my photos", "cannot read 'photos'", "values with blanks quoted: 'key=a b'"),
    ("run 'model.kwargs={a: [1,2}'", "cannot read", "model.kwargs takes a set of settings"),
    # names
    ("run model=ResNet57", "unknown model 'ResNet57'", "did you mean 'resnet56'?"),
    ("run model=", "unknown model ''", "valid:"),
    ("run model=null", "unknown model 'null'", "valid:"),
    ("run attacks=null", "unknown attacks 'null'", "none"),
    ("run model=[resnet20]", "unknown model '[resnet20]'", "valid:"),
    ("run 'model={name: resnet20}'", "unknown model '{name: resnet20}'", "valid:"),
    ("run model=models/net.pt", "unknown model 'models/net.pt'", "model.weights=models/net.pt"),
    ("run dataset=./photos", "unknown dataset './photos'", "dataset=imagefolder dataset.root=./photos"),
    ("run attacks=fgsm", "unknown attacks 'fgsm'", "attacks.suite.fgsm.name=fgsm"),
    ("run 'model=${oc.env:M}'", "unknown model '${oc.env:M}'", "valid:"),
    ("run +model=resnet20", "take no +", "write model=resnet20"),
    ("run +experiment=smoke", "take no +", "write experiment=smoke"),
    ("run +ratio=0.5", "take no +", "write ratio=0.5"),
    ("run ~model", "take no +, ~ or @", "model=…"),
    ("run ~experiment=smoke", "take no +, ~ or @", "experiment=null"),
    ("run model@net=resnet20", "take no +, ~ or @", "write model=resnet20"),
    ("run lr=0.1", "unknown config key 'lr'", "'baseline.learning_rate' or 'finetune.learning_rate'"),
    ("run baseline.lr=0.1", "unknown config key 'baseline.lr'", "did you mean 'baseline.learning_rate'?"),
    ("run RATIO=0.5", "unknown config key 'RATIO'", "did you mean 'ratio'?"),
    ("run root=photos", "unknown config key 'root'", "did you mean 'dataset.root' or"),
    ("run scoring.weights.cka=2", "unknown config key", "valid here: ratio"),
    ("run prune/step=2", "unknown config key 'prune/step'", "did you mean 'prune.step'?"),
    ("run ++pretrained=true", "unknown config key 'pretrained'", "did you mean 'model.weights'?"),
    # values
    ("run ratio=abc", "'abc' is not a number or a list of numbers", "ratio=0.5"),
    ("run ratio=50%", "'50%' is not a number", "ratio=0.5"),
    ("run ratio=0,5", "several values", "decimals take a point"),
    ("run attacks.suite.pgd.eps=8", "attacks.suite.pgd.eps'", "did you mean 'attacks.suite.pgd.eps255'?"),
    ("run 'model.kwargs={\"a\": 1}'", "cannot read", "write model.kwargs={NAME: VALUE}"),
    ("list blocks --quiet", "consensus list: unknown option '--quiet'", "hint: consensus list --help"),
    ("run ratio=0.25,0.5", "several values", "'ratio=[0.25,0.5]'"),
    ("run ratio=nan", "ratio=nan is out of range", "above 0"),
    ("run ratio=1e400", "ratio=inf is out of range", "at most 1"),
    ("run ratio=true", "True is not a number", "ratio=0.5"),
    ("run ratio=null", "None is not a number", "ratio=0.5"),
    ("run ratio=???", "ratio is missing", "ratio=…"),
    ("run seed=one", "seed='one' is not a whole number", "seed=NUMBER"),
    ("run seed=1e3", "seed=1e3 is not a whole number", "seed=NUMBER"),
    ("run seed=", "seed= is not a whole number", "seed=NUMBER"),
    ("run seed=99999999999999999999", "out of range", "from 0 to 4294967295"),
    ("run threads=1000000000", "threads=1000000000 is out of range", "1024"),
    ("run baseline.epochs=1e308", "out of range", "100000"),
    ("run model.num_classes=99999999999", "out of range", "1000000"),
    ("run evaluate.batch_sizes=1", "not a list of whole numbers", "in brackets"),
    ("run evaluate.batch_sizes=[99999999999999]", "out of range", "65536"),
    ("run evaluate.energy_window_s=inf", "out of range", "above 0"),
    ("run scoring=current", "not a set of settings", "scoring={NAME: VALUE}"),
    ("run dataset.download=maybe", "not true or false", "dataset.download=true"),
    ("run model.name=null", "model.name=null is not text", "model.name=TEXT"),
    ("run metrics.weights.cka=-1", "metrics.weights.cka=-1.0 is out of range", "at least 0"),
    ("run attacks.suite.pgd=5", "attacks.suite.pgd=5 is not an attack", "name: pgd"),
    ("run attacks.suite.pgd.steps=many", "attacks.suite.pgd.steps='many' is not a whole number", "steps: 20"),
    ("run attacks.suite.pgd.eps255=nan", "eps255=nan", "at least 0"),
    ("run attacks.suite.pgd.step255=0", "step255=0.0", "above 0"),
    ("run output_dir=", "output_dir is empty", "output_dir=NAME"),
    ("run dataset=imagefolder dataset.root=", "dataset.root is empty", "dataset.root=NAME"),
    ("run model.weights=", "model.weights is empty", "leave it out"),
    ("run evaluate.shift.new=", "evaluate.shift.new is empty", "leave it out"),
    ("run output_dir=text.txt", "text.txt", "output_dir"),
    ("run output_dir=/dev/null/x", "/dev/null/x", "output_dir"),
    ("run 'output_dir=\"~nobody-of-this-name/x\"'", "no home folder", "write out the path"),
    ("run dataset=imagefolder 'dataset.root=\"~nobody-of-this-name/x\"'", "~nobody-of-this-name/x", "ROOT/train"),
    ("run evaluate.country=bra", "unknown country 'bra'", "did you mean 'BRA'?"),
    ("run evaluate.country=Germany", "unknown country 'Germany'", "did you mean 'DEU'?"),
    ("run device=gpu", "unknown device 'gpu'", "valid:"),
    ("run dataset.image_size=4", "dataset.image_size=4 is out of range", "from 8 to 16384"),
    ("run dataset.image_size=1000000", "dataset.image_size=1000000 is out of range", "from 8 to 16384"),
    ("run dataset.val_fraction=0.999", "no training images", "lower it"),
    # references
    ("run 'ratio=${oc.env:NOT_SET}'", "ratio: Environment variable 'NOT_SET' not found", "${oc.env:NAME,VALUE}"),
    ("run 'output_dir=${oc.env:NOT_SET}/x' --cfg job --resolve", "'NOT_SET' not found", "${oc.env:NAME,VALUE}"),
    ("run 'ratio=${oc.env:A_WORD}'", "'word' is not a number", "ratio=0.5"),
    ("run 'seed=${oc.env:A_WORD}'", "seed: 'word' is not a whole number", "${oc.env:A_WORD}"),
    ("run 'evaluate.batch_sizes=${oc.env:A_WORD}'", "'word' is not a list of whole numbers", "in brackets"),
    ("run 'ratio=${R}'", "ratio: Interpolation key 'R' not found", "mend it"),
    ("run 'ratio=${ratio}'", "ratio: Recursive interpolation", "mend it"),
    ("run 'ratio=${nonsense:1}'", "ratio: Unsupported interpolation type nonsense", "mend it"),
    # sweeps
    ("run -m 'ratio=range(0.9,0.2,0.1)'", "names no values", "range(START,STOP,STEP)"),
    ("run -m 'ratio=range(0.2,0.9,0)'", "names no values", "range(START,STOP,STEP)"),
    ("run -m 'ratio=interval(0.2,0.9)'", "names no values", "A,B"),
    ("run -m 'ratio=glob(*)'", "names no values", "A,B"),
    ("run -m 'model=glob(vgg*)'", "unknown model 'glob(vgg*)'", "valid:"),
    ("run -m 'model=range(1,3)'", "unknown model 'range(1,3)'", "valid:"),
    ("run -m 'seed=range(0,1000000000)'", "more than 10,000 runs", "at most 10,000"),
    ("run -m seed=0,one", "seed='one' is not a whole number", "NUMBER"),
    ("run -m seed=0,", "cannot read 'seed=0,'", "seed takes a whole number"),
    ("run -m ratio=0.5,1.5", "ratio=1.5 is out of range", "at most 1"),
    ("run -m model=resnet20,resnet57", "unknown model 'resnet57'", "resnet56"),
    ("run -m experiment=null,smoke", "unknown experiment 'null,smoke'", "valid:"),
    ("run -m hydra/launcher=jobib", "hydra/launcher/jobib", "joblib"),
    ("run -m hydra/launcher=[joblib]", "not supported", "hydra/launcher=…"),
    ("run -m hydra.launcher=joblib", "not supported", "hydra/launcher=joblib"),
    ("run -m hydra.launcher.n_jobs=2", "hydra.launcher.n_jobs", "--cfg hydra"),
    ("run hydra/launcher=basic", "is for the runs of a sweep", "consensus run -m"),
    ("run -m hydra.sweep.dir=text.txt", "cannot make 'text.txt'", "hydra"),
    ("run hydra.run.dir=text.txt", "cannot make 'text.txt'", "hydra"),
    ("run 'hydra.run.dir=${nope}'", "Interpolation key 'nope' not found", "mend it"),
    ("run hydra.mode=MULTIRUN", "not supported", "consensus run -m"),
    ("run hydra.job.chdir=true", "not supported", "output_dir"),
    ("run ~hydra.run", "not supported", "hydra.run=…"),
    ("run hydra.nonsense=1", "'hydra.nonsense'", "--cfg hydra"),
    ("run hydra/job_logging=nonsense", "hydra/job_logging/nonsense", "Available options"),
    ("run hydra.searchpath=[nowhere]", "no folder 'nowhere'", "file://FOLDER"),
    ("run +hydra.callbacks.x._target_=foo.Bar", "foo.Bar", "hydra.callbacks.x"),
    ("run -m hydra.sweeper.max_batch_size=0", "Hydra raised AssertionError", "--debug"),
    # networks and weights
    ("run model=timm", "model.name is missing", "model.name=…"),
    ("run model=custom", "model.target is missing", "package.module.Class"),
    ("run model=custom model.target=cmd_nets.Nope", "'Nope'", "Plain"),
    ("run model=custom model.target=cmd_nets", "a module, not a class", "Plain"),
    ("run model=custom model.target=cmd_nets.Raises", "raised ValueError: width", "model.kwargs"),
    ("run model=custom model.target=cmd_broken.Net", "SyntaxError", "mend the module"),
    ("run model=torchvision model.name=ResNet50", "unknown torchvision model", "did you mean 'resnet50'?"),
    ("run model.weights=nowhere.pt", "does not exist", "spelled"),
    ("run model.weights=text.txt", "text file", "download the file itself"),
    ("list blocks model=custom model.target=cmd_nets.Plain", "does not take images of 1×16×16", "model.mean="),
    (
        "list blocks model=custom model.target=cmd_nets.Large",
        "does not take images of 1×16×16",
        "model.image_size=32",
    ),
    ("list blocks model.mean=[0.5,0.5]", "model.mean has 2 numbers", "3 numbers"),
    # lists
    ("list model", "unknown list 'model'", "did you mean 'models'?"),
    ("list models datasets", "takes nothing else", "consensus list models"),
    ("list blocks resnet20", "cannot read 'resnet20'", "model=resnet20"),
    ("list blocks seed=0,1", "several values", "sweep"),
    # files of other commands
    ("resume", "required", "consensus resume --help"),
    ("resume ''", "an empty name", "consensus resume --help"),
    ("resume nowhere", "not a run directory", "runs/"),
    ("resume text.txt", "not a run directory", "runs/"),
    ("resume damaged", "damaged", "anew"),
    ("resume a b", "unknown option 'b'", "consensus resume --help"),
    ("report nowhere", "nowhere", "results.csv"),
    ("report empty", "holds no results.csv", "run directory"),
    ("report text.txt", "not a results file", "name a results.csv"),
    ("report binary.csv", "not a results file", "name a results.csv"),
    ("report damaged", "has not ended", "consensus resume"),
    ("report empty.csv --out empty", "'empty' is a folder", "--out"),
    ("report empty.csv --out text.txt/x.html", "text.txt", "--out"),
    ("report empty.csv --figures text.txt", "'text.txt' is a file", "--figures"),
    ("report empty.csv --markdown --latex", "not allowed", "consensus report --help"),
    ("report empty.csv --markdown --out x", "print tables", "consensus report --help"),
    ("report a b", "unknown option 'b'", "consensus report --help"),
    ("compare", "two or more", "consensus compare"),
    ("compare empty.csv", "two or more", "consensus compare"),
    ("compare empty empty", "holds no results.csv", "run directory"),
    ("compare damaged damaged", "has not ended", "consensus resume"),
    ("export", "required", "consensus export --help"),
    ("export nowhere", "not a run directory", "runs/"),
    ("export damaged --format onxx", "unknown format 'onxx'", "did you mean 'onnx'?"),
    ("export damaged", "damaged", "runs/"),
    ("export damaged --out", "expected one argument", "consensus export --help"),
    ("collect", "required", "consensus collect --help"),
    ("collect text.txt", "'text.txt' holds neither", "runs/"),
    ("collect empty", "neither runs/ nor results.csv", "runs/"),
    ("collect gathered/runs", "neither runs/ nor results.csv", "gathered"),
    ("collect a b", "unknown option 'b'", "consensus collect --help"),
]

NETS = """
from torch import nn

class Plain(nn.Module):
    def __init__(self, num_classes=10):
        super().__init__()
        self.stem, self.fc = nn.Conv2d(3, 8, 3), nn.Linear(8, num_classes)

    def forward(self, images):
        return self.fc(self.stem(images).mean((2, 3)))

class Large(Plain):
    def forward(self, images):
        if images.shape[-1] < 32:
            raise ValueError("too small")
        return super().forward(images.repeat(1, 3, 1, 1))

class Raises(nn.Module):
    def __init__(self):
        raise ValueError("width must divide by 8")
"""


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with something of every kind in it, from which no line may take or change anything."""
    folder = tmp_path_factory.mktemp("place")
    for path in ("empty", "gathered/runs", "damaged", "conf/experiment", "conf (1)/experiment"):
        (folder / path).mkdir(parents=True)
    (folder / "empty.csv").touch()
    (folder / "text.txt").write_text("hello\n")
    (folder / "binary.csv").write_bytes(bytes(range(256)) * 20)
    (folder / "damaged" / "config.yaml").write_text("a: [1\n")
    (folder / "cmd_nets.py").write_text(NETS)
    (folder / "cmd_broken.py").write_text("def f(:\n")
    save_file({"weight": torch.zeros(1)}, folder / "other.safetensors")
    for conf in ("conf", "conf (1)"):
        (folder / conf / "experiment" / "mine.yaml").write_text("# @package _global_\nratio: 0.75\n")
    options = folder / "conf" / "experiment"
    (options / "broken.yaml").write_text("# @package _global_\nratio: [0.25\n")
    (options / "tabs.yaml").write_text("# @package _global_\nmodel:\n\tname: x\n")
    (options / "typo.yaml").write_text("# @package _global_\nration: 0.75\n")
    (options / "latin.yaml").write_bytes("# @package _global_\n# été\nratio: 0.75\n".encode("latin1"))
    return folder


@pytest.fixture(autouse=True)
def beginning(place: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Starts lines in the folder, with the environment they name, and takes away the log that Hydra may set up."""
    monkeypatch.chdir(place)
    monkeypatch.syspath_prepend(place)
    # It looks through everything that is imported for garbage, which the other tests of this process have made.
    monkeypatch.setattr(sweep, "lasting_imports", nullcontext)
    for name, value in (("A_RATIO", "0.5"), ("A_SEED", "3"), ("A_WORD", "word"), ("SIZES", "[1,64]")):
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("SOME_RATIOS", "[0.25,0.5]")
    monkeypatch.setenv("SWITCH", "false")
    monkeypatch.delenv("NOT_SET", raising=False)
    root = logging.getLogger()
    handlers = list(root.handlers)
    yield
    root.handlers[:] = handlers


def contents(folder: Path) -> dict[str, bytes]:
    files = (path for path in folder.rglob("*") if path.is_file() and path.suffix != ".pyc")
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


def ids(case: tuple[str, ...] | str) -> str:
    return case if isinstance(case, str) else case[0]


def test_there_are_enough_of_them() -> None:
    assert len({ids(case) for case in (*WORKS, *STARTS, *MISTAKES)}) >= 120


@pytest.mark.parametrize(("line", "shown"), WORKS)
def test_it_works(line: str, shown: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(shlex.split(line)) == 0
    out, err = capsys.readouterr()
    assert shown in out
    assert err == ""


@pytest.mark.parametrize("line", STARTS)
def test_a_run_starts(line: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    def prepare(*_: object, **__: object) -> None:
        raise RunFailedError(STARTED, "")

    for module in (pipeline, looking):
        monkeypatch.setattr(module, "prepare", prepare)
    assert main(shlex.split(line)) == 1
    assert STARTED in capsys.readouterr().err


@pytest.mark.parametrize(("line", "message", "hint"), MISTAKES)
def test_a_mistake_is_one_line_and_what_mends_it(
    line: str, message: str, hint: str, place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = contents(place)
    assert main(shlex.split(line)) == 2
    out, err = capsys.readouterr()
    error, told, *more = [text for text in err.splitlines() if text.startswith(("error: ", "hint: "))]
    assert not more, err
    assert "Traceback" not in err + out
    assert message in error
    assert hint in told
    assert contents(place) == before
