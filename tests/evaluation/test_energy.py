from __future__ import annotations

import logging
import socket
import tempfile
import time
from importlib.metadata import version
from pathlib import Path

import pytest
import torch
from codecarbon.external import hardware

from consensus_cli.config.composition import compose_run
from consensus_cli.errors import UserError
from consensus_cli.evaluation.cost.energy import (
    _COUNTERS,
    GPU_WINDOW_S,
    EnergyMeter,
    _nvml_id,
    check_country,
    compare_energy,
    readable_window_s,
)
from consensus_cli.evaluation.statistics import paired_reduction_pct
from consensus_cli.experiment.announce import _least_evaluation_s


@pytest.fixture(scope="module")
def meter() -> EnergyMeter:
    return EnergyMeter("BRA")


def burn(seconds: float) -> None:
    end_s = time.process_time() + seconds
    while time.process_time() < end_s:
        sum(range(1000))


def test_twice_the_work_takes_twice_the_energy(meter):
    calls = {"one": 0, "two": 0}

    def work_of(name: str, seconds: float) -> None:
        calls[name] += 1
        burn(seconds)

    work = {"one": lambda: work_of("one", 0.05), "two": lambda: work_of("two", 0.10)}
    found = compare_energy(work, meter=meter, window_s=0.4, repeats=5)
    assert 40 < -paired_reduction_pct(found["one"].windows_kwh, found["two"].windows_kwh) < 180
    assert len(found["one"].windows_kwh) == 5
    assert min(calls.values()) >= 6
    assert found["one"].kwh_iqr >= 0


def test_windows_alternate_and_report_progress(meter):
    order, seen = [], []
    work = {"a": lambda: order.append("a"), "b": lambda: order.append("b")}
    found = compare_energy(work, meter=meter, window_s=0, repeats=2, progress=lambda *step: seen.append(step))
    assert order == ["a", "b", "b", "a", "a", "b"]
    assert seen == [("measuring energy", done, 6) for done in range(1, 7)]
    assert len(found["a"].windows_kwh) == 2  # the first window is not counted


def test_no_window_is_shorter_than_the_meter_can_read(meter, monkeypatch):
    devices = [torch.device(name) for name in ("cpu", "cuda:1")]
    assert [readable_window_s(0.1, device) for device in devices] == [0.1, GPU_WINDOW_S]
    assert readable_window_s(GPU_WINDOW_S + 1, devices[1]) == GPU_WINDOW_S + 1
    monkeypatch.setattr("consensus_cli.evaluation.cost.energy.readable_window_s", lambda *_: 0.2)
    calls = []
    compare_energy({"a": lambda: calls.append(time.sleep(0.02))}, meter=meter, window_s=0, repeats=1)
    assert len(calls) > 4


def test_the_time_that_a_run_announces_knows_the_windows_of_its_device():
    settings = compose_run([]).evaluate  # 0.2 s, eight and one to settle, two works of two networks; 0.5 s for latency
    least_s = [_least_evaluation_s(settings, torch.device(name)) for name in ("cpu", "cuda")]
    assert least_s == pytest.approx([3 * 0.2 + 36 * 0.2 + 2, 3 * GPU_WINDOW_S + 36 * GPU_WINDOW_S + 2])


def test_a_cold_start_does_not_count(meter):
    calls = []

    def cold_at_first() -> None:
        calls.append(burn(0.02 if calls else 0.6))

    found = compare_energy({"a": cold_at_first}, meter=meter, window_s=0.1, repeats=2)
    assert len(calls) > 3
    # As a third window the first call would stand out by its energy.
    assert max(found["a"].windows_kwh) < 5 * min(found["a"].windows_kwh)


def test_countries_differ_in_carbon_intensity():
    intensity = {}
    for country in ("BRA", "POL"):
        with EnergyMeter(country).measure() as used:
            burn(0.1)
        assert min(used.kwh, used.duration_s) > 0
        intensity[country] = used.co2_kg / used.kwh
    assert intensity["POL"] > 2 * intensity["BRA"]


def test_idle_power_is_less_than_busy_power(meter):
    with meter.measure() as busy:
        burn(0.5)
    busy_w = busy.kwh * 3.6e6 / busy.duration_s
    assert 0 <= meter.idle_w(0.5) < busy_w


def test_source_says_tool_version_mode_and_kind(meter):
    assert meter.source.startswith(f"codecarbon {version('codecarbon')} process: CPU e")
    assert meter.estimated == ("estimate" in meter.source)


def test_codecarbon_describes_its_counters_as_the_meter_expects():
    """Private: `tracker._hardware`, and the words of its parts, say whether a counter is read."""
    tracker = EnergyMeter("BRA")._tracker()
    tracker.get_detected_hardware()
    assert any(isinstance(part, hardware.CPU) for part in tracker._hardware)
    described = {hardware.AppleSiliconChip.__name__, hardware.Raspberry.__name__}
    for mode in ("intel_rapl", "intel_power_gadget", "windows_emi", "cpu_load", "constant"):
        cpu = hardware.CPU(tempfile.gettempdir(), "constant", "a model", 50)
        cpu._mode = mode
        described.add(cpu.description())
    read = {text for text in described if any(counter in text for counter in _COUNTERS)}
    assert len(read) == len(_COUNTERS) == 5


def test_nothing_is_written_printed_or_stopped_by_leftovers(tmp_path, monkeypatch, capfd):
    """A stale lock file, a config of the user's that wants a lock and files, and a second tracker."""
    monkeypatch.chdir(tmp_path)
    Path(".codecarbon.config").write_text(
        "[codecarbon]\nallow_multiple_runs=false\noutput_methods=csv\nsave_to_file=true\nlog_level=debug\n"
        "emissions_endpoint=http://localhost:1\nelectricitymaps_api_token=token\n"
    )
    lock = Path(tempfile.gettempdir()) / ".codecarbon.lock"
    already_there = lock.exists()
    lock.touch()
    try:
        meter = EnergyMeter("BRA")
        with meter.measure() as outer, meter.measure() as inner:
            burn(0.2)
        logging.getLogger("codecarbon").critical("anything")
    finally:
        if not already_there:
            lock.unlink()
    assert min(outer.kwh, inner.kwh, outer.co2_kg) > 0
    assert [path.name for path in tmp_path.iterdir()] == [".codecarbon.config"]
    assert capfd.readouterr() == ("", "")


#: what codecarbon lets a variable or a file change
SETTINGS = {
    "pue": "2", "wue": "3", "force_cpu_power": "999", "force_ram_power": "999", "force_mode_cpu_load": "true",
    "tracking_mode": "machine", "measure_power_secs": "0.01", "api_call_interval": "1", "rapl_include_dram": "true",
    "rapl_prefer_psys": "true", "force_carbon_intensity_g_co2e_kwh": "9999", "country_iso_code": "POL",
    "region": "california", "cloud_provider": "gcp", "cloud_region": "us-east1", "country_2letter_iso_code": "pl",
    "gpu_ids": "7", "allow_multiple_runs": "false", "save_to_file": "true", "output_dir": "nowhere",
    "experiment_id": "mine", "project_name": "mine",
}  # fmt: skip


def settings_of(meter: EnergyMeter) -> dict[str, object]:
    tracker = meter._tracker()
    return tracker._conf | {"hardware": [part.description() for part in tracker._hardware]}


@pytest.fixture
def undisturbed(tmp_path, monkeypatch) -> dict[str, object]:
    """Settings where there is nothing to read, with the working directory and the home in folders of their own."""
    for name in ("home", "work"):
        (tmp_path / name).mkdir()
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path / "work")
    return settings_of(EnergyMeter("BRA"))


@pytest.mark.parametrize("name", SETTINGS)
def test_no_variable_changes_how_energy_is_read(name, undisturbed, monkeypatch):
    monkeypatch.setenv(f"CODECARBON_{name.upper()}", SETTINGS[name])
    assert settings_of(EnergyMeter("BRA")) == undisturbed


@pytest.mark.parametrize("folder", ["home", "work"])
@pytest.mark.parametrize("broken", [False, True])
def test_no_file_changes_how_energy_is_read(folder, broken, undisturbed, tmp_path):
    lines = [f"{name}={value}" for name, value in SETTINGS.items()]
    content = "pue=2" if broken else "\n".join(["[codecarbon]", *lines])
    (tmp_path / folder / ".codecarbon.config").write_text(content)
    assert settings_of(EnergyMeter("BRA")) == undisturbed


def test_the_factor_of_a_data_centre_is_one(undisturbed):
    assert undisturbed["pue"] == 1
    assert undisturbed["tracking_mode"] == "process"


def test_energy_is_read_where_there_is_no_home(monkeypatch):
    def unknown() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(Path, "home", unknown)
    with EnergyMeter("BRA").measure() as used:
        burn(0.1)
    assert used.kwh > 0


def test_no_network_is_asked_for(monkeypatch):
    asked = []

    def refuse(*address: object) -> None:
        asked.append(address)
        raise OSError("there is no network")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    with EnergyMeter("BRA").measure() as used:
        burn(0.2)
    assert used.kwh > 0
    assert used.co2_kg > 0
    assert asked == []


def test_unknown_country_is_refused_with_a_hint():
    with pytest.raises(UserError, match="unknown country 'GERMANY'") as caught:
        check_country("GERMANY")
    assert "DEU" in caught.value.hint


def test_gpu_is_named_as_the_driver_numbers_it(monkeypatch):
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    assert _nvml_id(torch.device("cuda:2")) == 2
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "5, 3")
    assert _nvml_id(torch.device("cuda")) == "5"
    assert _nvml_id(torch.device("cuda:1")) == "3"
