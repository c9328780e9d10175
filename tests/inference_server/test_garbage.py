"""Pauses of Python's garbage collection."""

import gc

import pytest

from inference_server import garbage


@pytest.fixture(autouse=True)
def _enabled():
    yield
    gc.unfreeze()
    gc.enable()


def test_objects_of_a_pause_are_never_examined_again():
    garbage.pause()
    assert not gc.isenabled()
    frozen = gc.get_freeze_count()
    garbage.resume()
    assert gc.isenabled()
    assert gc.get_freeze_count() > frozen


def test_resuming_without_a_pause_changes_nothing():
    frozen = gc.get_freeze_count()
    garbage.resume()
    assert gc.get_freeze_count() == frozen


def test_a_pause_inside_another_one_does_not_end_it():
    with garbage.paused():
        assert not gc.isenabled()
        with garbage.paused():
            pass
        assert not gc.isenabled()
    assert gc.isenabled()
