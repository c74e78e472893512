"""Whether this instance lives, and whether it does its work."""

from collections.abc import Sequence
from typing import Any, Final

from sqlalchemy import text

from contracts.amqp import BROKEN_LINK, ChannelNotFoundEntity, Link
from service.consumers import Consumers, Lane
from service.database import SessionMaker
from service.relay import Relay

_MAX_LAG_SECONDS: Final = 5.0


class Health:
    """Looks at database, subscriptions and relay when asked. Redis is not among them: the service works without."""

    def __init__(
        self, sessions: SessionMaker, consumers: Consumers, lanes: Sequence[Lane], relay: Relay, lookout: Link
    ) -> None:
        self._sessions = sessions
        self._consumers = consumers
        self._lanes = lanes
        self._relay = relay
        self._lookout = lookout
        self.is_stopping = False

    async def ready(self) -> tuple[bool, dict[str, Any]]:
        """Whether work gets done, and what each part says; ``ok`` or the reason why not."""
        checks = {
            "service": "stopping" if self.is_stopping else "ok",
            "database": await self._database(),
            "consumers": await self._subscriptions(),
            "relay": self._lag(),
        }
        return all(state == "ok" for state in checks.values()), checks

    async def _database(self) -> str:
        if held := [lane.queue for lane in self._lanes if lane.is_held]:
            return f"does not commit for {', '.join(held)}"
        try:
            async with self._sessions() as session:
                await session.execute(text("SELECT 1"))
        except Exception as error:  # noqa: BLE001 - any failure is the answer
            return f"does not answer ({type(error).__name__})"
        return "ok"

    async def _subscriptions(self) -> str:
        if missing := await self._consumers.missing():
            return f"not subscribed to {', '.join(missing)}"
        queue_name = ""
        try:
            # What the broker says counts: a subscription it has forgotten looks alive from here.
            channel = await self._lookout.channel()
            for lane in self._lanes:
                queue_name = lane.queue
                queue = await channel.declare_queue(queue_name, passive=True, timeout=2)
                if not queue.declaration_result.consumer_count:
                    return f"the broker knows no consumer of {lane.queue}"
        except ChannelNotFoundEntity:
            return f"the broker knows no queue {queue_name}"
        except BROKEN_LINK as error:
            return f"the broker does not answer ({type(error).__name__})"
        return "ok"

    def _lag(self) -> str:
        lag = self._relay.lag
        if lag is None:
            return "has not looked yet"
        return "ok" if lag <= _MAX_LAG_SECONDS else f"the oldest event has waited {lag:.1f} s"
