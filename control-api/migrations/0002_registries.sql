-- Credentials for registries: for everybody (scope ''), a fleet ('fleet:NAME') or one device
-- ('device:UUID'). What is secret is only in `sealed`, encrypted under the key that `key_id` names.
create table registry_credentials (
    id IDENTITY_KEY,
    registry text not null,
    scope text not null,
    device_id bigint references devices (id) on delete cascade,
    kind text not null,
    username text,
    sealed text not null,
    key_id text not null,
    hand_out bigint not null,
    version bigint not null,
    created_at bigint not null,
    updated_at bigint not null,
    unique (registry, scope)
);
create index registry_credentials_by_device on registry_credentials (device_id);

-- What registries answered, now beside whose credentials were used. `next_attempt_at` is when to ask
-- again, after a failure or to refresh.
create table resolutions_of_scopes (
    registry text not null,
    repository text not null,
    selector text not null,
    scope text not null,
    top_kind text,
    top_digest text,
    media_type text,
    platforms text,
    resolved_at bigint,
    asked_at bigint not null,
    error text,
    error_code text,
    stale_since bigint,
    attempts bigint not null,
    next_attempt_at bigint,
    primary key (registry, repository, selector, scope)
);
insert into resolutions_of_scopes (registry, repository, selector, scope, top_kind, top_digest,
    media_type, platforms, resolved_at, asked_at, error, stale_since, attempts, next_attempt_at)
    select registry, repository, selector, '', top_kind, top_digest, media_type, platforms,
        resolved_at, asked_at, error, stale_since, attempts,
        case when next_attempt_at is null and selector not like '%:%' then asked_at
             else next_attempt_at end
    from resolutions;

-- Whether a target waits for the digest of a reference.
alter table target_references add column waits bigint not null default 0;
update target_references set waits = 1 where exists (
    select 1 from resolutions r where r.registry = target_references.registry
        and r.repository = target_references.repository
        and r.selector = target_references.selector and r.top_digest is null);
create index target_references_by_waits on target_references (waits);

drop table resolutions;
alter table resolutions_of_scopes rename to resolutions;
create index resolutions_by_next_attempt on resolutions (next_attempt_at);

-- Whose credentials count for each reference of each device: its own, its fleet's, everybody's.
create view reference_scopes as
    select t.device_id, t.registry, t.repository, t.selector, t.waits, coalesce(
        (select c.scope from registry_credentials c
            where c.registry = t.registry and c.device_id = t.device_id),
        (select c.scope from device_labels l
            join registry_credentials c on c.registry = t.registry and c.scope = 'fleet:' || l.value
            where l.device_id = t.device_id and l.label = 'fleet'),
        '') as scope
    from target_references t;

-- What a tag meant, and from when to when that was seen.
create table tag_history (
    id IDENTITY_KEY,
    registry text not null,
    repository text not null,
    selector text not null,
    digest text not null,
    first_seen bigint not null,
    last_seen bigint not null
);
create index tag_history_by_image on tag_history (registry, repository, selector, id);

-- Newer tags of the same kind, for each platform that a device with that target has.
create table tag_candidates (
    registry text not null,
    repository text not null,
    selector text not null,
    platform text not null,
    candidates text not null,
    asked_at bigint not null,
    primary key (registry, repository, selector, platform)
);
