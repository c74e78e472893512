"""Frames are decoded as the library decodes them, only faster."""

from datetime import UTC, datetime

import pamqp.frame
import pytest
from aiormq import spec
from pamqp.header import ContentHeader

from service.deliveries import _decoded


@pytest.mark.parametrize("redelivered", [True, False])
def test_a_delivery_is_read_as_the_library_reads_it(redelivered: bool) -> None:
    frame = pamqp.frame.marshal(spec.Basic.Deliver("tag", 2**40, redelivered, "exchange", "key"), 7)

    _, channel, ours = _decoded(frame)
    _, _, theirs = pamqp.frame.unmarshal(frame)

    assert channel == 7
    assert isinstance(ours, spec.Basic.Deliver)
    assert isinstance(theirs, spec.Basic.Deliver)
    assert dict(ours) == dict(theirs)


@pytest.mark.parametrize(
    "properties",
    [
        spec.Basic.Properties(),
        spec.Basic.Properties(content_type="application/json", headers={"a": [1, {"b": None}]}, delivery_mode=2),
        spec.Basic.Properties(
            content_type="a",
            content_encoding="b",
            headers={"schema_version": 1},
            delivery_mode=1,
            priority=3,
            correlation_id="c",
            reply_to="d",
            expiration="5",
            message_id="e",
            timestamp=datetime(2026, 1, 1, tzinfo=UTC),
            message_type="f",
            user_id="g",
            app_id="h",
        ),
    ],
)
def test_properties_are_read_as_the_library_reads_them(properties: spec.Basic.Properties) -> None:
    frame = pamqp.frame.marshal(ContentHeader(0, 12, properties), 7)

    _, channel, ours = _decoded(frame)
    _, _, theirs = pamqp.frame.unmarshal(frame)

    assert channel == 7
    assert isinstance(ours, ContentHeader)
    assert isinstance(theirs, ContentHeader)
    assert (ours.class_id, ours.weight, ours.body_size) == (theirs.class_id, theirs.weight, theirs.body_size)
    for name in spec.Basic.Properties.__slots__:
        assert getattr(ours.properties, name) == getattr(theirs.properties, name)
