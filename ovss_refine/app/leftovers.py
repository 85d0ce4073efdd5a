"""What gradio would keep of visitors who have left: state, unread messages, events without an end.

Its queue notes the events of every page until the page has read of their end. Of an event whose
visitor left meanwhile nobody ever reads, so a page that comes back under the same key would wait
for it for good.
"""

from typing import Any

from ovss_refine.app.session import Sessions


class Leftovers:
    """Finds and drops them.

    Args:
        page: a `gradio.Blocks` with a queue.
        sessions: the visitors' sessions; what belongs to one of them stays.
    """

    def __init__(self, page: Any, sessions: Sessions) -> None:
        """Watch the page's queue: of a visitor who starts an event, others may have no end."""
        self.page, self.sessions = page, sessions
        self._idle: set[str] = set()  # at the last `tidy`
        push = page._queue.push

        async def pushing(body: Any, *args: Any, **options: Any) -> Any:
            self.forget_endless(body.session_hash)
            return await push(body, *args, **options)

        page._queue.push = pushing

    def forget_endless(self, key: str) -> None:
        """Forget the events of a visitor that have ended, or will, without a message that says so.

        Called where the queue runs, so that nothing changes meanwhile.
        """
        queue = self.page._queue
        messages = queue.pending_messages_per_session.get(key)
        unread = {message.event_id for message in messages._queue} if messages else set()
        for event_id in [*queue.pending_event_ids_session.get(key, ())]:
            event = queue.event_ids_to_events.get(event_id)
            if event_id not in unread and (event is None or not event.alive):
                queue.pending_event_ids_session[key].discard(event_id)

    def tidy(self) -> None:
        """Drop what belongs to visitors without a session.

        Messages go if there was no event either, now and the last time: a page may be about to read
        the end of one.
        """
        held, queue = self.page.state_holder.session_data, self.page._queue
        for key in [key for key in list(held) if key not in self.sessions]:
            held.pop(key, None)
        busy = {event.session_hash for event in list(queue.event_ids_to_events.values())}
        kept = {*list(queue.pending_messages_per_session), *list(queue.pending_event_ids_session)}
        idle = {key for key in kept - busy if key not in self.sessions}
        for key in idle & self._idle:
            queue.pending_messages_per_session.pop(key, None)
            queue.pending_event_ids_session.pop(key, None)
        self._idle = idle
