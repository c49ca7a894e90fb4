"""How a process learns of the job it belongs to; jobs themselves are in tests/launch/test_local.py."""

import pytest

from asgd.training import distributed

JOB = {"ASGD_COORDINATOR": "host-0.net:1234", "ASGD_NUM_PROCESSES": "4", "ASGD_PROCESS_ID": "3"}


def test_who_says_what():
    assert distributed._arguments({}) is None
    assert distributed._arguments({"ASGD_DISTRIBUTED": ""}) is None
    assert distributed._arguments({"ASGD_DISTRIBUTED": "auto"}) == {}
    assert distributed._arguments(JOB | {"ASGD_DISTRIBUTED": "auto"}) == {
        "coordinator_address": "host-0.net:1234", "num_processes": 4, "process_id": 3}


@pytest.mark.parametrize("changes, message", [
    ({"ASGD_COORDINATOR": "host"}, "ASGD_COORDINATOR must be host:port, got 'host'"),
    ({"ASGD_COORDINATOR": ":12"}, "ASGD_COORDINATOR must be host:port"),
    ({"ASGD_COORDINATOR": "host:http"}, "ASGD_COORDINATOR must be host:port"),
    ({"ASGD_NUM_PROCESSES": "0"}, "ASGD_NUM_PROCESSES must be an integer, at least 1, got '0'"),
    ({"ASGD_NUM_PROCESSES": "many"}, "ASGD_NUM_PROCESSES must be an integer"),
    ({"ASGD_PROCESS_ID": "4"}, "ASGD_PROCESS_ID must be below ASGD_NUM_PROCESSES=4, got 4"),
    ({"ASGD_PROCESS_ID": "-1"}, "ASGD_PROCESS_ID must be an integer, at least 0"),
    ({"ASGD_PROCESS_ID": None}, "ASGD_PROCESS_ID must be set too, as ASGD_COORDINATOR is"),
    ({"ASGD_COORDINATOR": None}, "ASGD_COORDINATOR must be set too"),
])
def test_what_is_refused(changes, message):
    environment = {name: value for name, value in (JOB | changes).items() if value is not None}
    with pytest.raises(ValueError, match=message):
        distributed._arguments(environment)


def test_auto_or_nothing():
    with pytest.raises(ValueError, match="ASGD_DISTRIBUTED must be auto or not set, got 'yes'"):
        distributed._arguments({"ASGD_DISTRIBUTED": "yes"})


def test_alone_everybody_agrees():
    assert distributed.is_first() and distributed.from_first(7) == 7
    assert distributed.all_processes(True) and not distributed.all_processes(False)
    distributed.wait_for_all("test")
