"""Environment variables: what each means, and what a wrong one says."""

from __future__ import annotations

import os
import pickle

import pytest

from tgx import errors, settings

pytestmark = pytest.mark.pure


@pytest.fixture(autouse=True)
def clean(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in settings.VARIABLES:
        monkeypatch.delenv(name, raising=False)


def test_defaults() -> None:
    assert settings.given() == {} and settings.strangers() == []
    assert settings.requested_device() == ("", "")
    assert settings.fast() and settings.trace_dir() == "" and not settings.traceback()
    assert not settings.count()


def test_flags(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TGX_FAST", "0")
    monkeypatch.setenv("TGX_TRACEBACK", "")
    assert not settings.fast() and not settings.traceback()
    assert settings.given() == {"TGX_FAST": "0"}


def test_a_flag_that_means_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TGX_FAST", "no")
    with pytest.raises(errors.BadSetting) as caught:
        settings.fast()
    assert str(caught.value).splitlines()[0] == "TGX_FAST=no"
    assert "expected: 0 or 1" in str(caught.value) and "unset TGX_FAST" in str(caught.value)


def test_counting_and_checking_are_two_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TGX_COUNT", "1")
    monkeypatch.setenv("TGX_CHECK", "0")
    assert settings.count()
    monkeypatch.setenv("TGX_CHECK", "memory")
    with pytest.raises(errors.BadSetting, match="TGX_COUNT=1 and TGX_CHECK=memory together"):
        settings.count()
    monkeypatch.setenv("TGX_COUNT", "0")
    assert not settings.count()


def test_a_misspelt_variable_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TGX_CHEK", "1")
    assert settings.strangers() == ["TGX_CHEK"]


def test_a_variable_has_to_be_in_the_table() -> None:
    with pytest.raises(KeyError, match=r"not in tgx\.settings\.VARIABLES"):
        settings.text("TGX_NEW")


@pytest.mark.parametrize(
    ("given", "dev", "asked"),
    [
        ({"DEVICE": "TGX"}, "TGX", ("DEVICE", "TGX")),
        ({"DEV": "CPU:LLVM"}, "CPU:LLVM", ("DEV", "CPU:LLVM")),
        ({"DEV": "CPU", "DEVICE": "TGX"}, "CPU", ("DEV", "CPU")),
        ({"DEV": "", "DEVICE": "TGX"}, "TGX", ("DEVICE", "TGX")),
        ({"DEVICE": ""}, None, ("", "")),
    ],
)
def test_the_device_handed_to_tinygrad(
    monkeypatch: pytest.MonkeyPatch,
    given: dict[str, str],
    dev: str | None,
    asked: tuple[str, str],
) -> None:
    for name, value in given.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("DEV", given.get("DEV", ""))  # so that monkeypatch takes it back after us
    settings.adopt_device()
    assert (os.environ["DEV"] or None) == dev
    assert settings.requested_device() == asked


def test_choosing_a_device_yields_to_the_users(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DEV", "")
    settings.choose_device("TGX")
    assert os.environ["DEV"] == "TGX"
    settings.choose_device("CPU")
    assert os.environ["DEV"] == "TGX"


def test_errors_say_three_things_and_survive_a_worker() -> None:
    error = errors.missing_extra("torch", "peers")
    assert str(error).splitlines() == [
        "the Python package 'torch' is not installed",
        "  expected: it belongs to the extra 'peers' of tinygrad-tgx",
        "  next: python -m pip install 'tinygrad-tgx[peers]'",
    ]
    again = pickle.loads(pickle.dumps(error))
    assert isinstance(again, errors.TgxError) and isinstance(again, ImportError)
    assert str(again) == str(error) and again.next_step == error.next_step


def test_every_error_survives_a_worker() -> None:
    for kind in vars(errors).values():
        if isinstance(kind, type) and issubclass(kind, errors.TgxError):
            error = kind("given", "wanted", "do this")
            again = pickle.loads(pickle.dumps(error))
            assert type(again) is kind
            assert str(again) == "given\n  expected: wanted\n  next: do this"
