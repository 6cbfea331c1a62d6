-- Where people are told of events. What is secret of a channel is sealed for `place`, which no other row has.
create table notification_channels (
    id IDENTITY_KEY,
    name text not null unique,
    enabled bigint not null,
    settings text not null,
    place text not null unique,
    sealed text not null,
    key_id text not null,
    failures bigint not null,
    rest_until bigint,
    taken_at bigint,
    created_at bigint not null,
    updated_at bigint not null
);

-- Messages: waiting, delivered, failed or summed_up. One event is told a channel once.
create table notification_deliveries (
    id IDENTITY_KEY,
    channel_id bigint not null references notification_channels (id) on delete cascade,
    event_id bigint,
    delivery text not null unique,
    kind text not null,
    content text not null,
    state text not null,
    attempts bigint not null,
    next_attempt_at bigint not null,
    last_attempt_at bigint,
    status bigint,
    error text,
    created_at bigint not null,
    ended_at bigint,
    unique (channel_id, event_id)
);
create index notification_deliveries_waiting on notification_deliveries (channel_id, next_attempt_at)
    where state = 'waiting';
create index notification_deliveries_tried on notification_deliveries (channel_id, last_attempt_at);
create index notification_deliveries_by_channel on notification_deliveries (channel_id, id);

-- Numbers of events are given out before their transactions are committed: one may become visible after a later
-- one. So events are noted one by one as seen, and the cursor follows when nothing can come before it any more.
create table notification_seen (
    event_id ROW_KEY,
    seen_at bigint not null
);
create index notification_seen_by_time on notification_seen (seen_at);
create table notification_cursor (
    name text primary key,
    event_id bigint not null
);
-- What happened before there were channels is told nobody.
insert into notification_cursor (name, event_id) select 'events', coalesce(max(id), 0) from events;
