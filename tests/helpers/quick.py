"""The words that make a real run short enough for the default tests."""

#: the whole line in about ten seconds
QUICK = (
    "experiment=smoke",
    "baseline.epochs=2",
    "dataset.limit_train=300",
    "dataset.limit_test=100",
    "attacks.images=20",
    "evaluate.energy_window_s=0.2",
    "evaluate.latency_min_run_s=0.02",
)
