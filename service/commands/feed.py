"""Commands about feeds of bots."""

from contracts.feed import AddFeedToBot, EditFeeds, FeedView
from service.registry import CommandTable, Existing
from service.unit_of_work import UnitOfWork

handlers = CommandTable()


@handlers.handles(AddFeedToBot)
async def add_feed_to_bot(command: AddFeedToBot, work: UnitOfWork) -> FeedView | Existing[FeedView]:
    values = command.model_dump(exclude_unset=True, exclude={"bot_id"})
    feed, is_new = await work.bots.place_feed(command.bot_id, values)
    view = FeedView.model_validate(feed)
    return view if is_new else Existing(view)


@handlers.handles(EditFeeds)
async def edit_feeds(command: EditFeeds, work: UnitOfWork) -> list[FeedView] | Existing[list[FeedView]]:
    feeds, changed = await work.bots.replace_feeds(command.bot_id, [feed.model_dump() for feed in command.feeds])
    views = [FeedView.model_validate(feed) for feed in feeds]
    return views if changed else Existing(views)
