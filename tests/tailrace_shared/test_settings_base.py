"""Settings: what the classes of both services have in common."""

from typing import get_args

import pytest

from http_bridge.settings import bridge
from inference_server.settings import server
from tailrace_shared.settings_base import Group

CLASSES = (server.Settings, bridge.Settings)


@pytest.mark.parametrize("settings", CLASSES)
def test_every_setting_has_a_description(settings):
    assert all(field.description.endswith(".") for field in settings.model_fields.values())


def test_every_setting_has_a_group_and_every_group_a_setting():
    groups = {field.json_schema_extra["group"] for settings in CLASSES for field in settings.model_fields.values()}
    assert groups == set(get_args(Group))
