-- Portable subset only (see src/store/db.rs). Times are milliseconds since 1970, JSON is text,
-- truth is 0 or 1. IDENTITY_KEY and ROW_KEY are the two words that src/store/migrate.rs replaces.

create table devices (
    id IDENTITY_KEY,
    uuid text not null unique,
    name text not null,
    name_folded text not null,
    labels text not null,
    platform text not null,
    agent_version text not null,
    token_hash text not null unique,
    may_re_enrol bigint not null,
    enrolled_at bigint not null,
    last_seen_at bigint
);
create index devices_by_seen on devices (last_seen_at);

create table device_labels (
    device_id bigint not null references devices (id) on delete cascade,
    label text not null,
    value text not null,
    primary key (device_id, label)
);
create index device_labels_by_value on device_labels (label, value);

-- What people asked for (input) and what devices are served (body); both change together.
create table targets (
    device_id ROW_KEY references devices (id) on delete cascade,
    input text not null,
    body text not null,
    etag text not null,
    generation bigint not null,
    changed_at bigint not null
);

-- Which devices a newly resolved reference concerns.
create table target_references (
    device_id bigint not null references devices (id) on delete cascade,
    registry text not null,
    repository text not null,
    selector text not null,
    primary key (device_id, registry, repository, selector)
);
create index target_references_by_image on target_references (registry, repository, selector);

create table reports (
    device_id ROW_KEY references devices (id) on delete cascade,
    journal text not null,
    sequence bigint not null,
    generation bigint not null,
    status text not null,
    body text not null,
    received_at bigint not null
);

-- What registries answered; the selector is a tag, or a digest where one was written.
create table resolutions (
    registry text not null,
    repository text not null,
    selector text not null,
    top_kind text,
    top_digest text,
    media_type text,
    platforms text,
    resolved_at bigint,
    asked_at bigint not null,
    error text,
    stale_since bigint,
    attempts bigint not null,
    next_attempt_at bigint,
    primary key (registry, repository, selector)
);
create index resolutions_by_next_attempt on resolutions (next_attempt_at);

create table tokens (
    id IDENTITY_KEY,
    name text not null,
    role text not null,
    hash text not null unique,
    created_at bigint not null,
    expires_at bigint
);

create table enrolment_keys (
    id IDENTITY_KEY,
    name text not null,
    hash text not null unique,
    labels text not null,
    max_uses bigint,
    used bigint not null,
    created_at bigint not null,
    expires_at bigint
);

create table events (
    id IDENTITY_KEY,
    kind text not null,
    device text,
    subject text,
    detail text not null,
    at bigint not null,
    delivery text unique
);
create index events_by_device on events (device, id);
create index events_by_kind on events (kind, id);

create table audit (
    id IDENTITY_KEY,
    actor_kind text not null,
    actor text not null,
    action text not null,
    subject_kind text not null,
    subject text not null,
    before text,
    after text,
    request_id text not null,
    at bigint not null
);
create index audit_by_subject on audit (subject_kind, subject, id);
