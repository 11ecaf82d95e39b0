"""What `consensus --help` and `consensus COMMAND --help` print."""

from __future__ import annotations

HELP = """\
consensus: layer pruning by the consensus of similarity metrics

usage: consensus COMMAND …

commands
  run [key=value …]       score → prune → fine-tune → evaluate; one row in OUTPUT_DIR/results.csv
      consensus run model=resnet56 ratio=0.5
      consensus run -m model=resnet32,resnet56 ratio=0.25,0.5 seed=0,1     a sweep
      consensus run ratio=0.5 --cfg job                                    what would run
      consensus run ratio=[0.25,0.5]                                       a row at each of them
  resume RUN              continue a run that was stopped or failed at its last finished step
  score [key=value …]     rank the blocks without pruning: blocks × metrics, on screen and as CSV
      consensus score model=resnet56 scoring.bootstrap=100
      run, resume, score: a live view on a terminal, plain lines elsewhere; --quiet: only results and warnings;
      --json: one JSON object per event and line
  list [WHAT]             models | datasets | metrics | criteria | attacks | …, or blocks [key=value …]
      consensus list blocks model=resnet56
  report [SOURCE]         one HTML page about results.csv, its folder or a run; --out FILE, --figures DIR,
                          --markdown or --latex for text instead
  compare RUN RUN …       run directories side by side
  export RUN              the pruned network for other tools; --format safetensors|torch-export|onnx, --out FILE
  collect OUTPUT_DIR      rebuild results.csv from the run directories

settings are written key=value; what there is to set, with the defaults: consensus run --cfg job
groups: model dataset baseline metrics criterion prune finetune attacks evaluate experiment

options
  --help     this text; behind a command, the command's
  --version  the version
  --debug    with any command: the traceback of what is behind an error, too

exit codes: 0 done, 1 a bug or a failed run, 2 a mistake in what was asked for, 130 and 143 interrupted
"""

_EVERYWHERE = """\
  --debug           the traceback of what is behind an error, too
  --help            this text
"""

_SCREEN = """\
  --quiet           only results and warnings
  --json            one JSON object per event and line
"""

#: command -> what its --help prints
COMMANDS: dict[str, str] = {
    "run": f"""\
usage: consensus run [key=value …] [options]

Scores, prunes, fine-tunes and evaluates a network, and leaves one row in OUTPUT_DIR/results.csv.

  consensus run model=resnet56 ratio=0.5
  consensus run -m model=resnet32,resnet56 ratio=0.25,0.5 seed=0,1

settings
  What there is to set, with the defaults: consensus run --cfg job; what groups offer: consensus list.
  A name with blanks, ~, = or brackets is quoted for Hydra as well: 'dataset.root="~/a (1)"'

options
  -m, --multirun    a sweep: one run for every combination of the values that commas separate
  -c, --cfg WHAT    show the configuration instead of running: job, hydra or all
  --resolve         with --cfg: references filled in
  -p, --package P   with --cfg: one node of it, such as model
  -cd, --config-dir DIR    a folder of yours with further options of the groups
  -cn, --config-name NAME  another primary config file, in that folder
  -cp, --config-path DIR   a folder of yours instead of ours
  --info [WHAT]     how Hydra composes it: all, config, defaults, defaults-tree, plugins, searchpath
  --hydra-help      Hydra's own flags
{_SCREEN}{_EVERYWHERE}""",
    "resume": f"""\
usage: consensus resume RUN [options]

Continues a run that was stopped or failed, at its last finished step. What it reads must be there still.

  consensus resume outputs/runs/20250131T120000Z-0123abcd
  consensus resume --quiet outputs/runs/20250131T120000Z-0123abcd

options
{_SCREEN}{_EVERYWHERE}""",
    "score": f"""\
usage: consensus score [key=value …] [options]

Ranks the blocks without pruning: blocks × metrics, on screen and as scores.csv in a run directory.

  consensus score model=resnet56 scoring.bootstrap=100
  consensus score model=resnet20 metrics=[cka,wasserstein]

The settings are those of consensus run; ratio, prune and finetune have no effect.

options
{_SCREEN}{_EVERYWHERE}""",
    "list": f"""\
usage: consensus list [WHAT]
       consensus list blocks [key=value …]

Says what can be chosen, or which residual blocks a network has, what each costs and why it stays if it does.

  consensus list models
  consensus list blocks model=mobilenet_v2 dataset.image_size=64

Without WHAT: what can be listed.

options
{_EVERYWHERE}""",
    "report": f"""\
usage: consensus report [SOURCE] [options]

Writes one HTML page about SOURCE: a results.csv, the folder that holds it (outputs, unless given), or one run.

  consensus report outputs --out report.html --figures figures
  consensus report outputs --markdown

options
  --out FILE        the page (report.html)
  --figures DIR     every chart as PNG, SVG and PDF, too
  --markdown        print tables instead, for a text
  --latex           print tables instead, for a paper
{_EVERYWHERE}""",
    "compare": f"""\
usage: consensus compare RUN RUN …

Shows run directories side by side: settings, measures, and the order of removal.

  consensus compare outputs/runs/20250131T120000Z-0123abcd outputs/runs/20250131T130000Z-4567cdef
  consensus compare outputs/runs/*

options
{_EVERYWHERE}""",
    "export": f"""\
usage: consensus export RUN [options]

Writes the pruned network of a run for other tools, and checks the file on real test images.

  consensus export outputs/runs/20250131T120000Z-0123abcd --format onnx
  consensus export outputs/runs/20250131T120000Z-0123abcd --format torch-export --out network.pt2

options
  --format NAME     safetensors (unless given), torch-export or onnx
  --out FILE        the file (in the run directory unless given)
{_EVERYWHERE}""",
    "collect": f"""\
usage: consensus collect OUTPUT_DIR

Rebuilds results.csv from the run directories below OUTPUT_DIR/runs, copied there from any machine.

  consensus collect outputs
  consensus collect all-machines

options
{_EVERYWHERE}""",
}
