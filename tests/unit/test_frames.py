"""Frames are read and written as the library does it, only faster."""

from datetime import UTC, datetime

import pamqp.frame
import pytest
from aiormq import spec
from pamqp.body import ContentBody
from pamqp.header import ContentHeader

from contracts import frames
from contracts.frames import Message, decoded


@pytest.mark.parametrize("redelivered", [True, False])
def test_a_delivery_is_read_as_the_library_reads_it(redelivered: bool) -> None:
    frame = pamqp.frame.marshal(spec.Basic.Deliver("tag", 2**40, redelivered, "exchange", "key"), 7)

    _, channel, ours = decoded(frame)
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

    _, channel, ours = decoded(frame)
    _, _, theirs = pamqp.frame.unmarshal(frame)

    assert channel == 7
    assert isinstance(ours, ContentHeader)
    assert isinstance(theirs, ContentHeader)
    assert (ours.class_id, ours.weight, ours.body_size) == (theirs.class_id, theirs.weight, theirs.body_size)
    for name in spec.Basic.Properties.__slots__:
        assert getattr(ours.properties, name) == getattr(theirs.properties, name)


@pytest.mark.parametrize("multiple", [True, False])
def test_a_confirm_is_read_as_the_library_reads_it(multiple: bool) -> None:
    frame = pamqp.frame.marshal(spec.Basic.Ack(2**40, multiple), 7)

    _, channel, ours = decoded(frame)

    assert channel == 7
    assert isinstance(ours, spec.Basic.Ack)
    assert dict(ours) == {"delivery_tag": 2**40, "multiple": multiple}


@pytest.mark.parametrize("size", [0, 1, 92, 93, 184, 185])
@pytest.mark.parametrize("mandatory", [True, False])
def test_a_message_is_written_as_the_library_writes_it(size: int, mandatory: bool) -> None:
    """100 bytes fit into a frame here; 8 of them are the frame's own."""
    body = b"x" * size
    properties = frames.properties(
        content_type="application/json",
        headers=frames.table({"schema_version": 1, "fresh": True}),
        delivery_mode=2,
        correlation_id="c",
        reply_to="d",
        expiration=5.5,
        message_id="e",
        timestamp=1_767_225_600,
        message_type="f",
        user_id="g\u00e9",
        app_id="h",
    )

    ours = b"".join(frames.publish(7, Message("exchange", "key", properties, body, mandatory), frame_max=100))

    theirs = spec.Basic.Properties(
        content_type="application/json",
        headers={"schema_version": 1, "fresh": True},
        delivery_mode=2,
        correlation_id="c",
        reply_to="d",
        expiration="5500",
        message_id="e",
        timestamp=datetime(2026, 1, 1, tzinfo=UTC),
        message_type="f",
        user_id="g\u00e9",
        app_id="h",
    )
    method = spec.Basic.Publish(exchange="exchange", routing_key="key", mandatory=mandatory)
    content = [ContentBody(body[start : start + 92]) for start in range(0, size, 92)]
    assert ours == b"".join(
        [
            pamqp.frame.marshal(method, 7),
            pamqp.frame.marshal(ContentHeader(0, size, theirs), 7),
            *(pamqp.frame.marshal(part, 7) for part in content),
        ]
    )


def test_no_properties_are_none() -> None:
    assert frames.properties() == pamqp.frame.marshal(ContentHeader(0, 0, spec.Basic.Properties()), 7)[19:-1]


def test_a_text_that_does_not_fit_is_named() -> None:
    with pytest.raises(ValueError, match="app_id is 256 bytes long"):
        frames.properties(app_id="\u00e9" * 128)
